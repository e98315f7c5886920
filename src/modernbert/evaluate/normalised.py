"""The data of a benchmark's tasks, from a folder or from the hub, written as fine-tuning reads it.

A row that cannot be used is left out, counted and named; where there are many, the file is refused.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modernbert import files
from modernbert.errors import InputError
from modernbert.evaluate import glue_files
from modernbert.evaluate.glue_files import Broken
from modernbert.evaluate.suites import CONVERTED, DEV, TRAIN, Example, Kind, MissingColumn, Row, SuiteTask

HUB = "hub"
COLUMNS: Mapping[Kind, Mapping[str, str]] = {
    "classify": {"text": "text", "text_pair": "text_pair", "label": "label"},
    "choose": {"prompt": "question", "choices": "choices", "label": "label"},
    "tag": {"tokens": "words", "tags": "tags"},
}
"""What fine-tuning calls the columns of an example."""
MOST_BROKEN = 0.05
"""Share of a split beyond which it is not a few bad rows, but another file."""

Located = Iterator[tuple[str, Row | Broken]]


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A task's data, ready to be fine-tuned on.

    Attributes:
        source: Where it came from.
        files: A file a split, of one example a line.
        counts: Examples of each.
        columns: Which column of theirs is what, as fine-tuning calls them.
        digest: Of all files' content.
        notes: Rows that were left out.
    """

    task: SuiteTask
    source: str
    files: Mapping[str, Path]
    counts: Mapping[str, int]
    columns: Mapping[str, str]
    digest: str
    notes: tuple[str, ...] = ()


def missing(data: str, task: SuiteTask) -> str | None:
    """Say what a source lacks for a task; None if nothing. What the hub lacks shows when it is asked.

    Raises:
        InputError: The folder is missing, or it is not clear which files are meant.
    """
    if data == HUB:
        return None
    root = Path(data)
    if not root.is_dir():
        raise InputError(
            f"`{data}` is no folder; it must be one with a folder a task, or `{HUB}`; check the path"
        )
    found = glue_files.find_task(root, task)
    if found is None:
        return f"`{root}` has no folder for it"
    lacking = [split for split in needed(task) if split not in found.files]
    return f"`{found.folder}` has no file for its {lacking[0]} split" if lacking else None


def needed(task: SuiteTask) -> tuple[str, ...]:
    """Return the splits without which there is no score; others are tested on where they are there."""
    return tuple(dict.fromkeys((TRAIN, DEV, task.scored_on)))


def prepare(data: str, task: SuiteTask, folder: Path, *, limit: int | None = None) -> Prepared:
    """Write each split of a task to `folder`, as `SPLIT.jsonl`.

    Args:
        data: A folder in which `missing` misses nothing, or `hub`.
        task: Whose data.
        folder: Where to.
        limit: So many rows of each split, the first; None: all.

    Raises:
        InputError: A file or the hub cannot be read, lacks a column, or has too many rows of no use.
        StorageError: The disk is full or not writable.
    """
    source, splits = _open(data, task)
    paths, counts, notes, columns = {}, {}, [], {}
    for split, rows in splits.items():
        examples, broken = _examples(task, split, itertools.islice(rows, limit))
        paths[split] = folder / f"{split}.jsonl"
        counts[split] = len(examples)
        columns = {name: key for key, name in COLUMNS[task.kind].items() if key in examples[0]}
        lines = (json.dumps(example, ensure_ascii=False) + "\n" for example in examples)
        files.write_text(paths[split], "".join(lines))
        if broken:
            notes.append(_told(task, split, broken, len(examples)))
    digest = " ".join(files.sha256(path)[:16] for path in paths.values())
    return Prepared(
        task=task,
        source=source,
        files=paths,
        counts=counts,
        columns=columns,
        digest=digest,
        notes=tuple(notes),
    )


def read_examples(path: Path) -> list[Example]:
    """Read what `prepare` wrote."""
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def _open(data: str, task: SuiteTask) -> tuple[str, dict[str, Located]]:
    """Return the name of a task's source, and its splits."""
    if data == HUB:
        name, subset, _ = task.hub
        loaded = {split: _hub_rows(task, split) for split in task.splits}
        return f"{name} {subset or ''}".strip(), loaded
    found = glue_files.find_task(Path(data), task)
    if found is None:
        raise InputError(f"`{data}` has no folder for {task.title}; give one that has")
    return str(found.folder), {split: glue_files.read_split(found, task, split) for split in found.files}


def _examples(task: SuiteTask, split: str, rows: Located) -> tuple[list[Example], list[str]]:
    """Make the examples of rows, and say of each row that is of no use why."""
    examples: list[Example] = []
    broken = []
    for place, row in rows:
        try:
            if isinstance(row, Broken):
                raise InputError(row.reason)
            made = [*task.examples(row)]
        except MissingColumn as error:
            raise InputError(f"`{place}`: {error}; these must be the files of {task.title}") from None
        except InputError as error:
            broken.append(f"`{place}`: {error}")
        else:
            examples += made
    if not examples or len(broken) > MOST_BROKEN * (len(examples) + len(broken)):
        first = f"; the first: {broken[0]}" if broken else ""
        raise InputError(
            f"{task.title}, {split}: {len(broken):,} rows cannot be used and {len(examples):,} can{first}; "
            "mend the file"
        )
    return examples, broken


def _told(task: SuiteTask, split: str, broken: Sequence[str], kept: int) -> str:
    named = "; ".join(broken[:3]) + ("; …" if len(broken) > 3 else "")
    return f"{task.title}, {split}: {len(broken):,} of {len(broken) + kept:,} rows left out: {named}"


def _hub_rows(task: SuiteTask, split: str) -> Located:
    name, subset, _ = task.hub
    place = " ".join(filter(None, (name, subset, task.hub_splits[split])))
    for number, row in enumerate(_load(place, task, task.hub_splits[split]), start=1):
        yield f"{place}:{number}", row


def _load(place: str, task: SuiteTask, split: str) -> Any:
    """Return the rows of a split on the hub, whose name in messages is `place`."""
    name, subset, revision = task.hub
    try:
        import datasets
    except ModuleNotFoundError:
        raise InputError(
            f"`{place}` needs `datasets` to be read, which is not installed; run `pip install "
            "'modernbert[hub]'`, or give a folder"
        ) from None
    try:
        if revision == CONVERTED:  # a folder a subset, in it a folder a split
            parts = {split: f"{subset}/{split}/*.parquet"}
            return datasets.load_dataset(name, data_files=parts, revision=revision, split=split)
        return datasets.load_dataset(name, subset, revision=revision, split=split)
    except (OSError, ValueError, RuntimeError) as error:
        told = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"`{place}` could not be read from the hub ({told}); check the connection, or give a folder"
        ) from error
