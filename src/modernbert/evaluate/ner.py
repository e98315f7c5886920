"""Named entities: CoNLL-2003, WNUT-17 and WikiANN (English), by entity F1 on the test sets."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from modernbert.errors import InputError
from modernbert.evaluate.suites import CONVERTED, DEV, TRAIN, Example, Row, Suite, SuiteTask, one_value

TEST = "test"

_HUB_SPLITS = {TRAIN: "train", DEV: "validation", TEST: "test"}


def _tags(*kinds: str) -> tuple[str, ...]:
    return ("O", *(f"{mark}-{kind}" for kind in kinds for mark in "BI"))


def _tagged(labels: Sequence[str]) -> Callable[[Row], Iterator[Example]]:
    """Make examples of rows with `tokens` and `tags` (or `ner_tags`, numbers on the hub)."""

    def examples(row: Row) -> Iterator[Example]:
        words, tags = row.get("tokens"), row.get("tags", row.get("ner_tags"))
        if not isinstance(words, list) or not isinstance(tags, list) or len(words) != len(tags):
            raise InputError("`tokens` and `tags` must be two lists of one length")
        if not words:
            raise InputError("`tokens` is empty")
        names = [labels[tag] if isinstance(tag, int) and 0 <= tag < len(labels) else tag for tag in tags]
        if wrong := [tag for tag in names if not isinstance(tag, str)]:
            raise InputError(f"`tags` has {wrong[0]!r}; it must hold names such as B-PER")
        yield {"tokens": [str(word) for word in words], "tags": names}

    return examples


def _task(
    name: str,
    title: str,
    kinds: tuple[str, ...],
    epochs: float,
    hub: tuple[str, str | None, str | None],
    aliases: tuple[str, ...],
    prefix: tuple[str, str, str],
) -> SuiteTask:
    labels = _tags(*kinds)
    train, dev, test = prefix
    return SuiteTask(
        name=name,
        title=title,
        kind="tag",
        splits={
            TRAIN: ("train", train),
            DEV: ("dev", "valid", "validation", "val", dev),
            TEST: ("test", test),
        },
        examples=_tagged(labels),
        labels=labels,
        metrics=("f1", "precision", "recall"),
        values=one_value(5e-5, 1e-5, epochs),
        epoch_grid=(2.0, 5.0, 10.0),
        hub=hub,
        hub_splits=_HUB_SPLITS,
        scored_on=TEST,
        aliases=aliases,
    )


_TASKS = (
    _task(
        "conll2003",
        "CoNLL-2003",
        ("PER", "ORG", "LOC", "MISC"),
        5,
        ("eriktks/conll2003", "conll2003", CONVERTED),
        ("conll03", "conll"),
        ("eng.train", "eng.testa", "eng.testb"),
    ),
    _task(
        "wnut17",
        "WNUT-17",
        ("corporation", "creative-work", "group", "location", "person", "product"),
        5,
        ("leondz/wnut_17", "wnut_17", CONVERTED),
        ("wnut2017", "wnut"),
        ("wnut17train", "emerging.dev", "emerging.test"),
    ),
    _task(
        "wikiann",
        "WikiANN (en)",
        ("PER", "ORG", "LOC"),
        3,
        ("unimelb-nlp/wikiann", "en", None),
        ("wikiannen", "panx", "panxen"),
        ("en-train", "en-dev", "en-test"),
    ),
)

TASKS: Mapping[str, SuiteTask] = {task.name: task for task in _TASKS}

NER = Suite(
    name="ner",
    title="NER",
    tasks=TASKS,
    default=tuple(TASKS),
    batch_size=32,
    note="values: this package's own, as none are published; entity F1 (seqeval) on the test sets",
)
