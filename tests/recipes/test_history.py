"""What was written is read back; half a line, steps taken back and strange files are no trouble."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from modernbert.errors import InputError
from modernbert.recipes.history import COLUMNS, read_histories, read_history

WriteCourse = Callable[..., Path]


def append(folder: Path, *records: object) -> None:
    with (folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write("".join(json.dumps(record) + "\n" for record in records))


def test_a_run_is_read_back(write_course: WriteCourse) -> None:
    folder = write_course("one")
    append(folder, {"event": "skip", "step": 30, "tokens": 3000, "message": "why"})
    history = read_history(folder)
    assert (history.name, history.folder) == ("one", folder)
    assert set(history.columns) == set(COLUMNS)
    assert history.columns["tokens"].tolist() == list(range(100, 3001, 100))
    assert history.columns["loss"][[0, -1]] == pytest.approx([4.9, 2.0])
    assert np.isnan(history.columns["mfu"]).all()
    spans = [(span.name, span.first, span.stop, span.start_tokens, span.end_tokens) for span in history.spans]
    assert spans == [("long", 0, 20, 0, 2000), ("decay", 20, 30, 2000, 3000)]
    assert [record["tokens"] for record in history.validations] == [1000, 2000, 3000]
    assert [record["message"] for record in history.events] == ["why"]
    assert history.planned_tokens == 4000
    assert history.facts["cpu"] == "Abacus 9000"


def test_a_validation_belongs_to_the_phase_that_it_ends(write_course: WriteCourse) -> None:
    first, second = read_history(write_course()).spans
    assert [first.holds(tokens) for tokens in (0, 1000, 2000, 2001)] == [False, True, True, False]
    assert second.holds(2001)


def test_a_line_that_is_being_written_is_not_read(write_course: WriteCourse) -> None:
    folder = write_course()
    with (folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"event": "step", "tok')
    assert len(read_history(folder).columns["loss"]) == 30


def test_steps_that_were_taken_back_are_forgotten(write_course: WriteCourse) -> None:
    """And what is said of them is not."""
    folder = write_course()
    again = {"event": "step", "step": 21, "tokens": 2_050, "phase": "decay", "batch_tokens": 50, "loss": 9.0}
    append(folder, {"event": "rollback", "step": 20, "tokens": 2_000, "message": "back"}, again)
    history = read_history(folder)
    assert history.columns["tokens"][-2:].tolist() == [2000, 2050]
    assert history.columns["loss"][-1] == 9
    assert [record["tokens"] for record in history.validations] == [1000, 2000]
    assert [record["event"] for record in history.events] == ["rollback"]


def test_a_run_without_its_settings_is_read(write_course: WriteCourse) -> None:
    folder = write_course()
    for name in ("run.yaml", "facts.json"):
        (folder / name).unlink()
    history = read_history(folder)
    assert (history.planned_tokens, dict(history.facts)) == (None, {})


def test_a_part_of_a_run_begins_where_its_first_record_does(write_course: WriteCourse) -> None:
    """As after `metrics.jsonl` was begun anew in mid-run."""
    folder = write_course()
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(lines[5:]))
    assert read_history(folder).spans[0].start_tokens == 500


def test_runs_of_one_name_are_told_apart_by_their_paths(write_course: WriteCourse) -> None:
    folders = [write_course("a/run"), write_course("b/run"), write_course("other")]
    assert [history.name for history in read_histories(folders)] == [*map(str, folders[:2]), "other"]


def test_what_is_no_run_is_refused(write_course: WriteCourse, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"`.*/none/metrics.jsonl` could not be read \(No such file"):
        read_history(tmp_path / "none")
    (tmp_path / "metrics.jsonl").write_text('{"event": "start", "tokens": 0}\n')
    with pytest.raises(InputError, match=r"holds no step yet; .* wait for the run's first"):
        read_history(tmp_path)
    for line in ("[1]", "{", '{"event": "step"}'):
        folder = write_course(f"strange {line.strip('{}[')[:3]}")
        with (folder / "metrics.jsonl").open("a") as file:
            file.write(line + "\n")
        with pytest.raises(
            InputError, match=r"metrics.jsonl:34` is not a record of a run: .*remove that line"
        ):
            read_history(folder)
