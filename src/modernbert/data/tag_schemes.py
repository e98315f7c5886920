"""How tags mark entities: BIO, IOB1, BIOES and its kin, all read as BIO, broken ones as by seqeval."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

# `plain`: the tags mark no entities, but say something of each word, as parts of speech do.
Scheme = Literal["BIO", "IOB1", "BIOES", "BILOU", "BMES", "plain"]

OUTSIDE = "O"

_BEGINS = frozenset("BSU")
_ENDS = frozenset("ELSU")
_PREFIXES = frozenset("BIELMSU")


class _Mark(NamedTuple):
    """A tag of an entity: its prefix and kind; nothing outside of entities."""

    prefix: str = ""
    kind: str = ""


def find_scheme(sentences: Iterable[Sequence[str]]) -> Scheme:
    """Return how the tags of a file mark entities.

    Where only `B-` and `I-` are there, it is IOB1 if every entity begins with `I-`, but for those that follow
    right after one of the same kind; else BIO.
    """
    prefixes: set[str] = set()
    has_kind_alone = begins_with_b = begins_with_i = False
    for tags in sentences:
        last = _Mark()
        for tag in tags:
            mark = _mark(tag)
            has_kind_alone = has_kind_alone or (not mark.prefix and tag != OUTSIDE)
            if mark.kind != last.kind and mark.prefix:
                begins_with_b = begins_with_b or mark.prefix == "B"
                begins_with_i = begins_with_i or mark.prefix == "I"
            prefixes.add(mark.prefix)
            last = mark
    if has_kind_alone:
        return "plain"
    if "M" in prefixes:
        return "BMES"
    if prefixes & {"L", "U"}:
        return "BILOU"
    if prefixes & {"E", "S"}:
        return "BIOES"
    return "IOB1" if begins_with_i and not begins_with_b else "BIO"


def to_bio(tags: Sequence[str], scheme: Scheme) -> tuple[tuple[str, ...], int]:
    """Return tags in BIO, and how many had to be mended: entities that begin with what cannot begin one.

    As seqeval reads them, such a tag begins an entity. Plain tags stay as they are.
    """
    if scheme == "plain":
        return tuple(tags), 0
    written: list[str] = []
    num_mended = 0
    last = _Mark()
    for tag in tags:
        mark = _mark(tag)
        begins = mark.prefix in _BEGINS or mark.kind != last.kind or last.prefix in _ENDS
        if mark.prefix:
            written.append(f"{'B' if begins else 'I'}-{mark.kind}")
            num_mended += begins and mark.prefix not in _BEGINS and scheme != "IOB1"
        else:
            written.append(OUTSIDE)
        last = mark
    return tuple(written), num_mended


def tag_names(sentences: Iterable[Sequence[str]]) -> list[str]:
    """Return the names of all tags in an order that the files' order does not change.

    Of BIO: `O`, then `B-` and `I-` of each kind, sorted, also those that are not there. Others sorted, ids
    `LABEL_0`, `LABEL_1` … by number.
    """
    names = {tag for tags in sentences for tag in tags}
    if any(not _mark(name).prefix and name != OUTSIDE for name in names):
        return sorted(names, key=_by_number)
    kinds = sorted({mark.kind for mark in map(_mark, names) if mark.prefix})
    return [OUTSIDE, *(f"{prefix}-{kind}" for kind in kinds for prefix in "BI")]


def _by_number(name: str) -> tuple[str, int, str]:
    stem, _, number = name.rpartition("_")
    return (stem, int(number), "") if number.isdecimal() else (name, 0, name)


def _mark(tag: str) -> _Mark:
    is_mark = len(tag) > 2 and tag[1] == "-" and tag[0] in _PREFIXES
    return _Mark(tag[0], tag[2:]) if is_mark else _Mark()
