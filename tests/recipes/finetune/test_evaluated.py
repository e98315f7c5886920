"""Findings of each kind, there and back through JSON."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from modernbert.errors import InputError
from modernbert.recipes.finetune import evaluated, metrics
from modernbert.recipes.finetune.evaluated import Sampling, Shown
from modernbert.recipes.finetune.findings import Findings, read_findings, write_findings

FEW = Sampling(resamples=20)


def shown(count: int) -> list[Shown]:
    return [Shown(text=f"text {index}", place=f"dev.csv, line {index + 2}") for index in range(count)]


def every_kind(count: int) -> list[Findings]:
    """Findings of `count` examples of each problem; of none, too."""
    draw = np.random.default_rng(1)
    gold, logits = draw.integers(3, size=count), draw.normal(size=(count, 3))
    sets = draw.integers(2, size=(count, 3))
    tags = [["B-PER", "O"], ["O", "B-LOC"], ["O", "O"]]
    lists = [[tags[i] for i in draw.integers(3, size=count)] for _ in range(2)]
    answers = [[] if i % 3 == 0 else [f"word {i}"] for i in range(count)]
    texts = [["left", "right"]] * count
    return [
        evaluated.of_classes(
            "test", gold, logits, ["a", "b", "c"], shown(count), temperature=1.5, sampling=FEW
        ),
        evaluated.of_label_sets(
            "test", sets, logits, ["a", "b", "c"], shown(count), thresholds=[0.4, 0.5, 0.6], sampling=FEW
        ),
        evaluated.of_values("test", logits[:, 0], logits[:, 1], shown(count), sampling=FEW),
        evaluated.of_tags("test", *lists, shown(count), sampling=FEW),
        evaluated.of_answers("test", answers, ["word"] * count, shown(count), sampling=FEW),
        evaluated.of_choices(
            "test", (gold % 2).tolist(), list(logits[:, :2]), shown(count), texts, sampling=FEW
        ),
    ]


@pytest.mark.parametrize("count", [0, 1, 30])
def test_findings_come_back_from_json(count: int) -> None:
    kinds = every_kind(count)
    assert [found.problem for found in kinds] == list(metrics.PRIMARY)
    for found in kinds:
        assert Findings.from_json(json.loads(json.dumps(found.to_json(), allow_nan=False))) == found
        assert found.num_examples == count
        assert (found.primary in found.figures) == (found.primary in found.intervals) == bool(count)
        assert len(found.hardest) <= min(count, 20)
        rows = [example.loss for example in found.hardest]
        assert rows == sorted(rows, reverse=True)
        for name, interval in found.intervals.items():
            assert interval.low <= interval.high, name


def test_classes_say_what_is_hard_and_what_is_confused() -> None:
    logits = [[5.0, 0], [0, 5], [5, 0]]
    found = evaluated.of_classes("validation", [0, 1, 1], logits, ["no", "yes"], shown(3), sampling=FEW)
    assert found.confusion == ((1, 0), (1, 1))
    assert (found.hardest[0].place, found.hardest[0].gold) == ("dev.csv, line 4", "yes")
    assert found.hardest[0].predicted == "no (99%)"
    assert found.hardest[0].loss == pytest.approx(5, abs=0.01)
    yes = found.per_label[1]
    assert (yes.support, yes.predicted, yes.precision, yes.recall) == (2, 1, 1, 0.5)


def test_thresholds_change_what_is_predicted() -> None:
    gold, logits = [[1, 0], [1, 1]], [[-1.0, -1], [-1, 1]]
    found = evaluated.of_label_sets(
        "test", gold, logits, ["a", "b"], shown(2), thresholds=[0.2, 0.5], sampling=FEW
    )
    assert found.figures["micro_f1"] == pytest.approx(2 / 4)
    assert found.figures["tuned_micro_f1"] == 1
    assert [row.threshold for row in found.per_label] == [0.2, 0.5]
    assert (found.hardest[0].gold, found.hardest[0].predicted) == ("a", "none")


def test_tags_show_where_they_differ() -> None:
    gold, predicted = [["B-PER", "I-PER", "O"], ["O"]], [["B-PER", "O", "B-LOC"], ["O"]]
    found = evaluated.of_tags("test", gold, predicted, shown(2), sampling=FEW)
    (hard,) = found.hardest
    assert (hard.gold, hard.predicted, hard.loss) == ("I-PER O", "O B-LOC", 2)
    assert found.labels == ("LOC", "O", "PER")
    assert found.confusion == ((0, 0, 0), (1, 1, 0), (0, 1, 1))


def test_questions_without_an_answer_have_a_confusion_of_their_own() -> None:
    found = evaluated.of_answers("test", [["x"], [], []], ["y", "", "z"], shown(3), sampling=FEW)
    assert found.confusion == ((1, 1), (0, 1))
    assert found.hardest[-1].predicted == "z"
    assert evaluated.of_answers("test", [["x"]], ["y"], shown(1), sampling=FEW).confusion == ()


def test_long_texts_are_cut_to_one_line() -> None:
    example = Shown(text="word\n\n" * 500, place="dev.csv, line 2")
    found = evaluated.of_classes("test", [0], [[0.0, 1.0]], ["a", "b"], [example], sampling=FEW)
    text = found.hardest[0].text
    assert len(text) <= 240
    assert text.endswith("…")
    assert "\n" not in text


def test_findings_are_read_with_the_test_set_first(tmp_path: Path) -> None:
    logits = [[1.0, 0]]
    for split in ("validation", "test", "mismatched"):
        write_findings(tmp_path, evaluated.of_classes(split, [0], logits, ["a", "b"], shown(1), sampling=FEW))
    assert [found.split for found in read_findings(tmp_path)] == ["test", "mismatched", "validation"]


def test_what_holds_no_findings_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no findings"):
        read_findings(tmp_path)
    (tmp_path / "findings").mkdir()
    (tmp_path / "findings" / "test.json").write_text('{"split": "test", "figurs": {}}')
    with pytest.raises(InputError, match="does not hold findings: unknown key `figurs`"):
        read_findings(tmp_path)
