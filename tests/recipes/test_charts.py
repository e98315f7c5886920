"""Each figure is drawn of each run, against tokens, in a frame that shows what matters."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modernbert.recipes.charts import CHARTS, charts_of, draw_chart, draw_lengths, draw_picture, draw_svg
from modernbert.recipes.drawing import COLOURS, new_figure
from modernbert.recipes.history import History, read_history

WriteCourse = Callable[..., Path]
BY_KEY = {chart.key: chart for chart in CHARTS}
SELDOM = ("mfu", "objective", "divergence", "hidden_distance")
"""What the runs of these tests did not measure."""


@pytest.fixture
def axes() -> Iterator[Any]:
    with new_figure(8, 4) as figure:
        yield figure.add_subplot()


@pytest.fixture
def history(write_course: WriteCourse) -> History:
    return read_history(write_course("run"))


def with_column(history: History, key: str, values: Any) -> History:
    return replace(history, columns={**history.columns, key: np.asarray(values, dtype=float)})


def test_only_what_was_measured_is_drawn(history: History) -> None:
    keys = [chart.key for chart in charts_of([history])]
    assert keys == [chart.key for chart in CHARTS if chart.key not in SELDOM]
    known = with_column(history, "mfu", np.full(30, 0.4))
    assert "mfu" in [chart.key for chart in charts_of([history, known])]


@pytest.mark.parametrize("key", [key for key in BY_KEY if key not in SELDOM])
def test_a_line_goes_from_the_first_step_to_the_last(key: str, axes: Any, history: History) -> None:
    (line,) = draw_chart(axes, BY_KEY[key], [history], inches=8)
    assert line.tokens.tolist() == history.columns["tokens"].tolist()
    assert np.isfinite(line.mean).all()
    left, right = axes.get_xlim()
    assert left <= 100 < 3000 <= right
    low, high = axes.get_ylim()
    if key not in ("loss", "accuracy"):  # whose first values may lie outside
        assert low <= line.mean.min() <= line.mean.max() <= high
    if BY_KEY[key].scale == "zero":
        assert low == 0


def test_lines_are_the_runs_and_dots_their_validations(axes: Any, history: History) -> None:
    draw_chart(axes, BY_KEY["loss"], [history], inches=8)
    _, line, dots, _ = axes.get_lines()
    assert (line.get_color(), dots.get_color()) == COLOURS[:2]
    assert dots.get_xydata().tolist() == pytest.approx(np.array([[1000, 3.5], [2000, 2.5], [3000, 1.5]]))
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["training", "held out"]


def test_several_runs_have_a_colour_each(axes: Any, write_course: WriteCourse) -> None:
    runs = [read_history(write_course(name, loss=loss)) for name, loss in (("a", 5), ("b", 6), ("c", 4))]
    lines = draw_chart(axes, BY_KEY["loss"], runs, inches=8)
    assert [line.mean[-1] for line in lines] == pytest.approx([2, 3, 1], abs=0.05)
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["a", "b", "c"]
    colours = [line.get_color() for line in axes.get_lines() if line.get_label() in "abc"]
    assert tuple(colours) == COLOURS[:3]


def test_more_runs_than_colours_differ_by_their_lines(axes: Any, history: History) -> None:
    runs = [replace(history, name=str(number)) for number in range(len(COLOURS) + 1)]
    draw_chart(axes, BY_KEY["learning_rate"], runs, inches=8)
    first, *_, last = (line for line in axes.get_lines() if line.get_label().isdecimal())
    assert first.get_color() == last.get_color()
    assert first.get_linestyle() != last.get_linestyle()


def test_the_steep_beginning_does_not_set_the_frame(axes: Any, history: History) -> None:
    tokens, loss = np.arange(1.0, 1001), np.full(1000, 2.0)
    loss[:20], loss[500:] = np.linspace(11, 3, 20), 1.9
    long = replace(
        history,
        columns={key: np.full(1000, 1.0) for key in history.columns} | {"tokens": tokens, "loss": loss},
        spans=(replace(history.spans[0], stop=1000, end_tokens=1000.0),),
        validations=(),
    )
    draw_chart(axes, BY_KEY["loss"], [long], inches=8)
    low, high = axes.get_ylim()
    assert 1.5 < low < 1.9
    assert 2.0 < high < 2.6


def test_phases_are_shaded_and_named_where_there_is_room(axes: Any, history: History) -> None:
    draw_chart(axes, BY_KEY["loss"], [history], inches=8)
    assert [text.get_text() for text in axes.texts] == ["long", "decay"]
    (band,) = [patch for patch in axes.patches if patch.get_width() > 0]
    assert band.get_x() == 2000
    assert band.get_x() + band.get_width() == pytest.approx(axes.get_xlim()[1])
    narrow = replace(history, spans=(replace(history.spans[0], end_tokens=20.0), history.spans[1]))
    axes.clear()
    draw_chart(axes, BY_KEY["accuracy"], [narrow], inches=4)
    assert [text.get_text() for text in axes.texts] == ["decay"]


def test_what_a_phase_changes_at_once_is_not_smoothed_away(axes: Any, history: History) -> None:
    jump = with_column(history, "tokens_per_second", [300.0] * 20 + [200.0] * 10)
    (line,) = draw_chart(axes, BY_KEY["throughput"], [jump], inches=8)
    assert line.mean.tolist() == pytest.approx([300.0] * 20 + [200.0] * 10)


def test_events_are_marked_on_the_axis(axes: Any, history: History) -> None:
    events = ({"event": "skip", "tokens": 700}, {"event": "skip", "tokens": 900})
    draw_chart(axes, BY_KEY["loss"], [replace(history, events=events)], inches=8)
    assert axes.get_lines()[-1].get_xdata().tolist() == [700, 900]


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("loss", 2.71828, "2.718"),
        ("accuracy", 0.5215, "52.15%"),
        ("learning_rate", 8e-4, "8e-4"),
        ("learning_rate", 1.25e-3, "1.25e-3"),
        ("learning_rate", 0.0, "0"),
        ("throughput", 312_300, "312k"),
        ("memory", 31e9, "31GB"),
        ("memory", 0, "0"),
    ],
)
def test_values_are_written_for_people(key: str, value: float, expected: str) -> None:
    assert BY_KEY[key].unit(value) == expected


def test_an_svg_stands_in_a_page_and_is_the_same_each_time(history: History) -> None:
    plot = draw_svg(BY_KEY["loss"], [history], 6, 3)
    assert plot.svg.startswith("<svg ")
    assert plot.svg.rstrip().endswith("</svg>")
    assert "width=" not in plot.svg.split(">")[0]
    assert "viewBox=" in plot.svg.split(">")[0]
    assert ">held out</text>" in plot.svg  # text stays text
    left, bottom, width, height = plot.box
    assert 0 < left < left + width <= 1
    assert 0 < bottom < bottom + height <= 1
    assert plot.tokens[0] <= 100 < 3000 <= plot.tokens[1]
    assert draw_svg(BY_KEY["loss"], [history], 6, 3).svg == plot.svg


def test_a_picture_of_one_run_or_several(write_course: WriteCourse, tmp_path: Path) -> None:
    runs = [read_history(write_course(name)) for name in ("a", "b")]
    draw_picture(runs[:1], tmp_path / "one.png")
    draw_picture(runs, tmp_path / "two.png")
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in ("one.png", "two.png"))
    assert sorted(path.name for path in tmp_path.glob("*.png*")) == ["one.png", "two.png"]


def test_a_run_of_a_single_step_is_drawn(write_course: WriteCourse, tmp_path: Path) -> None:
    folder = write_course()
    first = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)[0]
    (folder / "metrics.jsonl").write_text(first)
    draw_picture([read_history(folder)], tmp_path / "one.png")


def test_lengths_are_drawn_after_each_phase_or_for_each_run(write_course: WriteCourse) -> None:
    lengths = [{"length": n, "pseudo_perplexity": 9.0 - n / 100} for n in (128, 512)]
    run, other = (read_history(write_course(name, by_length=lengths)) for name in ("run", "other"))
    one, two = draw_lengths([run], 4, 3), draw_lengths([run, other], 4, 3)
    assert one is not None
    assert two is not None
    assert all(f">{text}</text>" in one for text in ("after long", "after decay", "128", "512"))
    assert all(f">{text}</text>" in two for text in ("run", "other"))
    assert draw_lengths([read_history(write_course("none"))], 4, 3) is None
