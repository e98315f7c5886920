"""Masked-language-model targets (reference: 80 % `[MASK]`, 10 % random, 10 % kept; paper 2.2.2).

A token's fate is a hash of the seed, its sequence's key and its position: it does not depend on
what else is in the batch, on workers or on ranks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from modernbert.data.counter_random import Words, combine, key_of, mix64, unit
from modernbert.errors import ConfigError
from modernbert.layout import SequenceLayout

Ids = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class MaskingSettings:
    """What happens to the tokens that are to be predicted.

    Attributes:
        mask_share: Share of them that `[MASK]` replaces.
        random_share: Share that a random ordinary token replaces; the rest stay as they are.
        protect_special: Never choose special tokens. The reference chooses `[CLS]` and `[SEP]` too.
    """

    mask_share: float = 0.8
    random_share: float = 0.1
    protect_special: bool = True

    def __post_init__(self) -> None:
        for name in ("mask_share", "random_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"`{name}` is {getattr(self, name)}; it must be between 0 and 1")
        if self.mask_share + self.random_share > 1 + 1e-9:
            raise ConfigError(
                f"`mask_share` {self.mask_share} and `random_share` {self.random_share} sum to more than 1; "
                "lower one"
            )


class MaskingVocabulary(Protocol):
    """What masking needs to know of a tokenizer."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def mask_id(self) -> int: ...
    @property
    def special_ids(self) -> frozenset[int]: ...
    @property
    def ordinary_ids(self) -> NDArray[np.integer]: ...


class MaskedModel(Protocol):
    """What a masked batch needs of a model: see `ModernBertForMaskedLM.loss`."""

    def loss(
        self, input_ids: Tensor, layout: SequenceLayout, masked_positions: Tensor, labels: Tensor, /
    ) -> tuple[Tensor, Tensor]: ...


class Masker:
    """Chooses the tokens to predict and disguises them.

    Args:
        vocabulary: The tokenizer, or what of it masking needs.
        settings: How to disguise.
        seed: Another seed, other masks.
    """

    def __init__(self, vocabulary: MaskingVocabulary, settings: MaskingSettings, *, seed: int) -> None:
        self.settings = settings
        self._key = key_of("mask", seed)
        self._mask_id = vocabulary.mask_id
        self._ordinary_ids = np.asarray(vocabulary.ordinary_ids, dtype=np.int64)
        self._is_special = np.zeros(vocabulary.vocab_size, dtype=bool)
        self._is_special[list(vocabulary.special_ids)] = True

    def mask(self, tokens: Ids, keys: Words, positions: Ids, rate: float) -> tuple[Ids, Ids, Ids]:
        """Mask a packed row of tokens.

        Args:
            tokens: int64 `[T]`.
            keys: uint64 `[T]`, for each token the key of its sequence.
            positions: int64 `[T]`, each token's place in its sequence.
            rate: Share of tokens to predict.

        Returns:
            The disguised ids `[T]`; the places `[M]` of those to predict, ascending; their true ids `[M]`.

        Raises:
            ConfigError: `rate` is not between 0 and 1.
        """
        if not 0 <= rate <= 1:
            raise ConfigError(f"the mask rate is {rate}; it must be between 0 and 1")
        words = combine(keys ^ np.uint64(self._key), positions)
        draws = unit(words)
        chosen = draws < rate
        if self.settings.protect_special:
            chosen &= ~self._is_special[tokens]
        places = np.flatnonzero(chosen)
        labels = tokens[places]
        return self._disguise(tokens, places, draws[places], words[places], rate), places, labels

    def _disguise(
        self, tokens: Ids, places: Ids, draws: NDArray[np.float64], words: Words, rate: float
    ) -> Ids:
        """Split the one draw of each chosen token (below `rate`) by the shares."""
        input_ids = tokens.copy()
        masked = draws < self.settings.mask_share * rate
        replaced = ~masked & (draws < (self.settings.mask_share + self.settings.random_share) * rate)
        input_ids[places[masked]] = self._mask_id
        choices = unit(mix64(words[replaced])) * len(self._ordinary_ids)
        input_ids[places[replaced]] = self._ordinary_ids[choices.astype(np.int64)]
        return input_ids


@dataclass(frozen=True, eq=False)
class MaskedBatch:
    """A packed row of disguised tokens and what is to be predicted.

    Attributes:
        input_ids: int64 `[T]`.
        layout: Where each sequence lies.
        masked_positions: int64 `[M]`, ascending places in the row.
        labels: int64 `[M]`, the true token at each.
    """

    input_ids: Tensor
    layout: SequenceLayout
    masked_positions: Tensor
    labels: Tensor

    @property
    def num_tokens(self) -> int:
        return len(self.input_ids)

    @property
    def num_masked(self) -> int:
        return len(self.labels)

    @property
    def weight(self) -> float:
        """By what the sum of its loss counts in a mean: each masked token alike."""
        return float(self.num_masked)

    def loss(self, model: MaskedModel) -> tuple[Tensor, Tensor]:
        """Let a model guess: its summed cross-entropy, and how many guesses are right."""
        return model.loss(self.input_ids, self.layout.worked_out(), self.masked_positions, self.labels)

    def to(self, device: torch.device | str) -> MaskedBatch:
        """Return this batch on `device`; a GPU copies it while the host goes on."""
        target = torch.device(device)
        tensors = [self.input_ids, self.masked_positions, self.labels]
        if target.type == "cuda":
            tensors = [tensor if tensor.is_cuda else tensor.pin_memory() for tensor in tensors]
        input_ids, masked_positions, labels = (tensor.to(target, non_blocking=True) for tensor in tensors)
        return MaskedBatch(input_ids, self.layout.to(target), masked_positions, labels)
