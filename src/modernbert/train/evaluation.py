"""What a model makes of held-out text at several lengths: masked loss and pseudo-perplexity.

Pseudo-perplexity is `exp` of the mean of `-log P(token | all the others)` (Salazar et al. 2020). Exactly,
each token is masked by itself, a forward pass each. With a stride of k, every k-th token of a text is masked
at once, in k passes which together predict each token once: cheaper, and a little worse than the exact value,
for one token in k is missing from what the model sees.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from modernbert.data.masking import MaskedBatch, Masker
from modernbert.data.source import NUM_SPECIAL
from modernbert.data.windows import Stretch, mask_every, mask_stretches, window_rows
from modernbert.errors import ConfigError
from modernbert.model.heads import ModernBertForMaskedLM
from modernbert.runtime import Precision
from modernbert.train.loop import Evaluation, evaluate
from modernbert.train.parallel import Spread

Judge = Callable[[Sequence[MaskedBatch]], Evaluation]


@dataclass(frozen=True, kw_only=True)
class LengthSettings:
    """At which lengths held-out text is looked at, and how much of it.

    Attributes:
        lengths: Tokens that the model sees at once, with `[CLS]` and `[SEP]`. At each, the same tokens are
            predicted: those of documents at least as long as the longest.
        stride: For the pseudo-perplexity, every how many tokens one is masked, in as many passes; null: each
            token by itself, which is exact and takes a pass a token.
        max_tokens: At most so many tokens of text.
    """

    lengths: tuple[int, ...]
    stride: int | None = 8
    max_tokens: int = 65_536

    def __post_init__(self) -> None:
        if not self.lengths or min(self.lengths) <= NUM_SPECIAL or len(set(self.lengths)) < len(self.lengths):
            raise ConfigError(
                f"`lengths` is {list(self.lengths)}; it must hold at least one length, each its own and at "
                f"least {NUM_SPECIAL + 1}: [CLS], one token of text, [SEP]"
            )
        if self.stride is not None and self.stride < 2:
            raise ConfigError(
                f"`stride` is {self.stride}; it must be at least 2, or null: each token by itself"
            )
        if self.max_tokens < max(self.lengths):
            raise ConfigError(
                f"`max_tokens` is {self.max_tokens}; it must be at least the longest of `lengths`, "
                f"{max(self.lengths)}"
            )


@dataclass(frozen=True, kw_only=True)
class LengthEvaluation:
    """Figures over the same held-out tokens, seen at one length.

    Attributes:
        length: Tokens that the model saw at once.
        loss: Mean cross-entropy of the masked tokens, masked as in any validation, in nats.
        accuracy: Share of them guessed right.
        pseudo_perplexity: `exp` of the mean cross-entropy of all tokens, each masked once.
        stride: Every how many tokens one was masked for it; None: one at a time.
        num_tokens: Tokens of the text.
    """

    length: int
    loss: float
    accuracy: float
    pseudo_perplexity: float
    stride: int | None
    num_tokens: int


class LengthProbe:
    """Held-out text, and how to look at it.

    Args:
        stretches: Of the longest of the lengths.
        settings: The lengths, and the stride.
        masker: Masks tokens for the loss.
        mask_rate: Share of tokens that it masks.
        special: Ids of `[CLS]`, `[SEP]` and `[MASK]`.
        row_tokens: Most tokens of one forward pass; one window of any length fits in any case.
    """

    def __init__(
        self,
        stretches: Sequence[Stretch],
        settings: LengthSettings,
        masker: Masker,
        *,
        mask_rate: float,
        special: tuple[int, int, int],
        row_tokens: int,
    ) -> None:
        self._stretches = stretches
        self._masked = mask_stretches(stretches, masker, mask_rate)
        self._settings = settings
        self._ends, self._mask_id = special[:2], special[2]
        self._row_tokens = row_tokens
        self._num_tokens = sum(len(stretch.tokens) for stretch in stretches)

    def measure(
        self,
        model: ModernBertForMaskedLM,
        *,
        device: torch.device,
        precision: Precision = "auto",
        spread: Spread[ModernBertForMaskedLM] | None = None,
    ) -> list[LengthEvaluation]:
        """Measure the model at each length, shortest first; for the arguments see `train.loop.evaluate`."""
        judge = partial(evaluate, model, device=device, precision=precision, spread=spread)
        return [self._measure(length, judge) for length in sorted(self._settings.lengths)]

    def _measure(self, length: int, judge: Judge) -> LengthEvaluation:
        masked = judge(window_rows(self._masked, length, self._ends, row_tokens=self._row_tokens))
        return LengthEvaluation(
            length=length,
            loss=masked.loss,
            accuracy=masked.accuracy,
            pseudo_perplexity=self._pseudo_perplexity(length, judge),
            stride=self._settings.stride,
            num_tokens=self._num_tokens,
        )

    def _pseudo_perplexity(self, length: int, judge: Judge) -> float:
        width = length - NUM_SPECIAL
        stride = min(self._settings.stride or width, width)
        longest = max(len(stretch.tokens) for stretch in self._stretches)
        total = 0.0
        for offset in range(min(stride, longest)):
            masked = mask_every(self._stretches, self._mask_id, stride=stride, offset=offset)
            part = judge(window_rows(masked, length, self._ends, row_tokens=self._row_tokens))
            total += part.loss * part.num_masked
        return math.exp(total / self._num_tokens)
