"""A needle test for an encoder: a made-up fact in a long text, asked again at its end with a mask."""

from __future__ import annotations

import random
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

from modernbert import files
from modernbert.data.corpus import Document
from modernbert.data.counter_random import key_of
from modernbert.data.source import NUM_SPECIAL
from modernbert.data.tokenizer import Tokenizer
from modernbert.errors import ConfigError, InputError
from modernbert.evaluate.blanks import Blank, blank_out, rank_of, score_tokens
from modernbert.evaluate.masked_lm import check_length
from modernbert.evaluate.measured import Measured, percent
from modernbert.infer.encoder import Encoder
from modernbert.infer.texts import Texts
from modernbert.recipes.drawing import COLOURS, INK, PAPER, QUIET, new_figure
from modernbert.runtime import machine_facts

LENGTHS = (512, 1024, 2048, 4096, 8192)
DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
# The fact as it is told, and as it is asked for.
TEMPLATES = (
    ("The secret word of {name} is {code}.", "Remember that the secret word of {name} is {code}."),
    (
        "In the village of {name} the password is {code}.",
        "Whoever comes to {name} is asked for the password, {code}.",
    ),
    (
        "The ship {name} answers to the signal {code}.",
        "To call the ship {name}, we have to send the signal {code}.",
    ),
    ("Doctor {name} has called his horse {code}.", "The horse of doctor {name} goes by the name of {code}."),
)
CONSONANTS, VOWELS = "bdfgklmnprstvz", "aeiou"
_CODE = re.compile("[a-z]{4,}")
FILLER_LENGTHS = 16
"""Filler is drawn from the first tokens of the text, so many times the longest length."""


@dataclass(frozen=True, kw_only=True)
class NeedleSettings:
    """Which texts are made.

    Attributes:
        lengths: Tokens of a text, with `[CLS]` and `[SEP]`.
        depths: Where the needle stands in the filler: 0 at its beginning, 1 at its end.
        trials: Needles for each length; each is tried at all depths, in the same filler.
        seed: Of names, codes and filler.
    """

    lengths: tuple[int, ...]
    depths: tuple[float, ...] = DEPTHS
    trials: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        has_twins = any(len(set(part)) < len(part) for part in (self.lengths, self.depths))
        if not self.lengths or not self.depths or self.trials < 1 or has_twins:
            raise ConfigError(
                f"`lengths` is {list(self.lengths)}, `depths` {list(self.depths)}, `trials` {self.trials}; "
                "there must be at least one of each, and none twice"
            )
        if wrong := [depth for depth in self.depths if not 0 <= depth <= 1]:
            raise ConfigError(f"a depth is {wrong[0]}; it must be from 0, the beginning, to 1, the end")


class Needle(NamedTuple):
    """A made-up fact: the ids that tell it, and the question."""

    told: tuple[int, ...]
    asked: Blank


class Cell(NamedTuple):
    """One field of the grid; without a depth the needle is missing."""

    length: int
    depth: float | None


class Trial(NamedTuple):
    """A text, the place of its mask, and the token that is right there."""

    cell: Cell
    ids: tuple[int, ...]
    place: int
    token: int


def measure_needles(model: Encoder, documents: Iterable[Document], settings: NeedleSettings) -> Measured:
    """Ask a model for needles at each depth of texts of each length, and without any needle.

    Args:
        model: Fills masks.
        documents: The filler, read one after the other as far as it is needed.
        settings: Which texts are made.

    Raises:
        ConfigError: The model does not take a text of this length.
        InputError: The text is too short, a length is, or the tokenizer has no words for codes.
    """
    longest = max(settings.lengths)
    check_length(longest, model)
    filler = _filler(documents, model.tokenizer, longest)
    codes = code_words(model.tokenizer)
    trials = [
        trial
        for length in settings.lengths
        for number in range(settings.trials)
        for trial in _trials(
            model.texts,
            filler,
            codes,
            length,
            settings.depths,
            random.Random(key_of("needle", settings.seed, length, number)),
        )
    ]
    found = dict.fromkeys((trial.cell for trial in trials), 0)
    blanks = [(trial.ids, trial.place) for trial in trials]
    for trial, scores in zip(trials, score_tokens(model.runner, model.texts, blanks, "needles")):
        found[trial.cell] += rank_of(scores, [trial.token]) == 1
    return _report(model, {cell: count / settings.trials for cell, count in found.items()}, settings)


def code_words(words: Tokenizer) -> list[str]:
    """Return the words of a vocabulary that may be codes: lower case, four letters or more, one token.

    Raises:
        InputError: There is none.
    """
    spelled = {words.decode([id]).strip() for id in words.ordinary_ids.tolist()}
    codes = sorted(text for text in spelled if _CODE.fullmatch(text))
    encoded = words.encode_batch([f" {code}" for code in codes], special=False)
    found = [code for code, ids in zip(codes, encoded) if len(ids) == 1]
    if not found:
        raise InputError(
            "the tokenizer has no word of four letters or more as a token; a needle's code must be one; "
            "measure a model with a larger vocabulary"
        )
    return found


def draw_needle(texts: Texts, codes: Sequence[str], draw: random.Random) -> Needle:
    """Make up a fact whose code is one token, as it is told and as it is asked for.

    Raises:
        InputError: No code is one token in its sentence.
    """
    told, asked = draw.choice(TEMPLATES)
    name = "".join(draw.choice(CONSONANTS) + draw.choice(VOWELS) for _ in range(3)).capitalize()
    around = told.format(name=name, code="") + asked.format(name=name, code="")
    for code in draw.sample(codes, len(codes)):
        if code in around:
            continue
        question = f" {asked.format(name=name, code=code)}"
        start = question.index(code)
        if (blank := blank_out(texts, question, start, start + len(code))) is not None:
            needle = texts.tokenizer.encode(f" {told.format(name=name, code=code)}", special=False)
            return Needle(tuple(needle), blank)
    raise InputError(
        "no word of the tokenizer is one token in a sentence; a needle's code must be one; measure a model "
        "with another tokenizer"
    )


def put(filler: Sequence[int], needle: Sequence[int], depth: float, ends: frozenset[int]) -> list[int]:
    """Put a needle behind the sentence of the filler that ends nearest to `depth`.

    Args:
        filler: Token ids.
        needle: Token ids.
        depth: From 0 to 1.
        ends: Ids of tokens that end a sentence.
    """
    wanted = depth * len(filler)
    places = [0, *(place + 1 for place, id in enumerate(filler) if id in ends), len(filler)]
    place = min(places, key=lambda place: abs(place - wanted))
    return [*filler[:place], *needle, *filler[place:]]


def draw_grid(headline: str, found: Mapping[Cell, float], folder: Path) -> None:
    """Draw the table as `needle.png`.

    Raises:
        BackendError: matplotlib is not installed.
        StorageError: The disk is full or not writable.
    """
    lengths, depths = ([*dict.fromkeys(part)] for part in zip(*found))
    with new_figure(2 + 0.8 * len(depths), 1 + 0.45 * len(lengths)) as figure:
        from matplotlib.colors import LinearSegmentedColormap

        axes = figure.subplots()
        axes.imshow(
            [[found[Cell(length, depth)] for depth in depths] for length in lengths],
            cmap=LinearSegmentedColormap.from_list("needle", [PAPER, COLOURS[0]]),
            vmin=0,
            vmax=1,
            aspect="auto",
        )
        for (length, depth), share in found.items():
            where = depths.index(depth), lengths.index(length)
            axes.text(*where, f"{share:.0%}", ha="center", va="center", color=INK)
        axes.grid(visible=False)
        axes.set_xticks(range(len(depths)), [_depth(depth) for depth in depths])
        axes.set_yticks(range(len(lengths)), [f"{length:,}" for length in lengths])
        axes.set_xlabel("depth of the needle")
        axes.set_ylabel("tokens")
        figure.suptitle(textwrap.fill(headline, 60), x=0.01, ha="left", fontsize=8, color=QUIET)
        with files.atomic_file(folder / "needle.png") as temporary:
            figure.savefig(temporary, dpi=130, format="png", facecolor=PAPER)


def _filler(documents: Iterable[Document], words: Tokenizer, longest: int) -> list[int]:
    """Read text one document after the other, a blank line between, until it is enough."""
    ids: list[int] = []
    for document in documents:
        ids += words.encode_batch([f"{document.text}\n\n"], special=False, literal=True)[0]
        if len(ids) >= FILLER_LENGTHS * longest:
            break
    if len(ids) < longest:
        raise InputError(
            f"the text has {len(ids):,} tokens; it must fill {longest:,}; give more, or leave that length out"
        )
    return ids


def _trials(
    texts: Texts,
    filler: Sequence[int],
    codes: Sequence[str],
    length: int,
    depths: Sequence[float],
    draw: random.Random,
) -> Iterator[Trial]:
    """Yield the same filler with a needle at each depth, and filler of the same length without."""
    told, asked = draw_needle(texts, codes, draw)
    room = length - NUM_SPECIAL - len(asked.ids)
    around = room - len(told)
    if around < 1:
        raise ConfigError(
            f"a length is {length}; a needle and its question have {length - around}; it must be longer"
        )
    start = draw.randrange(len(filler) - room + 1)
    own = filler[start : start + room]
    decode = texts.tokenizer.decode
    ends = frozenset(id for id in set(own) if decode([id]).rstrip().endswith((".", "!", "?")))
    for depth in (*depths, None):
        text = own if depth is None else put(own[:around], told, depth, ends)
        yield Trial(Cell(length, depth), (*text, *asked.ids), room + asked.place, asked.token)


def _report(model: Encoder, found: Mapping[Cell, float], settings: NeedleSettings) -> Measured:
    headline = f"needles found by {model.name}: {settings.trials} a field, seed {settings.seed}"
    return Measured(
        headline=headline,
        tables={
            "Precision at 1 among the whole vocabulary, by tokens and by the needle's depth": [
                {
                    "tokens": f"{length:,}",
                    **{
                        _depth(depth): percent(found[Cell(length, depth)])
                        for depth in (*settings.depths, None)
                    },
                }
                for length in settings.lengths
            ]
        },
        remarks=[
            "the question stands at the end; without: no needle is in the text, so that only luck finds it"
        ],
        draw=partial(draw_grid, headline, found),
        figures={
            "model": model.name,
            **asdict(settings),
            "cells": [{**cell._asdict(), "precision": share} for cell, share in found.items()],
        },
        machine=machine_facts(model.runner.device),
    )


def _depth(depth: float | None) -> str:
    return "without" if depth is None else f"{depth:.0%}"
