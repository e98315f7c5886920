"""What the README says of speed and accuracy is what the result files say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import tables


def test_the_tables_of_the_readme_are_those_of_the_results() -> None:
    text = tables.README.read_text(encoding="utf-8")
    assert set(tables.TABLES) == {mark[2] for mark in tables.MARK.finditer(text)}
    assert tables.render(text) == text


def test_the_newest_result_is_shown_one_of_a_gpu_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "RESULTS", tmp_path)

    def result(date: str, device: str) -> dict[str, object]:
        record = {"date": date, "machine": {"device": device, "gpu": "H100"}}
        (tmp_path / f"speed_{device}_{date}.json").write_text(json.dumps(record))
        return record

    result("2026-01-01", "cpu")
    newer = result("2026-01-03", "cpu")  # a GPU stood beside it
    assert tables.newest("speed") == newer
    result("2026-01-01", "cuda")
    newer = result("2026-01-02", "cuda")
    assert tables.newest("speed") == newer
    with pytest.raises(SystemExit, match="there is no result of `memory` in"):
        tables.newest("memory")
