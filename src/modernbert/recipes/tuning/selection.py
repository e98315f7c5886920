"""Which of two figures is better."""

from __future__ import annotations

LOWER_IS_BETTER = frozenset({"loss", "log_loss", "calibration_error", "mse", "mae"})
"""Of all other figures, higher is better."""


def is_better(name: str, value: float, other: float) -> bool:
    """Whether `value` of the figure `name` is better than `other`."""
    return cost(name, value) < cost(name, other)


def cost(name: str, value: float) -> float:
    """Return what of the figure `name` is the lower the better."""
    return value if name in LOWER_IS_BETTER else -value
