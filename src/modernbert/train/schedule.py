"""Everything that changes during a run, as a pure function of the tokens seen (paper 2.2.2, table 3)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

from modernbert.errors import ConfigError

WARMUP_FLOOR = 1e-10
"""Share of the peak learning rate at which a warm-up starts, as published."""


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A stretch of training between two changes of data, length or RoPE base.

    Attributes:
        name: For reports; differs from the other phases' names.
        tokens: Real tokens after which the phase ends.
        sequence_length: Tokens that a sequence holds at most.
        batch_tokens: Tokens of a full global batch: rows times micro-batches.
        learning_rate: Peak learning rate.
        global_rope_theta: RoPE base of the global layers.
        local_rope_theta: RoPE base of the windowed layers.
        warmup_tokens: Tokens over which the learning rate rises, in a line, to its peak.
        decay: Whether, and how, the learning rate falls at the end.
        decay_tokens: Last tokens of the phase over which it falls; all after the warm-up by default.
        decay_floor: Share of the peak at which the fall ends.
        batch_warmup_start: Tokens of the first batch, whose multiples follow. None: full from the start.
        batch_warmup_tokens: Tokens after which the batch is full. Each smaller size gets as many steps.
        mask_rate: Share of tokens to predict.
        weight_decay: Share of a weight that a step at the peak learning rate takes away.
        mixture: Weight of each source by its name; None: the sources' own weights.
    """

    name: str
    tokens: int
    sequence_length: int
    batch_tokens: int
    learning_rate: float
    global_rope_theta: float
    local_rope_theta: float
    warmup_tokens: int = 0
    decay: Literal["none", "one_minus_sqrt"] = "none"
    decay_tokens: int | None = None
    decay_floor: float = 0.001
    batch_warmup_start: int | None = None
    batch_warmup_tokens: int = 0
    mask_rate: float = 0.3
    weight_decay: float = 1e-5
    mixture: dict[str, float] | None = None

    def __post_init__(self) -> None:
        self._check_ranges()
        self._check_learning_rate()
        self._check_batch()
        self._check_mixture()

    @cached_property
    def decay_start(self) -> int:
        """Tokens of this phase after which the learning rate falls; its end if it does not."""
        if self.decay == "none":
            return self.tokens
        return self.warmup_tokens if self.decay_tokens is None else self.tokens - self.decay_tokens

    @cached_property
    def batch_sizes(self) -> tuple[tuple[int, int], ...]:
        """Tokens of this phase from which a batch size holds, and that size in tokens, from 0 on.

        The borders grow as the sum of the sizes does, so that each smaller size gets as many steps.
        """
        if self.batch_warmup_start is None:
            return ((0, self.batch_tokens),)
        full = self.batch_tokens // self.batch_warmup_start
        borders = [
            self.batch_warmup_tokens * size * (size - 1) // (full * (full - 1)) for size in range(1, full + 1)
        ]
        return tuple((border, self.batch_warmup_start * size) for size, border in enumerate(borders, start=1))

    def learning_rate_after(self, phase_tokens: int) -> float:
        """Return the learning rate of the step that begins after `phase_tokens` of this phase."""
        if phase_tokens < self.warmup_tokens:
            return self.learning_rate * (
                WARMUP_FLOOR + (1 - WARMUP_FLOOR) * phase_tokens / self.warmup_tokens
            )
        if phase_tokens <= self.decay_start:
            return self.learning_rate
        elapsed = min(1.0, (phase_tokens - self.decay_start) / (self.tokens - self.decay_start))
        return self.learning_rate * (self.decay_floor + (1 - self.decay_floor) * (1 - math.sqrt(elapsed)))

    def batch_tokens_after(self, phase_tokens: int) -> int:
        """Return the size of the batch, in tokens, that begins after `phase_tokens` of this phase."""
        return next(size for border, size in reversed(self.batch_sizes) if border <= phase_tokens)

    def num_steps(self) -> int:
        """Count the steps of this phase if each batch is full."""
        return sum(self.steps_of_sizes())

    def steps_of_sizes(self) -> tuple[int, ...]:
        """Count the steps at each of `batch_sizes` if each batch is full."""
        seen, steps = 0, []
        ends = [*(border for border, _ in self.batch_sizes[1:]), self.tokens]
        for (_, size), end in zip(self.batch_sizes, ends, strict=True):
            steps.append(max(0, -(-(end - seen) // size)))
            seen += steps[-1] * size
        return tuple(steps)

    def _check_ranges(self) -> None:
        if not self.name:
            raise ConfigError("a phase has an empty `name`; it must have one, for reports; name it")
        for key in ("tokens", "batch_tokens", "learning_rate", "global_rope_theta", "local_rope_theta"):
            value = getattr(self, key)
            self._require(key, 0 < value < math.inf, "above 0 and finite")
        self._require("sequence_length", self.sequence_length >= 8, "at least 8")
        self._require("mask_rate", 0 < self.mask_rate < 1, "above 0 and below 1")
        self._require("weight_decay", 0 <= self.weight_decay < 1, "at least 0 and below 1")

    def _check_learning_rate(self) -> None:
        longest = self.tokens if self.decay == "none" else self.tokens - 1
        self._require("warmup_tokens", 0 <= self.warmup_tokens <= longest, f"from 0 to {longest}")
        self._require("decay_floor", 0 <= self.decay_floor < 1, "at least 0 and below 1")
        if self.decay_tokens is not None:
            rest = self.tokens - self.warmup_tokens
            self._require("decay_tokens", self.decay != "none", 'absent while `decay` is "none"')
            self._require(
                "decay_tokens",
                0 < self.decay_tokens <= rest,
                f"from 1 to {rest}, the tokens after the warm-up",
            )

    def _check_batch(self) -> None:
        smallest = self.batch_warmup_start
        if smallest is None:
            self._require(
                "batch_warmup_tokens", self.batch_warmup_tokens == 0, "0 without `batch_warmup_start`"
            )
            smallest = self.batch_tokens
        else:
            divides = 0 < smallest < self.batch_tokens and self.batch_tokens % smallest == 0
            rule = f"a proper divisor of `batch_tokens`, {self.batch_tokens}"
            self._require("batch_warmup_start", divides, rule)
            ends = 0 < self.batch_warmup_tokens <= self.tokens
            self._require("batch_warmup_tokens", ends, f"from 1 to `tokens`, {self.tokens}")
        fits = self.sequence_length <= smallest
        self._require("sequence_length", fits, f"at most {smallest}, the tokens of the smallest batch")

    def _check_mixture(self) -> None:
        if self.mixture is None:
            return
        self._require("mixture", bool(self.mixture), "a weight for at least one source, or null")
        for source, weight in self.mixture.items():
            if not 0 < weight < math.inf:
                raise ConfigError(
                    f"phase `{self.name}`: `mixture.{source}` is {weight!r}; it must be above 0 and finite; "
                    "leave the source out to leave it unread"
                )

    def _require(self, key: str, is_right: bool, rule: str) -> None:
        if not is_right:
            raise ConfigError(f"phase `{self.name}`: `{key}` is {getattr(self, key)!r}; it must be {rule}")


@dataclass(frozen=True)
class Clock:
    """How far a run is.

    Attributes:
        phase: Index of the current phase.
        phase_tokens: Real tokens seen in it.
        tokens: Real tokens seen in all.
        step: Optimizer steps taken in all.
    """

    phase: int = 0
    phase_tokens: int = 0
    tokens: int = 0
    step: int = 0

    def after(self, step_tokens: int) -> Clock:
        """Return the clock after one more step, of `step_tokens` real tokens."""
        return Clock(self.phase, self.phase_tokens + step_tokens, self.tokens + step_tokens, self.step + 1)

    def passed(self, every_tokens: int | None, before: Clock) -> bool:
        """Whether a multiple of `every_tokens` lies between an earlier clock and this one; None: never."""
        return every_tokens is not None and before.tokens // every_tokens != self.tokens // every_tokens


@dataclass(frozen=True)
class Setting:
    """What one step needs to know of the schedule.

    Attributes:
        phase_index: Which phase.
        phase: That phase.
        learning_rate: Of this step.
        batch_tokens: Of this step, over all rows and micro-batches.
    """

    phase_index: int
    phase: Phase
    learning_rate: float
    batch_tokens: int


class Schedule:
    """The phases of a run, one after the other.

    Args:
        phases: In order.

    Raises:
        ConfigError: No phase, or two of one name.
    """

    def __init__(self, phases: Sequence[Phase]) -> None:
        self.phases = tuple(phases)
        if not self.phases:
            raise ConfigError("`phases` is empty; it must hold at least one phase")
        names = [phase.name for phase in self.phases]
        for name in names:
            if names.count(name) > 1:
                raise ConfigError(f"two phases are named `{name}`; each name must be its own; rename one")

    @property
    def total_tokens(self) -> int:
        """Real tokens of all phases."""
        return sum(phase.tokens for phase in self.phases)

    def setting(self, clock: Clock) -> Setting | None:
        """Return what the step that begins at `clock` needs, or None if the run is over."""
        clock = self._settle(clock)
        if clock.phase >= len(self.phases):
            return None
        phase, seen = self.phases[clock.phase], clock.phase_tokens
        return Setting(clock.phase, phase, phase.learning_rate_after(seen), phase.batch_tokens_after(seen))

    def advance(self, clock: Clock, step_tokens: int) -> Clock:
        """Return the clock after a step of `step_tokens` real tokens; a phase at its end gives way."""
        return self._settle(self._settle(clock).after(step_tokens))

    def table(self) -> list[dict[str, Any]]:
        """Describe each phase in a row, to check before a run starts; steps are those of full batches."""
        return [
            {
                "phase": phase.name,
                "tokens": phase.tokens,
                "steps": phase.num_steps(),
                "sequence_length": phase.sequence_length,
                "batch_sizes": list(phase.batch_sizes),
                "learning_rate": phase.learning_rate,
                "learning_rate_at_start": phase.learning_rate_after(0),
                "learning_rate_at_end": phase.learning_rate_after(phase.tokens),
                "mask_rate": phase.mask_rate,
                "weight_decay": phase.weight_decay,
                "mixture": phase.mixture,
                "global_rope_theta": phase.global_rope_theta,
                "local_rope_theta": phase.local_rope_theta,
            }
            for phase in self.phases
        ]

    def _settle(self, clock: Clock) -> Clock:
        """Move past phases whose tokens are all seen, also where a resumed run's phase was made shorter."""
        while clock.phase < len(self.phases) and clock.phase_tokens >= self.phases[clock.phase].tokens:
            clock = replace(clock, phase=clock.phase + 1, phase_tokens=0)
        return clock
