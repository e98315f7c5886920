"""Five tasks of SuperGLUE, read as in its own files or as on the hub. The paper gives no values for them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping

from modernbert.errors import InputError
from modernbert.evaluate.suites import (
    CONVERTED,
    DEV,
    TRAIN,
    Example,
    Row,
    Suite,
    SuiteTask,
    label_of,
    one_value,
    text_of,
)

HUB = "aps/super_glue"
QUESTIONS = {"cause": "What was the cause?", "effect": "What happened as a result?"}

_SPLITS = {TRAIN: ("train",), DEV: ("val", "validation", "valid", "dev")}
_HUB_SPLITS = {TRAIN: "train", DEV: "validation"}
_CB = ("entailment", "contradiction", "neutral")
_FALSE_TRUE = ("false", "true")


def _boolq(row: Row) -> Iterator[Example]:
    yield {
        "text": text_of(row, "question"),
        "text_pair": text_of(row, "passage"),
        "label": label_of(row, _FALSE_TRUE),
    }


def _cb(row: Row) -> Iterator[Example]:
    yield {
        "text": text_of(row, "premise"),
        "text_pair": text_of(row, "hypothesis"),
        "label": label_of(row, _CB),
    }


def _copa(row: Row) -> Iterator[Example]:
    asked = text_of(row, "question")
    if asked not in QUESTIONS:
        raise InputError(f"`question` is {asked!r}; it must be one of {', '.join(QUESTIONS)}")
    yield {
        "prompt": f"{text_of(row, 'premise')} {QUESTIONS[asked]}",
        "choices": [text_of(row, "choice1"), text_of(row, "choice2")],
        "label": int(label_of(row, ("0", "1"))),
    }


def _multirc(row: Row) -> Iterator[Example]:
    """Make an example an answer: of a whole passage, as in the original files, or of a row of the hub."""
    if "passage" not in row:
        place = row.get("idx")
        question = text_of(row, "question")
        group = [place["paragraph"], place["question"]] if isinstance(place, Mapping) else question
        yield _answer(text_of(row, "paragraph"), question, text_of(row, "answer"), row, group)
        return
    passage = row["passage"]
    if not isinstance(passage, Mapping) or not isinstance(passage.get("questions"), list):
        raise InputError("`passage` must be an object with `text` and `questions`")
    for question in passage["questions"]:
        asked = text_of(question, "question")
        for answer in question.get("answers", ()):
            group = [row.get("idx"), question.get("idx", asked)]
            yield _answer(text_of(passage, "text"), asked, text_of(answer, "text"), answer, group)


def _answer(paragraph: str, question: str, answer: str, labelled: Row, group: object) -> Example:
    return {
        "text": f"{question} {answer}",
        "text_pair": " ".join(re.sub(r"<[^>]*>", " ", paragraph).split()),  # `<b>Sent 1: </b>`, `<br>`
        "label": label_of(labelled, _FALSE_TRUE),
        "group": json.dumps(group),
    }


def _wic(row: Row) -> Iterator[Example]:
    word = text_of(row, "word")
    yield {
        "text": f"{word}: {text_of(row, 'sentence1')}",
        "text_pair": text_of(row, "sentence2"),
        "label": label_of(row, _FALSE_TRUE),
    }


def _task(name: str, title: str, epochs: float, **rest: object) -> SuiteTask:
    return SuiteTask(
        name=name,
        title=title,
        splits=_SPLITS,
        values=one_value(3e-5, 5e-6, epochs),
        epoch_grid=(2.0, 5.0, 10.0),
        hub=(HUB, name, CONVERTED),
        hub_splits=_HUB_SPLITS,
        **{"kind": "classify", **rest},  # type: ignore[arg-type]
    )


_TASKS = (
    _task("boolq", "BoolQ", 5, examples=_boolq, labels=_FALSE_TRUE, metrics=("accuracy",)),
    _task("cb", "CB", 20, examples=_cb, labels=_CB, metrics=("accuracy", "macro_f1")),
    _task("copa", "COPA", 10, kind="choose", examples=_copa, metrics=("accuracy",)),
    _task("multirc", "MultiRC", 3, examples=_multirc, labels=_FALSE_TRUE, metrics=("f1a", "exact_match")),
    _task("wic", "WiC", 5, examples=_wic, labels=_FALSE_TRUE, metrics=("accuracy",)),
)

TASKS: Mapping[str, SuiteTask] = {task.name: task for task in _TASKS}

SUPERGLUE = Suite(
    name="superglue",
    title="SuperGLUE",
    tasks=TASKS,
    default=tuple(TASKS),
    batch_size=32,
    note="values: this package's own, as none are published; scores on the dev sets",
)
