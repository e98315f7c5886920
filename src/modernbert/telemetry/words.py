"""How figures are written in progress and tables."""

from __future__ import annotations

from collections.abc import Mapping


def human(number: float) -> str:
    """Write a number in three digits with k, M, G or T."""
    number = float(f"{number:.3g}")  # first, so that 999,999 is 1M
    for power, letter in ((12, "T"), (9, "G"), (6, "M"), (3, "k")):
        if abs(number) >= 10**power:
            return f"{number / 10**power:.3g}{letter}"
    return f"{number:.3g}"


def beside(facts: Mapping[str, object]) -> str:
    """Write facts as they stand beside a progress."""
    return "  ".join(f"{name} {value}" for name, value in facts.items())
