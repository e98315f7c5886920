"""Files that cannot be used, through the command line: one line with file and place, and nothing learned.

And those that can, with a remark that reaches the log and the report.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from modernbert import cli, files
from modernbert.data.tokenizer import Tokenizer
from modernbert.model.checkpoint import read_config
from modernbert.model.heads import ModernBertForSequenceClassification
from modernbert.model.init import initialise

from .conftest import Labelled

pytest.importorskip("sklearn", reason="needs the extra `finetune`")
pytest.importorskip("seqeval", reason="needs the extra `finetune`")
pytestmark = pytest.mark.usefixtures("undrawn")

Refuse = Callable[..., str]
Tune = Callable[..., Path]

GOOD = "text,label\n" + "Ada likes Rome,good\nAlan left Oslo,bad\n" * 6


def lines(*rows: dict[str, Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def words(count: int) -> str:
    return " ".join(["Ada", "likes", "Rome", "again"] * (count // 4))


@pytest.fixture
def arguments(
    labelled: Labelled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., list[str]]:
    """Write files into a folder, which is gone to, and return the command line that uses them."""
    monkeypatch.chdir(tmp_path)

    def made(task: str, *overrides: str, model: Path = labelled.model, **given: str | bytes) -> list[str]:
        command = ["finetune", task, "-m", str(model), "-o", "run", "device=cpu", "tuning.epochs=1"]
        for name, content in given.items():
            split, _, kind = name.partition("_")
            path = tmp_path / f"{split}.{kind or 'csv'}"
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
            command += [f"--{split}", path.name]
        return [*command, *overrides]

    return made


@pytest.fixture
def refuse(arguments: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]) -> Refuse:
    """Run the command line, which must fail by one line, and return it."""

    def refused(*given: Any, **options: Any) -> str:
        code = cli.main(arguments(*given, **options))
        printed = capsys.readouterr()
        assert (code, printed.out) == (1, ""), printed.err
        assert "Traceback" not in printed.err
        (line,) = [line for line in printed.err.splitlines() if line.startswith("error: ")]
        assert not Path("run/model").exists()
        assert not Path("run/metrics.jsonl").exists(), "a step was taken"
        return line.removeprefix("error: ")

    return refused


@pytest.fixture
def tune(arguments: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]) -> Tune:
    """Run the command line, which must end well; return the run's folder."""

    def tuned(*given: Any, **options: Any) -> Path:
        assert cli.main(arguments(*given, **options)) == 0, capsys.readouterr().err
        return Path("run")

    return tuned


@pytest.mark.parametrize(
    ("task", "given", "overrides", "message"),
    [
        (
            "classify",
            {"train": GOOD.replace("label", "kind")},
            [],
            r"`train.csv` has no column whose name .*`label`",
        ),
        (
            "classify",
            {"train": GOOD},
            ["data.columns.label=lable"],
            r"`train.csv` has no column `lable`; did you",
        ),
        (
            "classify",
            {"train": GOOD, "validation": "text,label\nx,good\ny,great\n"},
            [],
            r"`validation.csv, line 3`: the label `great` is in no example to learn from",
        ),
        (
            "classify",
            {"train": GOOD.replace("bad", "good")},
            [],
            r"`train.csv, line \d`: this and all .* `good`",
        ),
        (
            "classify",
            {"train": GOOD + 'a,"b\n'},
            [],
            r"`train.csv, line 14` begins a row that cannot be read",
        ),
        (
            "classify",
            {"train": "text,label\n" + "a,good\nb,bad\n" * 2 + "c,good\nd\n"},
            [],
            r"`train.csv, line 7` has 1 fields \(`d`\); the first line names 2",
        ),
        ("classify", {"train": ""}, [], r"`train.csv` is empty; it must hold examples"),
        (
            "classify",
            {"train": b"\x89PNG\r\n\x1a\n\xff\xfe\x00"},
            [],
            r"`train.csv, line 1` is not .*UTF-8|UTF-8",
        ),
        (
            "classify",
            {"train": GOOD, "validation_jsonl": lines({"tokens": ["a"], "tags": ["O"]})},
            [],
            r"`validation.jsonl` has no column whose name tells that it is `text`",
        ),
        (
            "classify",
            {"train": GOOD, "validation": "text,text_pair,label\na,b,good\n"},
            [],
            r"`validation.csv, line 2` has a pair, where `train.csv, line 2` has a single text",
        ),
        (
            "classify",
            {"train": "text,label\na,good\n"},
            [],
            r"of 1 examples a share of 0\.1 cannot be held out",
        ),
        (
            "classify",
            {"train": "text,score\n" + "a,0.5\nb,0.5\n" * 6},
            [],
            r"`train.csv, line \d`: this and all other examples to learn from have the label `0.5`",
        ),
        (
            "classify",
            {"train": "text,score\n" + "a,0.5\nb,high\n" * 6},
            ["head.problem=regression"],
            r"`train.csv, line .`: the label is '0.5'; for regression it must be a number|'high'",
        ),
        (
            "classify",
            {"train": GOOD},
            ["head.class_weights=[1.0, 2.0, 3.0]"],
            r"`head.class_weights` has 3 numbers for 2 labels \(bad, good\)",
        ),
        (
            "tag",
            {"train_jsonl": lines({"text": "Ada", "spans": [{"start": 1, "end": 9, "label": "PER"}]})},
            [],
            r"`train.jsonl, line 1`: the span 1 to 9 \(`PER`\) is not within the text",
        ),
        (
            "tag",
            {"train_jsonl": lines({"tokens": ["Ada", "left"], "tags": ["B-PER"]})},
            [],
            r"`train.jsonl, line 1` has 2 words \(`tokens`\) and 1 tags \(`tags`\)",
        ),
        (
            "tag",
            {"train_conll": "Ada B-PER\nleft\n"},
            [],
            r"`train.conll, line 2` is 'left'; it must be a word",
        ),
        (
            "tag",
            {"train_conll": "Ada O\nleft O\n\n" * 12},
            [],
            r"`train.conll, line \d`: this and all other words",
        ),
        (
            "answer",
            {"train_jsonl": lines({"question": "a", "context": "b", "answers": "c"})},
            [],
            r"`train.jsonl, line 1`: the answer 'c' must stand in its text, and is nowhere",
        ),
        (
            "answer",
            {
                "train_jsonl": lines(*[{"question": "a", "context": "b c", "answers": "c"}] * 8),
                "validation_jsonl": lines({"question": words(100), "context": "b c", "answers": "c"}),
            },
            [],
            r"`validation.jsonl, line 1`: the question of input 0 leaves no room for its context",
        ),
        (
            "choose",
            {"train_jsonl": lines({"question": "a", "choices": ["b", "c"], "label": 2})},
            [],
            r"`train.jsonl, line 1`: the label is 2, and there are 2 choices",
        ),
        (
            "prompt",
            {"train": GOOD},
            ["head.words={good: good morning, bad: again}"],
            r"the word 'good morning' of the label 'good' is \d+ tokens; it must be one",
        ),
        (
            "prompt",
            {"train": GOOD},
            ["head.words={god: a}"],
            r"`head.words` has `god`, no label; did you mean `good`",
        ),
        (
            "prompt",
            {"train": GOOD},
            [
                "head.words={good: today, bad: again}",
                f"head.template='{'Ada likes Rome ' * 30} {{text}} [MASK]'",
            ],
            r"`head.template` is .* tokens; it must leave room for a text in the 64",
        ),
    ],
)
def test_is_refused_with_its_place(
    task: str, given: dict[str, Any], overrides: list[str], message: str, refuse: Refuse
) -> None:
    found = refuse(task, *overrides, **given)
    assert re.search(message, found), found


@pytest.mark.parametrize("name", ["nothing.csv", "folder"])
def test_a_file_that_is_none(name: str, refuse: Refuse, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    assert name in refuse("classify", "--train", name)


def test_a_checkpoint_without_masked_lm_head(labelled: Labelled, refuse: Refuse, tmp_path: Path) -> None:
    model = ModernBertForSequenceClassification(read_config(labelled.model))
    initialise(model, seed=0)
    model.save_pretrained(tmp_path / "bare")
    Tokenizer.from_pretrained(labelled.model).save_pretrained(tmp_path / "bare")
    found = refuse("prompt", "head.words={good: today, bad: again}", model=tmp_path / "bare", train=GOOD)
    assert "decoder.bias" in found
    assert "ModernBertForMaskedLM" in found


@pytest.mark.parametrize(
    ("task", "overrides", "message"),
    [
        (
            "tag",
            ["head.pooling=cls"],
            "`head.pooling` is 'cls'; `tag` has no use for it, only `classify` and `choose`",
        ),
        ("choose", ["head.label_smoothing=0.1"], "`head.label_smoothing` is 0.1; `choose` has no use for it"),
        (
            "prompt",
            ["head.class_weights=balanced"],
            "`head.class_weights` is 'balanced'; `prompt` has no use",
        ),
        (
            "classify",
            ["data.stride=32"],
            "`data.stride` is 32; `classify` has no use for it, only `tag` and `answer`",
        ),
        ("classify", ["data.columns.tags=ner"], "`data.columns.tags` is 'ner'; `classify` has no use for it"),
        ("classify", ["head.words={a: b}"], "`head.words` is {'a': 'b'}; `classify` has no use for it"),
        (
            "classify",
            ["data.held_out=0", "selection.patience=2"],
            "`selection.patience` is 2; it must be null",
        ),
        (
            "classify",
            ["data.held_out=0", "selection.metric=f1"],
            "`selection.metric` is 'f1'; it must be null",
        ),
        (
            "classify",
            ["data.validation=a.csv", "data.held_out=0.3"],
            "`held_out` is 0.3; it must be left out",
        ),
        (
            "classify",
            ["data.validation=a.csv", "data.folds=2", "data.fold=0"],
            "`folds` is 2; it must be null",
        ),
        (
            "classify",
            ["adapter.kind=lora", "tuning.new_layers=1"],
            "`tuning.new_layers` is 1; it must be 0 with an",
        ),
        (
            "classify",
            ["adapter.kind=lora", "tuning.frozen_layers=1"],
            "`tuning.frozen_layers` is 1; it must be 0",
        ),
        (
            "classify",
            ["tuning.frozen_layers=3", "tuning.new_layers=3"],
            "`frozen_layers` and `new_layers` are 6",
        ),
        ("classify", ["head.dropout=1.5"], "`dropout` is 1.5; it must be at least 0 and below 1"),
        (
            "classify",
            ["trials.search={seed: [1, 2]}"],
            "`trials.search` has `seed`, which the trials set themselves",
        ),
    ],
)
def test_a_setting_without_effect_is_refused(
    task: str, overrides: list[str], message: str, refuse: Refuse
) -> None:
    assert message in refuse(task, *overrides, train=GOOD)


@pytest.mark.parametrize(
    ("separator", "overrides", "message"),
    [
        (
            "",
            ["head.class_weights=balanced"],
            "`head.class_weights` is 'balanced'; regression has no use for it",
        ),
        ("|", ["head.label_smoothing=0.1"], "0.1; multi_label_classification has no use for it"),
    ],
)
def test_a_setting_of_another_problem_is_refused(
    separator: str, overrides: list[str], message: str, refuse: Refuse
) -> None:
    rows = "a,0.5\nb,0.25\n" if not separator else "a,x|y\nb,y\n"
    more = [f"data.label_separator='{separator}'"] if separator else []
    assert message in refuse("classify", *more, *overrides, train="text,label\n" + rows * 8)


def check_remarked(folder: Path, *wanted: str, caplog: pytest.LogCaptureFixture) -> None:
    remarks = files.read_json(folder / "report.json")["about"]["remarks"]
    page = (folder / "report.html").read_text(encoding="utf-8")
    for remark in wanted:
        assert remark in remarks
        assert remark in caplog.messages
        assert remark in page


def test_long_and_empty_texts_are_counted(tune: Tune, caplog: pytest.LogCaptureFixture) -> None:
    rows = f"{words(20_000)},good\n,bad\n{words(200)},bad\n"
    folder = tune("classify", "data.held_out=0.25", train=GOOD + rows)
    cuts = "train.csv: 2 × text cut at 64 tokens (first: train.csv, line 14)"
    check_remarked(folder, "train.csv: 1 × empty text (first: train.csv, line 15)", cuts, caplog=caplog)


def test_long_pairs_and_choices_are_counted_once(tune: Tune, caplog: pytest.LogCaptureFixture) -> None:
    row = {"question": "Ada", "choices": ["likes Rome", words(200), words(300)], "label": 0}
    folder = tune("choose", train_jsonl=lines(*[row] * 4), validation_jsonl=lines(row))
    check_remarked(
        folder,
        "train.jsonl: 4 × text cut at 64 tokens (first: train.jsonl, line 1)",
        "validation.jsonl: 1 × text cut at 64 tokens (first: validation.jsonl, line 1)",
        caplog=caplog,
    )


def test_long_prompts_are_counted(tune: Tune, caplog: pytest.LogCaptureFixture) -> None:
    folder = tune(
        "prompt",
        "head.words={good: today, bad: again}",
        train=GOOD,
        validation=GOOD + f"{words(20_000)},bad\n",
    )
    check_remarked(
        folder, "validation.csv: 1 × text cut at 64 tokens (first: validation.csv, line 14)", caplog=caplog
    )


def test_long_documents_are_read_by_windows_and_counted(tune: Tune, caplog: pytest.LogCaptureFixture) -> None:
    sentence = "".join(f"{word} O\n" for word in words(2_000).split())
    folder = tune("tag", train_conll="Ada B-PER\nleft O\n\n" * 8, validation_conll=f"Ada B-PER\n{sentence}\n")
    check_remarked(
        folder,
        "validation.conll: 1 × text of more than 64 tokens, read by windows "
        "(first: validation.conll, line 1)",
        caplog=caplog,
    )


def test_an_answer_that_no_window_holds_is_counted(tune: Tune, caplog: pytest.LogCaptureFixture) -> None:
    row = {"question": "Who", "context": "Ada likes Rome", "answers": "Ada"}
    torn = {"question": "Who", "context": words(200), "answers": words(200)}
    folder = tune("answer", train_jsonl=lines(*[row] * 8, torn), validation_jsonl=lines(row))
    check_remarked(
        folder,
        "train.jsonl: 1 × answer that no window holds whole, learned as none (first: train.jsonl, line 9)",
        caplog=caplog,
    )


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_rows_whose_number_is_missing_are_left_out(
    kind: str, tune: Tune, caplog: pytest.LogCaptureFixture
) -> None:
    scores = [0.5, math.nan, 0.25, 1.0] * 4
    given = {
        "train_csv": "text,score\n" + "".join(f"text {place},{it}\n" for place, it in enumerate(scores)),
        "train_jsonl": lines(*[{"text": f"text {place}", "score": it} for place, it in enumerate(scores)]),
    }
    folder = tune("classify", **{f"train_{kind}": given[f"train_{kind}"]})
    line = 3 if kind == "csv" else 2
    check_remarked(
        folder,
        f"train.{kind}: 4 × row without a label, left out (first: train.{kind}, line {line})",
        caplog=caplog,
    )
    assert files.read_json(folder / "model" / "config.json")["problem_type"] == "regression"


def test_a_rare_label_is_not_held_out(tune: Tune) -> None:
    """Whoever is drawn: all but three rows have a label of their own."""
    rows = "".join(f"text {place},label {place}\n" for place in range(9)) + "Ada,label 0\nAlan,label 1\n"
    folder = tune("classify", "data.held_out=0.9", train="text,label\n" + rows)
    parts = {it["split"]: it["num_examples"] for it in files.read_json(folder / "about.json")["data"]}
    assert parts == {"train": 9, "validation": 2}


def test_one_example_beside_a_validation(tune: Tune) -> None:
    row = {"tokens": ["Ada", "left"], "tags": ["B-PER", "O"]}
    assert (tune("tag", train_jsonl=lines(row), validation_jsonl=lines(row)) / "model").exists()
