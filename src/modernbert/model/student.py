"""A masked-LM model while it learns from a larger one (Hinton et al. 2015; Sanh et al. 2019)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from modernbert.layout import SequenceLayout
from modernbert.model.config import EncoderConfig
from modernbert.model.heads import ModernBertForMaskedLM
from modernbert.ops.distillation import linear_distillation
from modernbert.ops.reference import Distilled, Logits


@dataclass(frozen=True, eq=False)
class Lesson:
    """What a teacher makes of a row.

    Attributes:
        logits: At the masked positions, over the student's vocabulary.
        hidden: Its hidden states after the final norm, `[T, D]` of its own width; None: not to be learnt.
    """

    logits: Logits
    hidden: Tensor | None


class Student(ModernBertForMaskedLM):
    """The masked-LM model, and beside it what is trained for the lessons alone.

    Attributes:
        bridge: Linear map from the model's hidden states to the teacher's; None where these are not learnt.
            `save_pretrained` is for the `plain` model, which does not have it.
    """

    def __init__(
        self, config: EncoderConfig, *, bridge_dim: int | None = None, backend: str = "auto"
    ) -> None:
        super().__init__(config, backend=backend)
        self.bridge: nn.Linear | None = None
        if bridge_dim is not None:
            self.bridge = nn.Linear(config.hidden_size, bridge_dim, bias=False)

    @classmethod
    def of(cls, model: ModernBertForMaskedLM, *, bridge_dim: int | None, seed: int) -> Self:
        """Make a student of a model, whose parameters become its own.

        Args:
            model: On any device; not to be used besides.
            bridge_dim: Width of the teacher's hidden states; None: these are not learnt.
            seed: Fixes the bridge.
        """
        with torch.device("meta"):
            student = cls(model.config, bridge_dim=bridge_dim, backend=model.model.backend)
        tensors = model.state_dict()
        if bridge_dim is not None:
            width = model.config.hidden_size
            generator = torch.Generator().manual_seed(seed)
            tensors["bridge.weight"] = torch.randn(bridge_dim, width, generator=generator) * width**-0.5
        student.load_state_dict(tensors, assign=True)
        student.tie_weights()
        return student

    def blank(self) -> Student:
        """Return a student of the same shape on the meta device."""
        with torch.device("meta"):
            return Student(self.config, bridge_dim=None if self.bridge is None else self.bridge.out_features)

    def plain(self) -> ModernBertForMaskedLM:
        """Return the model without its bridge, on the same tensors."""
        with torch.device("meta"):
            model = ModernBertForMaskedLM(self.config, backend=self.model.backend)
        tensors = {name: tensor for name, tensor in self.state_dict().items() if name not in self.beside()}
        model.load_state_dict(tensors, assign=True)
        model.tie_weights()
        return model

    def beside(self) -> dict[str, Tensor]:
        """Return the tensors, by name, that the plain model does not have."""
        return {} if self.bridge is None else {"bridge.weight": self.bridge.weight.detach()}

    def learn(
        self,
        input_ids: Tensor,
        layout: SequenceLayout,
        masked_positions: Tensor,
        labels: Tensor,
        lesson: Lesson,
        *,
        weight: float,
        temperature: float,
    ) -> tuple[Distilled, Tensor]:
        """Compare the model's guesses and hidden states with the labels and with a teacher's.

        Hidden states are those after the final norm, of all tokens, each scaled to length 1: the squared
        distance of Sun et al. (2019) through the learned map of Jiao et al. (2020). Only the last layer's, as
        Ko et al. (2023) found best of all choices of layers.

        Args:
            input_ids: int64 `[T]`, masked.
            layout: Where each sequence lies.
            masked_positions: int64 `[M]`.
            labels: int64 `[M]`, the original ids there.
            lesson: The teacher's, of the same row.
            weight: See `ops.reference.linear_distillation`.
            temperature: See there.

        Returns:
            The losses of the guesses; and the distance of the hidden states, summed over tokens (fp32 scalar;
            0 without a bridge).
        """
        hidden = self.model(input_ids, layout)
        features = self.head(hidden.index_select(0, masked_positions))
        guessed = Logits(features, self.decoder.weight, self.decoder.bias)
        found = linear_distillation(guessed, lesson.logits, labels, weight=weight, temperature=temperature)
        return found, self._distance(hidden, lesson.hidden)

    def _distance(self, hidden: Tensor, taught: Tensor | None) -> Tensor:
        if self.bridge is None or taught is None:
            return torch.zeros((), device=hidden.device)
        crossed, aim = self.bridge(hidden).float(), taught.float()
        lengths = crossed.norm(dim=-1) * aim.norm(dim=-1)
        cosines: Tensor = (crossed * aim).sum(dim=-1) / lengths.clamp_min(1e-6)
        return (2 - 2 * cosines).sum()
