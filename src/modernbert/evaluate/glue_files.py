"""Files of benchmarks, in the layouts in which they are handed round, as rows by column.

GLUE's own files are separated by tabs and quote nothing: a quotation mark is text, balanced or not. Some of
their lines are broken; such a one is told, never passed over.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modernbert.data.table_rows import lines_of, read_table, read_whole
from modernbert.data.tag_records import CONLL_SUFFIXES, read_conll
from modernbert.errors import InputError
from modernbert.evaluate.suites import DEV, TRAIN, Row, SuiteTask

DEV_IDS = "dev_ids.tsv"
"""Of MRPC: the pairs of ids that are held out of its training file, where there is no file for them."""

_IDS = ("#1 ID", "#2 ID")
_TABLES = (".csv", ".jsonl", ".parquet")
_SUFFIXES = (*_TABLES, ".tsv", *CONLL_SUFFIXES)
_COMPRESSED = (".gz", ".zst")
_SHARD = r"(-\d{5}-of-\d{5})?"


@dataclass(frozen=True, kw_only=True)
class Found:
    """Where the splits of a task are.

    Attributes:
        folder: The task's.
        files: Of each split that is there.
        dev_ids: The file that says which of the training rows are the dev split; None: there is none.
    """

    folder: Path
    files: Mapping[str, tuple[Path, ...]]
    dev_ids: Path | None = None


@dataclass(frozen=True)
class Broken:
    """A row that cannot be used."""

    reason: str


def find_task(root: Path, task: SuiteTask) -> Found | None:
    """Find the files of a task below a folder; None if it has none.

    The task's folder has its name, whatever its case and its hyphens, with `glue_` or `superglue_` before
    it or not; or it begins with that name, as `mnli_7k` does.

    Raises:
        InputError: Several folders, or several files of one split, and nothing says which is meant.
    """
    folder = _task_folder(root, task)
    if folder is None:
        return None
    files = {split: found for split, names in task.splits.items() if (found := _split_files(folder, names))}
    ids = folder / DEV_IDS
    if TRAIN in files and DEV not in files and ids.is_file():
        return Found(folder=folder, files={**files, DEV: files[TRAIN]}, dev_ids=ids)
    return Found(folder=folder, files=files)


def read_split(found: Found, task: SuiteTask, split: str) -> Iterator[tuple[str, Row | Broken]]:
    """Yield each row of a split, with its place.

    Raises:
        InputError: A file cannot be read.
    """
    held_out = None if found.dev_ids is None else _read_ids(found.dev_ids)
    for path in found.files[split]:
        for place, row in _read(path, task):
            if held_out is not None and not isinstance(row, Broken):
                pair = tuple(str(row.get(column)) for column in _IDS)
                if (pair in held_out) != (split == DEV):
                    continue
            yield place, row


def _read(path: Path, task: SuiteTask) -> Iterator[tuple[str, Row | Broken]]:
    if _suffix(path) in _TABLES:
        return ((row.place, row.values) for row in read_table(path).rows)
    if task.kind == "tag":
        return (
            (sentence.place, {"tokens": sentence.text.split(" "), "tags": list(sentence.tags)})
            for sentence in read_conll(path)
        )
    return _tab_rows(path, task.header)


def _tab_rows(path: Path, header: tuple[str, ...] | None) -> Iterator[tuple[str, Row | Broken]]:
    """Read a file separated by tabs; a header is taken for one though the task's files have none."""
    columns = header
    for number, line in _lines(path):
        cells = line.split("\t")
        if number == 1 and (header is None or {"sentence", "label"} <= {*cells}):
            columns = tuple(cells)
        elif columns is None or len(cells) != len(columns):
            yield f"{path}, line {number}", Broken(f"it has {len(cells)} columns, not {len(columns or ())}")
        else:
            yield f"{path}, line {number}", dict(zip(columns, cells))


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield each line that is not blank, and its number from 1."""
    for number, line in enumerate(lines_of(read_whole(path)), 1):
        if line.strip():
            yield number, line.rstrip("\r\n")


def _read_ids(path: Path) -> set[tuple[Any, ...]]:
    return {tuple(line.split("\t")) for _, line in _lines(path)}


def _task_folder(root: Path, task: SuiteTask) -> Path | None:
    names = {_squashed(name) for name in (task.name, task.title, *task.aliases)}
    folders = {child: _without_prefix(child.name) for child in sorted(root.iterdir()) if child.is_dir()}
    exact = [child for child, name in folders.items() if _squashed(name) in names]
    longer = [child for child, name in folders.items() if re.match(rf"{task.name}[-_.]", name)]
    found = exact or longer
    if len(found) > 1:
        listed = ", ".join(f"`{child.name}`" for child in found)
        raise InputError(f"`{root}` has {listed} for {task.title}; it must have one; move the others away")
    return found[0] if found else None


def _split_files(folder: Path, names: tuple[str, ...]) -> tuple[Path, ...]:
    """Return the files of the first of these names that has any: one, or shards of one kind."""
    files = [path for path in sorted(folder.iterdir()) if path.is_file() and not path.name.startswith(".")]
    for name in names:
        found = [path for path in files if re.fullmatch(re.escape(name) + _SHARD, _stem(path))]
        if len(found) > 1 and any(_stem(path) == name for path in found):
            listed = ", ".join(f"`{path.name}`" for path in found)
            raise InputError(f"`{folder}` has {listed} for one split; it must have one; move the others away")
        if found:
            return tuple(found)
    return ()


def _suffix(path: Path) -> str:
    name = path.name.lower()
    for compressed in _COMPRESSED:
        name = name.removesuffix(compressed)
    return next((suffix for suffix in _SUFFIXES if name.endswith(suffix)), "")


def _stem(path: Path) -> str:
    name = path.name.lower()
    for compressed in _COMPRESSED:
        name = name.removesuffix(compressed)
    return name.removesuffix(_suffix(path))


def _squashed(name: str) -> str:
    """`STS-B` and `sts_b` are `stsb`."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _without_prefix(name: str) -> str:
    return re.sub(r"^(super)?glue[-_.]", "", name.lower())
