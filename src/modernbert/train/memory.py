"""What a training step holds in a GPU's memory, tensor by tensor: bf16 autocast, `varlen` attention.

A formula, not a measurement: it follows what autograd keeps of `model.layers`, `model.heads` and `ops.loss`.
Its test compares it with the graph that autograd really builds; `benchmarks.planner_memory` with a GPU's
counter.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from modernbert.errors import ConfigError, did_you_mean
from modernbert.model.config import EncoderConfig
from modernbert.ops.loss import LOGITS_AT_ONCE
from modernbert.train.parallel import Strategy

FP32, BF16, INT64, MASK = 4, 2, 8, 1
"""Bytes of one number of each kind."""

UNUSABLE_SHARE = 0.06
"""Share of a GPU's memory that no tensor gets: the CUDA context, NCCL's buffers, gaps between tensors."""


@dataclass(frozen=True, kw_only=True)
class OptimizerCost:
    """Numbers that an optimizer holds for each parameter, in fp32.

    Attributes:
        matrices: For the hidden matrices, those of the layers and of the head.
        others: For embedding, norms and bias.
        during_step: Numbers for each parameter besides, while it steps.
    """

    matrices: int
    others: int
    during_step: int


OPTIMIZERS: Mapping[str, OptimizerCost] = {
    "stable_adamw": OptimizerCost(matrices=2, others=2, during_step=2),
    "adamw": OptimizerCost(matrices=2, others=2, during_step=0),
    "muon": OptimizerCost(matrices=1, others=2, during_step=2),
}
"""By name: two running means, or Muon's one."""


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of one GPU at the moment of a step at which most are in use, by what takes them.

    Attributes:
        weights: fp32 weights: this GPU's share, and those gathered from the others; and a teacher's, which
            are bf16 and whole on each GPU.
        gradients: fp32 gradients.
        optimizer: The optimizer's state.
        copies: bf16 copies of the weights.
        activations: What autograd keeps of forward.
        temporary: What comes and goes beside these: logits, the decoder's gradient, the first gradients of
            backward; with little else to hold, what the optimizer takes while it steps.
    """

    weights: int
    gradients: int
    optimizer: int
    copies: int
    activations: int
    temporary: int

    @property
    def peak(self) -> int:
        """Most bytes in use at one time."""
        return sum(vars(self).values())


@dataclass(frozen=True, kw_only=True)
class StepSetup:
    """What of a run decides how much memory a step takes, beside the row.

    Attributes:
        shape: The model's.
        optimizer: A name in `OPTIMIZERS`.
        strategy: How GPUs share the work: `ddp` gives each of them all weights, the others cut the weights
            and the optimizer's state in shards.
        num_shards: GPUs that share one copy of the weights.
        recomputes_layers: Whether each layer keeps its input alone, and is computed again in backward.
        teacher: Shape of the model that it learns from; None: of none.
        learns_hidden: Whether it learns the teacher's hidden states too, through a linear map.

    Raises:
        ConfigError: An unknown optimizer.
    """

    shape: EncoderConfig
    optimizer: str = "stable_adamw"
    strategy: Strategy = "ddp"
    num_shards: int = 1
    recomputes_layers: bool = False
    teacher: EncoderConfig | None = None
    learns_hidden: bool = False

    @property
    def bridge(self) -> int:
        """Parameters of the map to the teacher's hidden states."""
        if self.teacher is None or not self.learns_hidden:
            return 0
        return self.shape.hidden_size * self.teacher.hidden_size

    def __post_init__(self) -> None:
        if self.optimizer not in OPTIMIZERS:
            raise ConfigError(f"`optimizer` is {self.optimizer!r}{did_you_mean(self.optimizer, OPTIMIZERS)}")


def training_memory(setup: StepSetup, *, row_tokens: int, mask_rate: float) -> Memory:
    """Add up the memory of a training step on each GPU.

    Gradients count in full, whatever the strategy: so they stand between a step's micro-batches, after the
    last of which alone the GPUs add them up.

    Args:
        setup: What trains, and how.
        row_tokens: Tokens of one packed row, which is one forward pass.
        mask_rate: Share of them to predict.
    """
    shape, cost = setup.shape, OPTIMIZERS[setup.optimizer]
    shards = 1 if setup.strategy == "ddp" else setup.num_shards
    parameters, matrices = shape.num_parameters(head=True) + setup.bridge, _matrices(shape)
    states = cost.matrices * matrices + cost.others * (parameters - matrices)
    weights, copies, copies_in_backward = _weights(setup, shards)
    num_masked = math.ceil(row_tokens * mask_rate)
    row = _Row(shape, row_tokens, num_masked, setup.recomputes_layers, setup.teacher is not None)
    lesson = _lesson(setup, row_tokens, num_masked)
    moments = (
        lesson.forward,
        copies + row.kept + row.loss + lesson.said,
        copies + row.kept + lesson.distance + row.decoder,
        copies + row.kept + row.scattering,
        copies_in_backward + row.last_feed_forward,
        FP32 * _share(cost.during_step * parameters, shards),
    )
    activations = row.kept + lesson.kept
    return Memory(
        weights=weights + lesson.weights,
        gradients=FP32 * parameters,
        optimizer=FP32 * _share(states, shards),
        copies=copies,
        activations=activations,
        temporary=max(moments) - copies - activations,
    )


def largest_row(setup: StepSetup, memory_bytes: float, *, mask_rate: float, multiple: int = 1024) -> int:
    """Return the most tokens of one row that fit on a GPU.

    Args:
        setup: What trains, and how.
        memory_bytes: Of the GPU; `UNUSABLE_SHARE` of it is not for tensors.
        mask_rate: Share of the tokens to predict.
        multiple: What the result is a multiple of; 0 if not even that fits.
    """
    usable = memory_bytes * (1 - UNUSABLE_SHARE)

    def fits(count: int) -> bool:
        found = training_memory(setup, row_tokens=count * multiple, mask_rate=mask_rate)
        return found.peak <= usable

    low, high = 0, 1
    while fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low * multiple


def layer_tensors(shape: EncoderConfig) -> dict[str, int]:
    """Name what autograd keeps of one layer, each with its bytes a token (paper 2.1).

    The values are a view of queries, keys and values in one tensor, so that all three stay.
    """
    dim, ffn = shape.hidden_size, shape.intermediate_size
    return {
        "input of the attention's norm, fp32": FP32 * dim,
        "input of Wqkv": BF16 * dim,
        "queries, keys and values": 3 * BF16 * dim,
        "rotated queries and keys": 2 * BF16 * dim,
        "cosines and sines, for each of both": 2 * BF16 * shape.head_dim,
        "output of attention": BF16 * dim,
        "log-sums of the scores, fp32": FP32 * shape.num_attention_heads,
        "mask of the dropout": MASK * dim if shape.attn_out_dropout else 0,
        "input of the feed-forward's norm, fp32": FP32 * dim,
        "input of Wi": BF16 * dim,
        "output of Wi": 2 * BF16 * ffn,
        "output of GELU": BF16 * ffn,
        "gated product": BF16 * ffn,
        "means and deviations of both norms, fp32": 4 * FP32,
    }


@dataclass(frozen=True)
class _Row:
    """Bytes of one forward pass and its backward.

    Attributes:
        shape: The model's.
        num_tokens: `T`.
        num_masked: `M`.
        recomputes_layers: Whether layers are computed again in backward.
        has_teacher: Whether a teacher's logits come beside its own.
    """

    shape: EncoderConfig
    num_tokens: int
    num_masked: int
    recomputes_layers: bool
    has_teacher: bool

    @property
    def kept(self) -> int:
        """What autograd keeps of forward. The embedding's norm stands for the one that layer 0 lacks."""
        num_layers = self.shape.num_hidden_layers
        layers = (num_layers + 1) * self._stream if self.recomputes_layers else num_layers * self._layer
        ids = 2 * INT64 * (self.num_tokens + self.num_masked)  # and positions, and labels
        return layers + self._stream + self._head + ids

    @property
    def loss(self) -> int:
        """Features, the decoder's bf16 weight, gradients of both, and twice the logits of a chunk.

        With a teacher, twice those of both models, in chunks of half as many rows.
        """
        dim, models = self.shape.hidden_size, 2 if self.has_teacher else 1
        vocabulary = self.shape.vocab_size
        chunk = min(self.num_masked, max(1, LOGITS_AT_ONCE // (models * vocabulary)))
        features = (FP32 + BF16 + BF16) * self.num_masked * dim
        return 2 * models * FP32 * chunk * vocabulary + features + self.decoder + BF16 * vocabulary * dim

    @property
    def scattering(self) -> int:
        """The gradient of the masked positions, and twice that of all, when one becomes the other.

        The decoder's gradient waits all through backward for the embedding's, which is added to it.
        """
        return self.decoder + 2 * self._stream + FP32 * self.shape.hidden_size * self.num_masked

    @property
    def last_feed_forward(self) -> int:
        """All that is there when backward has reached the last feed-forward's gate.

        The head's activations are gone by then, and a gradient has taken the place of the final norm's input.
        The layer may have been computed again.
        """
        again = self._layer - self._stream if self.recomputes_layers else 0
        gradients = 2 * BF16 * self.shape.intermediate_size * self.num_tokens
        return self.kept - self._head + again + gradients + self.decoder

    @property
    def _layer(self) -> int:
        return sum(layer_tensors(self.shape).values()) * self.num_tokens

    @property
    def _stream(self) -> int:
        """The residual stream, in fp32, and the two numbers a token that a norm keeps beside it."""
        return FP32 * (self.shape.hidden_size + 2) * self.num_tokens

    @property
    def decoder(self) -> int:
        """The gradients of the decoder's weight and bias."""
        return FP32 * self.shape.vocab_size * (self.shape.hidden_size + 1)

    @property
    def _head(self) -> int:
        """Inputs of the head's dense layer, of GELU and, in fp32, of the norm."""
        return ((BF16 + BF16 + FP32) * self.shape.hidden_size + 2 * FP32) * self.num_masked


@dataclass(frozen=True)
class _Lesson:
    """Bytes that a teacher takes; all 0 without one.

    Attributes:
        weights: bf16.
        forward: What comes and goes while it reads a row.
        said: Its features at the masked positions, and its hidden states where these are learnt.
        kept: What autograd keeps of the hidden states' distance.
        distance: That, and the two gradients that its backward adds.
    """

    weights: int = 0
    forward: int = 0
    said: int = 0
    kept: int = 0
    distance: int = 0


def _lesson(setup: StepSetup, num_tokens: int, num_masked: int) -> _Lesson:
    teacher = setup.teacher
    if teacher is None:
        return _Lesson()
    dim, hidden = teacher.hidden_size, BF16 * num_tokens * teacher.hidden_size
    lesson = _Lesson(
        weights=BF16 * teacher.num_parameters(head=True),
        forward=2 * hidden + 4 * BF16 * teacher.intermediate_size * num_tokens,
        said=BF16 * num_masked * dim,
    )
    if not setup.learns_hidden:
        return lesson
    kept = 2 * FP32 * num_tokens * dim + BF16 * num_tokens * setup.shape.hidden_size
    return replace(lesson, said=lesson.said + hidden, kept=kept, distance=kept + 2 * FP32 * num_tokens * dim)


def _weights(setup: StepSetup, shards: int) -> tuple[int, int, int]:
    """Bytes of the fp32 weights, and of the bf16 ones in forward and in backward.

    Shards stand whole for the length of a step: embedding and head in fp32, the layers in bf16.
    """
    shape = setup.shape
    whole = FP32 * _share(shape.num_parameters(head=True) + setup.bridge, shards)
    if shards > 1:
        gathered = FP32 * (shape.vocab_size + shape.hidden_size) * shape.hidden_size
        layers = BF16 * shape.num_hidden_layers * _layer_matrices(shape)
        return whole + gathered, layers, layers
    in_backward = _layer_matrices(shape) if setup.recomputes_layers else _matrices(shape)
    return whole, BF16 * _matrices(shape), BF16 * in_backward


def _matrices(shape: EncoderConfig) -> int:
    """Count the parameters of the hidden matrices."""
    return shape.num_hidden_layers * _layer_matrices(shape) + shape.hidden_size**2


def _layer_matrices(shape: EncoderConfig) -> int:
    """Count the parameters of one layer's matrices."""
    return (4 * shape.hidden_size + 3 * shape.intermediate_size) * shape.hidden_size


def _share(count: int, shards: int) -> int:
    return -(-count // shards)
