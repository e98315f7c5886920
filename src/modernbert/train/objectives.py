"""What fine-tuning minimises: one class for each kind of target, over packed rows of examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from modernbert.errors import ConfigError, InputError
from modernbert.layout import SequenceLayout
from modernbert.model.heads import ModernBertForMaskedLM
from modernbert.ops import segments
from modernbert.train.objective import Objective, check_at_least, check_weights, placed, scores
from modernbert.train.targets import IGNORED, check_count, labels, reals, whole_numbers


@dataclass(frozen=True, kw_only=True)
class LabelObjective(Objective):
    """Cross-entropy over labels, of whatever the model scores.

    Attributes:
        num_labels: Labels that the model scores.
        class_weights: What an example of each label counts, as `torch.nn.CrossEntropyLoss` has it: the step's
            loss is divided by the sum of its targets' weights. Empty: 1 for each.
        label_smoothing: Share of the target that is spread evenly over all labels.

    Raises:
        ConfigError: A number out of range, or weights that are not one for each label.
    """

    num_labels: int
    class_weights: tuple[float, ...] = ()
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        check_at_least("num_labels", self.num_labels, 2)
        check_weights("class_weights", self.class_weights, self.num_labels)
        if not 0 <= self.label_smoothing < 1:
            raise ConfigError(
                f"`label_smoothing` is {self.label_smoothing}; it must be at least 0 and below 1"
            )

    def weight(self, targets: Tensor) -> float:
        judged = targets[targets != IGNORED]
        if not self.class_weights:
            return float(len(judged))
        return float(torch.tensor(self.class_weights, dtype=torch.float64)[judged].sum())

    def loss(
        self, model: nn.Module, input_ids: Tensor, layout: SequenceLayout, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        logits = scores(model, input_ids, layout, self.num_labels)
        loss = functional.cross_entropy(
            logits,
            targets,
            weight=placed(self.class_weights, logits.device),
            ignore_index=IGNORED,
            label_smoothing=self.label_smoothing,
            reduction="sum",
        )
        return loss, (logits.argmax(-1) == targets).sum()


@dataclass(frozen=True, kw_only=True)
class Classes(LabelObjective):
    """One label a sequence. An example's target is its label, or `IGNORED`; collated: int64 `[B]`."""

    def collate(self, targets: Sequence[Any], lengths: Sequence[int]) -> Tensor:
        check_count(targets, len(lengths), len(targets))
        each = [labels([label], self.num_labels, f"example {place}") for place, label in enumerate(targets)]
        return torch.cat(each)


@dataclass(frozen=True, kw_only=True)
class TokenClasses(LabelObjective):
    """One label a token. An example's target has a label or `IGNORED` for each; collated: int64 `[T]`."""

    def collate(self, targets: Sequence[Any], lengths: Sequence[int]) -> Tensor:
        check_count(targets, len(lengths), len(targets))
        for place, (target, length) in enumerate(zip(targets, lengths)):
            if len(target) != length:
                raise InputError(
                    f"example {place} has {len(target)} labels for {length} tokens; it must have one for "
                    f"each; give {IGNORED} to special tokens and to what is not judged"
                )
        each = [labels(target, self.num_labels, f"example {place}") for place, target in enumerate(targets)]
        return torch.cat(each)


@dataclass(frozen=True, kw_only=True)
class LabelSets(Objective):
    """Any number of labels a sequence, each judged for itself by the binary cross-entropy.

    An example's target has 1 or 0 for each label, or a number between; collated: fp32 `[B, L]`. The loss is
    the mean over examples and labels. A prediction is right if the whole set is, at the threshold 0.5.

    Attributes:
        num_labels: Labels that the model scores.
        positive_weights: What each label's presence counts against its absence; empty: 1 for each. They do
            not change what the loss is divided by.

    Raises:
        ConfigError: A number out of range, or weights that are not one for each label.
    """

    num_labels: int
    positive_weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        check_at_least("num_labels", self.num_labels, 1)
        check_weights("positive_weights", self.positive_weights, self.num_labels)

    def collate(self, targets: Sequence[Any], lengths: Sequence[int]) -> Tensor:
        check_count(targets, len(lengths), len(targets))
        return reals(targets, self.num_labels, lowest=0.0, highest=1.0)

    def weight(self, targets: Tensor) -> float:
        return float(targets.numel())

    def loss(
        self, model: nn.Module, input_ids: Tensor, layout: SequenceLayout, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        logits = scores(model, input_ids, layout, self.num_labels)
        weights = placed(self.positive_weights, logits.device)
        loss = functional.binary_cross_entropy_with_logits(
            logits, targets, pos_weight=weights, reduction="sum"
        )
        return loss, ((logits >= 0) == (targets >= 0.5)).all(-1).sum()


@dataclass(frozen=True, kw_only=True)
class Values(Objective):
    """Numbers of a sequence, by the mean squared error over examples and values; none counts as right.

    An example's target has `num_values` finite numbers; collated: fp32 `[B, L]`.

    Attributes:
        num_values: Scores of the model.

    Raises:
        ConfigError: `num_values` is below 1.
    """

    num_values: int = 1

    def __post_init__(self) -> None:
        check_at_least("num_values", self.num_values, 1)

    def collate(self, targets: Sequence[Any], lengths: Sequence[int]) -> Tensor:
        check_count(targets, len(lengths), len(targets))
        return reals(targets, self.num_values, lowest=-float("inf"), highest=float("inf"))

    def weight(self, targets: Tensor) -> float:
        return float(targets.numel())

    def loss(
        self, model: nn.Module, input_ids: Tensor, layout: SequenceLayout, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        values = scores(model, input_ids, layout, self.num_values)
        loss = functional.mse_loss(values, targets, reduction="sum")
        return loss, torch.zeros((), dtype=torch.int64, device=loss.device)


@dataclass(frozen=True, kw_only=True)
class Spans(Objective):
    """A span of each sequence, by the cross-entropies of its first and its last token, halved.

    Both are over the tokens of the sequence alone, where transformers lets padding take part. An example's
    target is (first, last), tokens of its sequence, or (`IGNORED`, `IGNORED`); collated: int64 `[B, 2]`.
    A prediction is right if both ends are.
    """

    def collate(self, targets: Sequence[Any], lengths: Sequence[int]) -> Tensor:
        check_count(targets, len(lengths), len(targets))
        for place, (target, length) in enumerate(zip(targets, lengths)):
            first, last = whole_numbers(target, f"example {place}").tolist()
            if not (0 <= first <= last < length or first == last == IGNORED):
                raise InputError(
                    f"example {place} has the span from token {first} to {last}; it must lie within the "
                    f"{length} tokens of its sequence, or be ({IGNORED}, {IGNORED}) to be left out"
                )
        return torch.tensor([tuple(target) for target in targets], dtype=torch.int64)

    def weight(self, targets: Tensor) -> float:
        return float((targets[:, 0] != IGNORED).sum())

    def loss(
        self, model: nn.Module, input_ids: Tensor, layout: SequenceLayout, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        logits = scores(model, input_ids, layout, 2)
        is_judged = targets[:, :1] != IGNORED
        places = layout.offsets[:-1, None] + targets.clamp(min=0)  # packed, [B, 2]
        losses = segments.log_sum_exp(logits, layout.offsets, layout.sequence_ids) - logits.gather(0, places)
        guesses = segments.argmax(logits, layout.offsets, layout.sequence_ids)
        right = ((guesses == places) & is_judged).all(-1).sum()
        return (losses * is_judged).sum() / 2, right


@dataclass(frozen=True, kw_only=True)
class Choices(Objective):
    """The right one of several sequences, by the cross-entropy over their scores.

    An example has a sequence for each choice; its target is (number of choices, index of the right one);
    collated: int64 `[Q, 2]`. Examples may differ in their number of choices.
    """

    def collate(self, targets: Sequence[Any], lengths: Sequence[int]) -> Tensor:
        for place, target in enumerate(targets):
            count, right = whole_numbers(target, f"example {place}").tolist()
            if not 0 <= right < count:
                raise InputError(
                    f"example {place} has choice {right} of {count} as the right one; it must be from 0 to "
                    f"{count - 1}; count the choices from 0"
                )
        check_count(targets, len(lengths), sum(count for count, _ in targets))
        return torch.tensor([tuple(target) for target in targets], dtype=torch.int64)

    def weight(self, targets: Tensor) -> float:
        return float(len(targets))

    def loss(
        self, model: nn.Module, input_ids: Tensor, layout: SequenceLayout, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        each = model(input_ids, layout).float()[:, None]  # [B, 1]
        counts, right = targets.unbind(1)
        offsets = functional.pad(counts.cumsum(0), (1, 0))  # [Q + 1]
        questions = torch.arange(len(targets), device=targets.device)
        # With its size named, so that the device is not asked for it.
        ids = torch.repeat_interleave(questions, counts, output_size=layout.num_sequences)
        places = (offsets[:-1] + right)[:, None]  # [Q, 1]
        losses = segments.log_sum_exp(each, offsets, ids) - each.gather(0, places)
        return losses.sum(), (segments.argmax(each, offsets, ids) == places).sum()


@dataclass(frozen=True, kw_only=True)
class MaskedWords(Objective):
    """Masked words by the masked-LM head, by the cross-entropy over the vocabulary.

    An example's target is a list of (token of its sequence, id of the word there); collated: int64 `[M, 2]`,
    packed positions and ids.

    Attributes:
        vocab_size: Words that the model scores.

    Raises:
        ConfigError: `vocab_size` is below 2.
    """

    vocab_size: int

    def __post_init__(self) -> None:
        check_at_least("vocab_size", self.vocab_size, 2)

    def collate(self, targets: Sequence[Any], lengths: Sequence[int]) -> Tensor:
        check_count(targets, len(lengths), len(targets))
        found = []
        for example, (target, start, length) in enumerate(
            zip(targets, accumulate(lengths, initial=0), lengths)
        ):
            for pair in target:
                place, word = whole_numbers(pair, f"example {example}").tolist()
                if not (0 <= place < length and 0 <= word < self.vocab_size):
                    raise InputError(
                        f"example {example} has the word {word} at token {place}; words must be from 0 to "
                        f"{self.vocab_size - 1}, and tokens from 0 to {length - 1}"
                    )
                found.append((start + place, word))
        return torch.tensor(found, dtype=torch.int64).reshape(-1, 2)

    def weight(self, targets: Tensor) -> float:
        return float(len(targets))

    def loss(
        self, model: nn.Module, input_ids: Tensor, layout: SequenceLayout, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        positions, words = targets.unbind(1)
        return cast(ModernBertForMaskedLM, model).loss(input_ids, layout, positions, words)
