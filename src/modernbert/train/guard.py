"""What happens on a bad step: its update is left out, then the run goes back, then it stops."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from modernbert.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class GuardSettings:
    """The rule for steps whose loss or gradient is not finite, or whose loss leaps.

    The update of a bad step is left out; its tokens count as seen. After `skips` bad steps in a row, the next
    one takes the run back to its last checkpoint, from where it goes on with the data that come after the bad
    steps; after `rollbacks` of these from one checkpoint, it stops.

    Attributes:
        skips: Bad steps in a row whose updates are left out.
        rollbacks: How often the run goes back to one checkpoint.
        spike: A loss that is so many standard deviations above its running mean is bad too; null: none is.
        spike_window: Steps over which mean and deviation run; the first ones of a phase are never bad.
    """

    skips: int = 3
    rollbacks: int = 1
    spike: float | None = None
    spike_window: int = 128

    def __post_init__(self) -> None:
        for key, least in (("skips", 0), ("rollbacks", 0), ("spike_window", 2)):
            value = getattr(self, key)
            if value < least:
                raise ConfigError(f"`{key}` is {value}; it must be at least {least}")
        if self.spike is not None and not 0 < self.spike < math.inf:
            raise ConfigError(f"`spike` is {self.spike}; it must be above 0 and finite, or null")


class Guard:
    """Judges each step before its update.

    All ranks give it the same figures, so that all come to the same verdict.

    Attributes:
        rollbacks: How often the run went back to the last checkpoint.
    """

    def __init__(self, settings: GuardSettings) -> None:
        self.settings = settings
        self.restore({})

    def restore(self, state: Mapping[str, Any]) -> None:
        """Judge on as the guard whose `state()` this is; as a new one, if it is empty."""
        self.rollbacks = int(state.get("rollbacks", 0))
        self._bad_in_a_row = int(state.get("bad_in_a_row", 0))
        self._phase = int(state.get("phase", 0))
        self._seen = int(state.get("seen", 0))
        self._mean = float(state.get("mean", 0.0))
        self._variance = float(state.get("variance", 0.0))

    def judge(self, loss: float, gradient_norm: float, phase: int) -> str | None:
        """Return why this step's update must be left out; None to take it.

        Args:
            loss: Of the step, over all ranks.
            gradient_norm: Of the step, over all ranks.
            phase: Index of its phase; another one, another level of the loss.
        """
        if phase != self._phase:
            self._phase, self._seen = phase, 0
        fault = self._fault(loss, gradient_norm)
        if fault is None:
            self._bad_in_a_row = 0
            self._learn(loss)
        else:
            self._bad_in_a_row += 1
        return fault

    @property
    def is_exhausted(self) -> bool:
        """Whether more steps in a row were bad than may be left out."""
        return self._bad_in_a_row > self.settings.skips

    @property
    def may_roll_back(self) -> bool:
        """Whether the run may go back to its last checkpoint once more."""
        return self.rollbacks < self.settings.rollbacks

    def state(self) -> dict[str, Any]:
        """Return what another guard needs to judge on alike; JSON can hold it."""
        return {
            "rollbacks": self.rollbacks,
            "bad_in_a_row": self._bad_in_a_row,
            "phase": self._phase,
            "seen": self._seen,
            "mean": self._mean,
            "variance": self._variance,
        }

    def _fault(self, loss: float, gradient_norm: float) -> str | None:
        if not math.isfinite(loss + gradient_norm):
            return f"its loss is {loss}, its gradient's norm {gradient_norm}; both must be finite"
        if self.settings.spike is None or self._seen < self.settings.spike_window:
            return None
        limit = self._mean + self.settings.spike * math.sqrt(self._variance)
        if loss <= limit:
            return None
        return f"its loss is {loss:.4g}; it must be at most {limit:.4g}, by `guard.spike`"

    def _learn(self, loss: float) -> None:
        """Take a good step's loss into the running mean and variance: plain ones until the window is full."""
        self._seen = min(self._seen + 1, self.settings.spike_window)
        if self._seen == 1:
            self._mean, self._variance = loss, 0.0
            return
        share, distance = 1 / self._seen, loss - self._mean
        self._mean += share * distance
        self._variance = (1 - share) * (self._variance + share * distance * distance)
