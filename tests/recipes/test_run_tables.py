from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from modernbert.recipes.history import read_history
from modernbert.recipes.run_tables import (
    difference_rows,
    duration,
    event_rows,
    length_rows,
    phase_rows,
    source_rows,
)

WriteCourse = Callable[..., Path]


def test_a_phase_is_told_in_a_row(write_course: WriteCourse) -> None:
    long, decay = phase_rows(read_history(write_course()))
    assert long == {
        "phase": "long",
        "tokens": "2k",
        "steps": "20",
        "time": "0:00:40",
        "loss": "3.000",  # of its last twentieth
        "accuracy": "20.0%",
        "held-out loss": "2.500",
        "held-out accuracy": "40.0%",
        "tokens/s": "50",
        "MFU": "–",
        "packed": "98.75%",
        "wait": "5.00%",
        "memory": "3GB",
    }
    assert (decay["tokens"], decay["loss"], decay["held-out loss"]) == ("1k", "2.000", "1.500")
    assert (decay["time"], decay["memory"]) == ("0:00:20", "4GB")


def test_a_phase_without_validation_and_known_figures(write_course: WriteCourse) -> None:
    folder = write_course()
    step = {"event": "step", "step": 1, "tokens": 50, "phase": "long", "batch_tokens": 50, "seconds": 0.0}
    (folder / "metrics.jsonl").write_text(json.dumps(step) + "\n")
    (row,) = phase_rows(read_history(folder))
    assert row["tokens"] == "50"
    assert {row[key] for key in ("loss", "held-out loss", "tokens/s", "packed", "wait", "memory")} == {"–"}


@pytest.mark.parametrize(("stride", "shown"), [(8, "1 in 8"), (None, "1")])
def test_lengths_are_those_of_the_last_validation_of_each_phase(
    stride: int | None, shown: str, write_course: WriteCourse
) -> None:
    length = {"length": 8192, "loss": 1.5, "accuracy": 0.6, "pseudo_perplexity": 3.25, "num_tokens": 65_000}
    folder = write_course(by_length=[{**length, "stride": stride}])
    rows = length_rows(read_history(folder))
    assert [row["phase"] for row in rows] == ["long", "decay"]
    assert rows[0] == {
        "phase": "long",
        "length": "8,192",
        "masked loss": "1.500",
        "accuracy": "60.0%",
        "pseudo-perplexity": "3.25",
        "masked at once": shown,
        "tokens": "65k",
    }
    assert length_rows(read_history(write_course("without"))) == []


def test_sources_are_those_of_the_last_validation_of_each_phase(write_course: WriteCourse) -> None:
    sources = [{"source": "web", "loss": 1.5, "accuracy": 0.6, "num_masked": 65_000}]
    first, second = source_rows(read_history(write_course(by_source=sources)))
    shown = {"source": "web", "masked loss": "1.500", "accuracy": "60.0%", "masked tokens": "65k"}
    assert (first, second) == ({"phase": "long", **shown}, {"phase": "decay", **shown})
    assert source_rows(read_history(write_course("without"))) == []


def test_events_are_listed(write_course: WriteCourse) -> None:
    events = (
        {"event": "skip", "step": 7, "tokens": 700, "phase": "long", "message": "its loss is nan"},
        {"event": "other", "tokens": 0},
    )
    first, second = event_rows(replace(read_history(write_course()), events=events))
    expected = {"event": "skip", "step": "7", "tokens": "700", "phase": "long", "what": "its loss is nan"}
    assert first == expected
    assert (second["step"], second["what"]) == ("–", "")


def test_what_differs_between_runs_is_named_but_for_their_folders(write_course: WriteCourse) -> None:
    runs = [read_history(write_course(name, seed=seed)) for name, seed in (("a", 1), ("b", 2), ("c", 1))]
    assert difference_rows(runs) == [{"run": "b", "setting": "`seed`: 1 → 2"}]


def test_durations_are_those_of_a_clock() -> None:
    assert [duration(seconds) for seconds in (0.4, 61, 90_000)] == ["0:00:00", "0:01:01", "1 day, 1:00:00"]
