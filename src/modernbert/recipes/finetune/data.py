"""The examples of a run: files to records, and what is held out of them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence, Set
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from modernbert import hub
from modernbert.data.counter_random import key_of, permute
from modernbert.data.records import Records, Remarks
from modernbert.data.tokenizer import Tokenizer
from modernbert.errors import ConfigError, InputError
from modernbert.infer.texts import Texts
from modernbert.model.checkpoint import CONFIG, read_config
from modernbert.recipes.finetune.settings import FinetuneRun, LabelledData
from modernbert.recipes.finetune.task import TEST, TRAIN, VALIDATION, TuningTask

log = logging.getLogger(__name__)

Record = TypeVar("Record")


def read_splits(run: FinetuneRun, kind: type[TuningTask[Any]]) -> dict[str, Records[Any]]:
    """Read all files of a run.

    Raises:
        InputError: A file is missing or damaged, or holds too little.
    """
    splits: dict[str, Records[Any]] = {}
    for split, name in ((TRAIN, run.data.train), (VALIDATION, run.data.validation), (TEST, run.data.test)):
        if name is not None:
            splits[split] = kind.read(Path(name), run.data)
            log.info("%s: %d examples; %s", name, len(splits[split].records), splits[split].columns.summary())
    if VALIDATION not in splits and run.data.has_validation:
        whole = splits[TRAIN]
        train, validation = held_out(whole.records, run.data, kind.names(run, whole.records))
        splits[VALIDATION] = replace(whole, records=validation, remarks=Remarks())
        splits[TRAIN] = replace(whole, records=train)
    return splits


def log_remarks(splits: Mapping[str, Records[Any]]) -> None:
    """Say what should be known of the examples."""
    for split in splits.values():
        for remark in split.remarks:
            log.warning("%s: %s", split.path, remark.summary())


def open_texts(run: FinetuneRun, words: Tokenizer) -> Texts:
    """Return the door for text, as wide as the model and the run let it be.

    Raises:
        ConfigError: `max_length` is more than the model takes.
    """
    folder = hub.find(run.model, patterns=(CONFIG,), revision=run.revision)
    most, wanted = read_config(folder).max_position_embeddings, run.data.max_length
    if wanted is not None and wanted > most:
        raise ConfigError(f"`data.max_length` is {wanted}; it must be at most {most}, which the model takes")
    return Texts(words, wanted or most)


def held_out(
    records: Sequence[Record], data: LabelledData, names: Sequence[Set[str]] = ()
) -> tuple[list[Record], list[Record]]:
    """Split records at random, the order kept: what is learned from, and what is held out of it.

    The same settings hold out the same records, whatever the seed of the run.

    Args:
        records: To split.
        data: What share, or which part, is held out.
        names: The labels of each record, if they have any. None is held out whose label would not be learned.

    Raises:
        InputError: There is nothing left of one of them.
    """
    count = len(records)
    if data.folds is None or data.fold is None:
        begin, end, part = 0, round(data.held_out * count), f"a share of {data.held_out}"
    else:
        begin, end = (place * count // data.folds for place in (data.fold, data.fold + 1))
        part = f"one of {data.folds} parts"
    drawn = permute(np.arange(begin, end), count, key_of("held out")).tolist() if begin < end else []
    chosen = _without_rare(drawn, names) if names else set(drawn)
    if not 0 < len(chosen) < count:
        raise InputError(
            f"of {count} examples {part} cannot be held out: that leaves {count - len(chosen)} to learn from "
            f"and {len(chosen)} to look at, and both must be at least 1; give more examples, or name a file "
            "as `data.validation`"
        )
    return (
        [record for index, record in enumerate(records) if index not in chosen],
        [record for index, record in enumerate(records) if index in chosen],
    )


def _without_rare(drawn: Sequence[int], names: Sequence[Set[str]]) -> set[int]:
    """Return the drawn records but for those with a label that no other would teach."""
    chosen = set(drawn)
    known = {name for index, own in enumerate(names) if index not in chosen for name in own}
    for index in sorted(chosen):
        if not names[index] <= known:
            chosen.remove(index)
            known |= names[index]
    return chosen
