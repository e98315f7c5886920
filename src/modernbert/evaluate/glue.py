"""The GLUE protocol of the paper (App. E.1): nine tasks, their published grids and best values."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from modernbert.evaluate.suites import (
    DEV,
    TRAIN,
    Example,
    Row,
    Suite,
    SuiteTask,
    Values,
    label_of,
    number_of,
    text_of,
)

MNLI = "mnli"
MISMATCHED = "mismatched"
HUB = "nyu-mll/glue"

_SPLITS = {TRAIN: ("train",), DEV: ("dev", "validation", "valid", "val")}
_HUB_SPLITS = {TRAIN: "train", DEV: "validation"}
_FEW, _MANY = (1.0, 2.0, 3.0), (2.0, 5.0, 10.0)


def _classified(
    labels: tuple[str, ...], *texts: tuple[str, ...], label: tuple[str, ...] = ("label",)
) -> Callable[[Row], Iterator[Example]]:
    """Make examples of one or two texts, each under one of these columns, and a label."""

    def examples(row: Row) -> Iterator[Example]:
        found = {key: text_of(row, *columns) for key, columns in zip(("text", "text_pair"), texts)}
        yield {**found, "label": label_of(row, labels, *label)}

    return examples


def _similarity(row: Row) -> Iterator[Example]:
    yield {
        "text": text_of(row, "sentence1", "text"),
        "text_pair": text_of(row, "sentence2", "text_pair"),
        "label": number_of(row, "score", "label", "similarity"),
    }


_PAIR = (("sentence1", "text"), ("sentence2", "text_pair"))
_COLA = ("unacceptable", "acceptable")
_SST2 = ("negative", "positive")
_MRPC = ("not_equivalent", "equivalent")
_QQP = ("not_duplicate", "duplicate")
_MNLI = ("entailment", "neutral", "contradiction")
_ENTAILS = ("entailment", "not_entailment")
_WNLI = ("not_entailment", "entailment")


def _task(name: str, title: str, *best: tuple[float, float, float], **rest: object) -> SuiteTask:
    """Make a task; `best` are learning rate, weight decay and epochs that suit base, and large."""
    base, large = (
        Values(learning_rate=rate, weight_decay=decay, epochs=epochs) for rate, decay, epochs in best
    )
    usual = {"splits": _SPLITS, "metrics": ("accuracy",), "hub_splits": _HUB_SPLITS}
    return SuiteTask(
        name=name,
        title=title,
        kind="classify",
        values={"base": base, "large": large},
        hub=(HUB, name, None),
        **{**usual, **rest},  # type: ignore[arg-type]
    )


_TASKS = (
    _task(
        "cola",
        "CoLA",
        (8e-5, 1e-6, 5),
        (3e-5, 8e-6, 5),
        epoch_grid=_MANY,
        examples=_classified(_COLA, ("sentence", "text")),
        labels=_COLA,
        header=("source", "label", "star", "sentence"),
        metrics=("matthews", "accuracy"),
        selected_by="mcc",
    ),
    _task(
        "sst2",
        "SST-2",
        (8e-5, 1e-5, 2),
        (1e-5, 1e-6, 3),
        epoch_grid=_FEW,
        examples=_classified(_SST2, ("sentence", "text")),
        labels=_SST2,
    ),
    _task(
        "mrpc",
        "MRPC",
        (5e-5, 5e-6, 10),
        (8e-5, 5e-6, 2),
        epoch_grid=_MANY,
        splits={TRAIN: ("train", "msr_paraphrase_train"), DEV: _SPLITS[DEV]},
        examples=_classified(
            _MRPC,
            ("#1 String", "sentence1", "text"),
            ("#2 String", "sentence2", "text_pair"),
            label=("Quality", "label"),
        ),
        labels=_MRPC,
        metrics=("accuracy", "f1"),
        from_mnli=True,
    ),
    _task(
        "stsb",
        "STS-B",
        (8e-5, 5e-6, 10),
        (8e-5, 1e-5, 10),
        epoch_grid=_MANY,
        examples=_similarity,
        metrics=("spearman", "pearson"),
        selected_by="spearman",
        from_mnli=True,
    ),
    _task(
        "qqp",
        "QQP",
        (5e-5, 5e-6, 10),
        (5e-5, 8e-6, 2),
        epoch_grid=_MANY,
        examples=_classified(
            _QQP, ("question1", "text"), ("question2", "text_pair"), label=("is_duplicate", "label")
        ),
        labels=_QQP,
        metrics=("accuracy", "f1"),
    ),
    _task(
        MNLI,
        "MNLI",
        (5e-5, 5e-6, 1),
        (3e-5, 1e-5, 1),
        epoch_grid=_FEW,
        splits={
            TRAIN: ("train",),
            DEV: ("dev_matched", "validation_matched", *_SPLITS[DEV]),
            MISMATCHED: ("dev_mismatched", "validation_mismatched"),
        },
        hub_splits={TRAIN: "train", DEV: "validation_matched", MISMATCHED: "validation_mismatched"},
        examples=_classified(
            _MNLI,
            ("sentence1", "premise", "text"),
            ("sentence2", "hypothesis", "text_pair"),
            label=("gold_label", "label"),
        ),
        labels=_MNLI,
    ),
    _task(
        "qnli",
        "QNLI",
        (8e-5, 5e-6, 2),
        (3e-5, 5e-6, 2),
        epoch_grid=_MANY,
        examples=_classified(_ENTAILS, ("question", "text"), ("sentence", "text_pair")),
        labels=_ENTAILS,
    ),
    _task(
        "rte",
        "RTE",
        (5e-5, 1e-5, 3),
        (5e-5, 8e-6, 3),
        epoch_grid=_FEW,
        examples=_classified(_ENTAILS, *_PAIR),
        labels=_ENTAILS,
        from_mnli=True,
    ),
    _task(  # not one of the eight of the paper; it has RTE's values
        "wnli",
        "WNLI",
        (5e-5, 1e-5, 3),
        (5e-5, 8e-6, 3),
        epoch_grid=_FEW,
        examples=_classified(_WNLI, *_PAIR),
        labels=_WNLI,
        in_mean=False,
    ),
)

TASKS: Mapping[str, SuiteTask] = {task.name: task for task in _TASKS}

GLUE = Suite(
    name="glue",
    title="GLUE",
    tasks=TASKS,
    default=tuple(task.name for task in _TASKS if task.in_mean),
    batch_size=64,
    max_length=256,
    note="values: the best ones of the paper's sweep (App. E.1, Table 6); scores on the dev sets",
)
