"""Which entities the tags of words name, and how many were found: counts, from which every figure follows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from modernbert.errors import BackendError, InputError

Entity = tuple[str, int, int]
"""Its type, and its first and last word."""

EXACT_SCHEMES = {"S": "IOBES", "E": "IOBES", "U": "BILOU", "L": "BILOU"}
PREFIXES = frozenset("BIESUL")


class Counts(NamedTuple):
    """What each sequence holds of each type.

    Attributes:
        types: Names of the types, in order.
        counts: int64 `[n, types, 3]`: entities that are right, that were predicted, that there are.
    """

    types: tuple[str, ...]
    counts: NDArray[np.int64]


def count_entities(gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> Counts:
    """Count the entities of each sequence by type.

    The rules are seqeval's: with BIO those of the CoNLL script (an `I-` without its `B-` begins an entity);
    where a gold tag begins with `S-`, `E-`, `U-` or `L-`, strict BIOES or BILOU. If no tag has a prefix
    (parts of speech), each word that is not `O` counts as an entity of its own.

    Args:
        gold: A tag for each word of each sequence.
        predicted: As many tags, of sequences as long.

    Raises:
        InputError: The two are not of equal lengths.
        BackendError: seqeval is not installed.
    """
    check_lengths(gold, predicted)
    scheme = _scheme(gold)
    found = [
        (set(_entities(tags, scheme)), set(_entities(guess, scheme))) for tags, guess in zip(gold, predicted)
    ]
    types = sorted({kind for pair in found for entities in pair for kind, _, _ in entities})
    place = {kind: index for index, kind in enumerate(types)}
    counts = np.zeros((len(found), len(types), 3), dtype=np.int64)
    for row, (true, guessed) in zip(counts, found):
        for column, entities in enumerate((true & guessed, guessed, true)):
            for kind, _, _ in entities:
                row[place[kind], column] += 1
    return Counts(tuple(types), counts)


def check_lengths(gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> None:
    """Make sure that each word has its two tags.

    Raises:
        InputError: It has not.
    """
    if len(gold) != len(predicted):
        raise InputError(
            f"there are {len(predicted)} predicted sequences for {len(gold)}; there must be one for each"
        )
    for index, (tags, guess) in enumerate(zip(gold, predicted)):
        if len(tags) != len(guess):
            raise InputError(
                f"sequence {index} has {len(guess)} predicted tags for {len(tags)} words; each word must "
                "have one; give the words beyond the model's reach `O`"
            )


def type_of(tag: str) -> str:
    """Return what a tag says of its word whatever its place in the entity: `B-PER` is `PER`."""
    prefix, dash, kind = tag.partition("-")
    return kind if dash and prefix in PREFIXES else tag


def _scheme(gold: Sequence[Sequence[str]]) -> str:
    prefixes = {tag[0] for tags in gold for tag in tags if type_of(tag) != tag}
    exact = {EXACT_SCHEMES[prefix] for prefix in prefixes if prefix in EXACT_SCHEMES}
    if exact:
        return "IOBES" if "IOBES" in exact else "BILOU"
    return "BIO" if prefixes or all(tag == "O" for tags in gold for tag in tags) else "words"


def _entities(tags: Sequence[str], scheme: str) -> list[Entity]:
    if scheme == "words":
        return [(tag, index, index) for index, tag in enumerate(tags) if tag != "O"]
    sequence_labeling, schemes = _seqeval()
    known = [tag if type_of(tag) != tag else "O" for tag in tags]
    if scheme == "BIO":
        return list(sequence_labeling.get_entities(known))
    allowed = "SEBI" if scheme == "IOBES" else "ULBI"
    known = [tag if tag[0] in allowed else "O" for tag in known]
    (entities,) = schemes.Entities([known], getattr(schemes, scheme)).entities
    return [(entity.tag, entity.start, entity.end - 1) for entity in entities]


def _seqeval() -> tuple[Any, Any]:
    try:
        from seqeval import scheme
        from seqeval.metrics import sequence_labeling
    except ImportError:
        raise BackendError(
            "figures of tagging need seqeval, which is not installed; run "
            "`pip install 'modernbert[finetune]'`"
        ) from None
    return sequence_labeling, scheme
