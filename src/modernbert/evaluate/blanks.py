"""Texts with one token masked, and how high the right one ranks.

Each text has a forward pass of its own, so that no figure depends on what else is asked.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from modernbert import telemetry
from modernbert.infer.runner import Runner
from modernbert.infer.texts import Texts


@dataclass(frozen=True, kw_only=True)
class Blank:
    """A text with one token masked.

    Attributes:
        ids: Of the text, the mask in its place, without special tokens around.
        place: Where the mask stands among them.
        token: The one that stood there.
    """

    ids: tuple[int, ...]
    place: int
    token: int


def blank_out(texts: Texts, sentence: str, start: int, end: int) -> Blank | None:
    """Mask the characters from `start` up to `end`; None if they are not one token, no more and no less.

    What is masked is the token with the space that it has in front.
    """
    (pieces,) = texts.pieces([sentence])
    covering = [place for place, (a, b) in enumerate(pieces.offsets) if a < end and b > start]
    if len(covering) != 1 or pieces.offsets[covering[0]] != (start, end):
        return None
    ids, (place,) = list(pieces.ids), covering
    token, ids[place] = ids[place], texts.tokenizer.mask_id
    return Blank(ids=tuple(ids), place=place, token=token)


def score_tokens(
    runner: Runner, texts: Texts, blanks: Sequence[tuple[Sequence[int], int]], title: str
) -> Iterator[Tensor]:
    """Yield for each text, ids without special tokens and the mask's place, the logits of all tokens there.

    Args:
        runner: Runs a masked language model.
        texts: Its tokenizer.
        blanks: What to fill.
        title: Names the work where its progress is shown.

    Yields:
        fp32 `[V]`, without the spare rows of the model, which no token has.
    """
    words = texts.tokenizer
    with telemetry.progress(title, len(blanks), "texts") as meter:
        for ids, place in blanks:
            logits, _ = runner([[words.cls_id, *ids, words.sep_id]], torch.tensor([place + 1]))
            meter.advance(1)
            yield logits[0, : words.vocab_size]


def rank_of(scores: Tensor, right: Collection[int], among: Collection[int] | None = None) -> int:
    """Return the rank of the best of the right tokens, 1 the first; the other right ones are no rivals.

    A rival with the same score stands before it, so that a model that cannot tell them apart gains nothing.

    Args:
        scores: `[V]`.
        right: Ids, at least one.
        among: Ids of the rivals; None: the whole vocabulary.
    """
    is_rival = torch.full(scores.shape, among is None, device=scores.device)
    is_rival[list(among or ())] = True
    is_rival[list(right)] = False
    best = scores[list(right)].max()
    return 1 + int((is_rival & ~(scores < best)).sum())
