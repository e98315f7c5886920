"""Masked loss and accuracy on held-out text: by source, and by the place in a window."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.nn import functional

from modernbert import telemetry
from modernbert.data.corpus import Document
from modernbert.data.masking import MaskedBatch, Masker, MaskingSettings
from modernbert.data.source import NUM_SPECIAL
from modernbert.data.tokenizer import Tokenizer
from modernbert.data.windows import cut_stretches, mask_stretches, window_rows
from modernbert.errors import ConfigError, InputError
from modernbert.evaluate.masked_lm import check_length
from modernbert.evaluate.measured import Measured, percent
from modernbert.infer.encoder import Encoder
from modernbert.infer.runner import Runner
from modernbert.runtime import machine_facts

ROW_TOKENS = 8192
BETWEEN = "\n\n"
"""What stands between documents that are joined."""


@dataclass(frozen=True, kw_only=True)
class MaskedSettings:
    """What is masked, and how it is seen.

    Attributes:
        length: Tokens of a window, with `[CLS]` and `[SEP]`.
        join: Let neighbouring documents of a source share windows, a blank line between them, so that all
            windows but a source's last are whole.
        mask_rate: Share of tokens that are predicted.
        max_tokens: At most so many tokens of each source, from its beginning.
        bins: Into how many parts the places of a window are cut.
        seed: Of the masks.
    """

    length: int = 1024
    join: bool = False
    mask_rate: float = 0.15
    max_tokens: int = 262_144
    bins: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.bins <= self.length - NUM_SPECIAL:
            raise ConfigError(
                f"`length` is {self.length}, `bins` {self.bins}; there must be at least 1, and no more than "
                f"the length without {NUM_SPECIAL} special tokens; change one"
            )
        if not 0 <= self.mask_rate <= 1:
            raise ConfigError(f"`mask_rate` is {self.mask_rate}; it must be a share, from 0 to 1")
        if self.max_tokens < self.length:
            raise ConfigError(
                f"`max_tokens` is {self.max_tokens}; it must be at least `length`, {self.length}; raise it"
            )


@dataclass(frozen=True, eq=False)
class Guesses:
    """What a model made of the masked tokens of a text.

    Attributes:
        losses: float64 `[M]`, cross-entropy of each, in nats.
        are_right: bool `[M]`.
        places: int64 `[M]`, of each in its window's text, counted from 0.
        windows: int64 `[M]`, the number of its window.
        lengths: int64, one a window, with its special tokens.
    """

    losses: NDArray[np.float64]
    are_right: NDArray[np.bool_]
    places: NDArray[np.int64]
    windows: NDArray[np.int64]
    lengths: NDArray[np.int64]


def measure_masked(model: Encoder, documents: Iterable[Document], settings: MaskedSettings) -> Measured:
    """Measure a model on the documents of one source or of several.

    A document whose record names no source is of the file that it stands in.

    Raises:
        ConfigError: The model does not take windows of this length.
        InputError: Not one token is masked.
    """
    check_length(settings.length, model)
    rows = masked_rows(documents, model.tokenizer, settings)
    found: dict[str, Guesses] = {}
    with telemetry.progress("masked", sum(len(it) for it in rows.values()), "rows") as meter:
        for source, batches in rows.items():
            found[source] = joined([guess(model.runner, batch) for batch in batches])
            meter.advance(len(batches))
    return _report(model, found, settings)


def masked_rows(
    documents: Iterable[Document], words: Tokenizer, settings: MaskedSettings
) -> dict[str, list[MaskedBatch]]:
    """Cut the text of each source into windows, mask and pack them; leave sources without a mask out.

    Raises:
        InputError: Not one token is masked.
    """
    masker = Masker(words, MaskingSettings(), seed=settings.seed)
    rows = {}
    for source, lists in _by_source(documents, words, settings.max_tokens).items():
        stretches = cut_stretches(
            [_with_blank_lines(lists, words)] if settings.join else lists,
            width=settings.length - NUM_SPECIAL,
            max_tokens=settings.max_tokens,
            takes_short=True,
        )
        masked = mask_stretches(stretches, masker, settings.mask_rate)
        ends = (words.cls_id, words.sep_id)
        rows[source] = window_rows(masked, settings.length, ends, row_tokens=ROW_TOKENS)
    found = {source: batches for source, batches in rows.items() if batches}
    if not found:
        raise InputError(
            "not one token of the text is masked; some must be; give more text or raise `mask_rate`"
        )
    return found


def guess(runner: Runner, batch: MaskedBatch) -> Guesses:
    """Let a model guess the masked tokens of one row."""
    sequences = [part.tolist() for part in batch.layout.split(batch.input_ids)]
    logits, _ = runner(sequences, batch.masked_positions)
    labels = batch.labels.to(logits.device)
    losses = functional.cross_entropy(logits, labels, reduction="none")
    return Guesses(
        losses=losses.double().cpu().numpy(),
        are_right=(logits.argmax(dim=-1) == labels).cpu().numpy(),
        places=batch.layout.positions[batch.masked_positions].numpy() - 1,
        windows=batch.layout.sequence_ids[batch.masked_positions].long().numpy(),
        lengths=np.array(batch.layout.lengths),
    )


def joined(parts: Sequence[Guesses]) -> Guesses:
    """Bring the guesses of several rows together, their windows numbered through."""
    firsts = np.cumsum([0, *(len(part.lengths) for part in parts)])
    return Guesses(
        losses=np.concatenate([part.losses for part in parts]),
        are_right=np.concatenate([part.are_right for part in parts]),
        places=np.concatenate([part.places for part in parts]),
        windows=np.concatenate([part.windows + first for part, first in zip(parts, firsts)]),
        lengths=np.concatenate([part.lengths for part in parts]),
    )


def by_place(found: Guesses, settings: MaskedSettings) -> list[dict[str, Any]]:
    """Return the figures of each part of the places, of whole windows; empty if there is none."""
    is_whole = (found.lengths == settings.length)[found.windows]
    edges = np.linspace(0, settings.length - NUM_SPECIAL, settings.bins + 1).astype(int)
    parts = [
        ((int(first), int(last) - 1), is_whole & (first <= found.places) & (found.places < last))
        for first, last in pairwise(edges)
    ]
    return [
        {"first": first, "last": last, **_figures(found, chosen)}
        for (first, last), chosen in parts
        if chosen.any()
    ]


def rises(found: Guesses, settings: MaskedSettings) -> list[dict[str, Any]]:
    """Say by how many nats the loss of the last quarter of the places is above that of other parts.

    Above that of the middle half, and above that of the first quarter, whose context is one-sided too.
    It is the mean over whole windows of the difference within each, with the standard error of that mean; it
    is a rise if it is above 0 by more than two of these. Empty with fewer than two windows to tell it from.
    """
    shares = found.places / (settings.length - NUM_SPECIAL)
    parts = {"middle half": (shares >= 0.25) & (shares < 0.75), "first quarter": shares < 0.25}
    told = []
    for part, chosen in parts.items():
        differences = _window_losses(found, shares >= 0.75) - _window_losses(found, chosen)
        differences = differences[(found.lengths == settings.length) & np.isfinite(differences)]
        if len(differences) > 1:
            nats, error = differences.mean(), differences.std(ddof=1) / np.sqrt(len(differences))
            told.append(
                {
                    "above": part,
                    "nats": float(nats),
                    "error": float(error),
                    "num_windows": len(differences),
                    "rises": bool(nats > 2 * error),
                }
            )
    return told


def _by_source(
    documents: Iterable[Document], words: Tokenizer, max_tokens: int
) -> dict[str, list[list[int]]]:
    """Return the token ids of each source's documents, up to the one with which there are enough."""
    found: dict[str, list[list[int]]] = {}
    counts: dict[str, int] = {}
    for document in documents:
        source = document.source or Path(document.origin.rpartition(":")[0]).name
        if counts.get(source, 0) < max_tokens:
            (ids,) = words.encode_batch([document.text], special=False, literal=True)
            found.setdefault(source, []).append(ids)
            counts[source] = counts.get(source, 0) + len(ids)
    return found


def _with_blank_lines(lists: Iterable[list[int]], words: Tokenizer) -> list[int]:
    between = words.encode(BETWEEN, special=False)
    return [id for ids in lists for id in (*between, *ids)][len(between) :]


def _window_losses(found: Guesses, chosen: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return for each window the mean loss of its chosen tokens; NaN where it has none."""
    windows, count = found.windows[chosen], len(found.lengths)
    with np.errstate(invalid="ignore"):
        means = np.bincount(windows, found.losses[chosen], count) / np.bincount(windows, minlength=count)
    return means.astype(np.float64)


def _figures(found: Guesses, chosen: Any = slice(None)) -> dict[str, Any]:
    return {
        "loss": float(found.losses[chosen].mean()),
        "accuracy": float(found.are_right[chosen].mean()),
        "num_masked": len(found.losses[chosen]),
    }


def _report(model: Encoder, found: Mapping[str, Guesses], settings: MaskedSettings) -> Measured:
    whole = joined([*found.values()])
    sources = [
        {"source": source, **_figures(it), "num_windows": len(it.lengths)} for source, it in found.items()
    ]
    in_all = {"source": "all", **_figures(whole), "num_windows": len(whole.lengths)}
    places, ends = by_place(whole, settings), rises(whole, settings)
    tables = {"By source": [_row(it) for it in (*sources, in_all)]}
    if places:
        tables["By place in the window"] = [_row(it) for it in places]
    return Measured(
        headline=f"masked loss of {model.name}: {settings.mask_rate:.0%} of the tokens masked, "
        f"seed {settings.seed}, windows of {settings.length:,} tokens",
        tables=tables,
        remarks=_remarks(whole, ends, settings),
        figures={
            "model": model.name,
            **asdict(settings),
            "all": in_all,
            "sources": sources,
            "places": places,
            "rises": ends,
        },
        machine=machine_facts(model.runner.device),
    )


def _row(it: Mapping[str, Any]) -> dict[str, str]:
    what = {"source": it["source"]} if "source" in it else {"places": f"{it['first']:,}–{it['last']:,}"}
    return {
        **what,
        "masked loss": f"{it['loss']:.3f}",
        "accuracy": percent(it["accuracy"]),
        "masked tokens": f"{it['num_masked']:,}",
        **({"windows": f"{it['num_windows']:,}"} if "num_windows" in it else {}),
    }


def _remarks(found: Guesses, ends: Sequence[Mapping[str, Any]], settings: MaskedSettings) -> list[str]:
    how = (
        "neighbouring documents of a source joined, a blank line between"
        if settings.join
        else "each window of one document, a document's last one shorter"
    )
    num_whole = int((found.lengths == settings.length).sum())
    return [
        f"windows: {how}; of each source its first {settings.max_tokens:,} tokens, at most",
        f"by place: of the {num_whole:,} whole windows among {len(found.lengths):,}"
        + ("; longer documents are needed, or `--join`" if not num_whole else ""),
        *(
            f"the last quarter of a window lies {it['nats']:+.3f} nats from its {it['above']} (standard "
            f"error {it['error']:.3f}, {it['num_windows']:,} windows): {'a' if it['rises'] else 'no'} rise"
            for it in ends
        ),
    ]
