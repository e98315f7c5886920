"""What a run will take before it starts: steps, operations, memory and hours of each phase."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from modernbert.errors import ConfigError
from modernbert.model.config import EncoderConfig
from modernbert.train.memory import Memory, StepSetup, largest_row, training_memory
from modernbert.train.schedule import Phase

BACKWARD_AND_FORWARD = 3
"""Operations of a training step for each one of its forward pass."""


@dataclass(frozen=True, kw_only=True)
class Machines:
    """The GPUs that a run is planned for.

    Attributes:
        num_gpus: How many.
        memory_bytes: Of each.
        peak_tflops: Dense bf16 products of each, in 10^12 operations a second.
        mfu: Share of these that the model's own operations get.
        tokens_per_second: Of all GPUs together, if measured; `mfu` does not count then.

    Raises:
        ConfigError: A value out of its range.
    """

    num_gpus: int = 1
    memory_bytes: float = 80e9
    peak_tflops: float = 989.4
    mfu: float = 0.3
    tokens_per_second: float | None = None

    def __post_init__(self) -> None:
        speed = self.tokens_per_second
        rules = {
            "num_gpus": (self.num_gpus >= 1, "at least 1"),
            "memory_bytes": (self.memory_bytes > 0, "above 0"),
            "peak_tflops": (self.peak_tflops > 0, "above 0"),
            "mfu": (0 < self.mfu <= 1, "above 0 and at most 1"),
            "tokens_per_second": (speed is None or speed > 0, "above 0"),
        }
        for key, (is_right, rule) in rules.items():
            if not is_right:
                raise ConfigError(f"`{key}` is {getattr(self, key)}; it must be {rule}")


@dataclass(frozen=True, kw_only=True)
class BatchPlan:
    """A stretch of a phase with one batch size.

    Attributes:
        from_tokens: Tokens of the phase after which it begins.
        batch_tokens: Tokens of a batch.
        steps: How many such batches, each full.
        rows: Rows of a batch.
        rows_a_gpu: Rows of a batch that the busiest GPU has; where others have one less, they wait.
    """

    from_tokens: int
    batch_tokens: int
    steps: int
    rows: int
    rows_a_gpu: int


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """What a phase needs of a GPU, and what the GPU would have room for.

    Attributes:
        memory: Of one GPU.
        largest_row: Most tokens of a row that would fit.
    """

    memory: Memory
    largest_row: int


@dataclass(frozen=True, kw_only=True)
class PhasePlan:
    """What one phase will take.

    Attributes:
        phase: Its settings.
        steps: Optimizer steps if each batch is full.
        batches: Its batch sizes, in order.
        learning_rates: At the start, after the warm-up, and at the end.
        flops_a_token: Operations a token, forward and backward, of sequences of full length.
        flops: Of the whole phase.
        keeping: Memory if layers are kept for backward.
        recomputing: Memory if layers are computed again in backward.
        tokens_per_second: Of all GPUs.
        hours: Of training; validating and saving come on top.
    """

    phase: Phase
    steps: int
    batches: tuple[BatchPlan, ...]
    learning_rates: tuple[float, ...]
    flops_a_token: float
    flops: float
    keeping: Footprint
    recomputing: Footprint
    tokens_per_second: float
    hours: float


def plan_phase(phase: Phase, setup: StepSetup, machines: Machines, *, row_tokens: int) -> PhasePlan:
    """Plan one phase.

    Args:
        phase: Its settings.
        setup: What trains, and how.
        machines: What it is planned for.
        row_tokens: Tokens of a row; it divides every batch.
    """
    flops_a_token = training_flops(phase, setup.shape) + teaching_flops(phase, setup.teacher)
    speed = machines.tokens_per_second
    if speed is None:
        speed = machines.num_gpus * machines.peak_tflops * 1e12 * machines.mfu / flops_a_token
    footprints = []
    for recomputes in (False, True):
        one = replace(setup, recomputes_layers=recomputes)
        memory = training_memory(one, row_tokens=row_tokens, mask_rate=phase.mask_rate)
        largest = largest_row(one, machines.memory_bytes, mask_rate=phase.mask_rate)
        footprints.append(Footprint(memory=memory, largest_row=largest))
    rates = (0, phase.warmup_tokens, phase.tokens)
    return PhasePlan(
        phase=phase,
        steps=phase.num_steps(),
        batches=_batches(phase, row_tokens, machines.num_gpus),
        learning_rates=tuple(phase.learning_rate_after(tokens) for tokens in rates),
        flops_a_token=flops_a_token,
        flops=flops_a_token * phase.tokens,
        keeping=footprints[0],
        recomputing=footprints[1],
        tokens_per_second=speed,
        hours=phase.tokens / speed / 3600,
    )


def training_flops(phase: Phase, shape: EncoderConfig) -> float:
    """Count the operations a token of a phase, forward and backward, for sequences of its full length."""
    length = phase.sequence_length
    predictions = round(phase.mask_rate * length)
    return BACKWARD_AND_FORWARD * shape.flops([length], predictions) / length


def teaching_flops(phase: Phase, teacher: EncoderConfig | None) -> float:
    """Count the operations a token of a phase that a teacher's forward pass adds, if there is one."""
    if teacher is None:
        return 0.0
    return training_flops(phase, teacher) / BACKWARD_AND_FORWARD


def fitting_row(phases: Sequence[Phase], largest: int) -> int | None:
    """Find the longest row of at most `largest` tokens that divides every batch and holds every sequence.

    Returns:
        Its tokens, for `micro_batch_tokens`; None if there is none.
    """
    common = math.gcd(*(size for phase in phases for _, size in phase.batch_sizes))
    longest = max(phase.sequence_length for phase in phases)
    rows = (common // count for count in range(1, common // longest + 1) if common % count == 0)
    return next((row for row in rows if row <= largest), None)


def _batches(phase: Phase, row_tokens: int, num_gpus: int) -> tuple[BatchPlan, ...]:
    sizes = zip(phase.batch_sizes, phase.steps_of_sizes(), strict=True)
    return tuple(
        BatchPlan(
            from_tokens=border,
            batch_tokens=size,
            steps=steps,
            rows=size // row_tokens,
            rows_a_gpu=-(-size // (row_tokens * num_gpus)),
        )
        for (border, size), steps in sizes
    )
