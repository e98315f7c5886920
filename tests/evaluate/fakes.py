"""A model whose scores are known, in the place of a loaded one."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from modernbert.data.tokenizer import Tokenizer
from modernbert.infer.texts import Texts
from modernbert.layout import SequenceLayout, pack

Score = Callable[[list[int], int], Tensor]
"""Gives the scores of all tokens at a place of a sequence."""


def fake_model(words: Tokenizer, score: Score, max_length: int = 8192) -> Any:
    """What a measure needs of an `Encoder`."""

    def run(sequences: list[list[int]], positions: Tensor | None = None) -> tuple[Tensor, SequenceLayout]:
        assert positions is not None
        _, layout = pack(sequences)
        owners = layout.sequence_ids[positions].tolist()
        places = layout.positions[positions].tolist()
        rows = [score(sequences[owner], place) for owner, place in zip(owners, places)]
        return torch.stack(rows), layout

    run.device = torch.device("cpu")  # type: ignore[attr-defined]
    return SimpleNamespace(
        name="fake", runner=run, texts=Texts(words, max_length), tokenizer=words, max_length=max_length
    )
