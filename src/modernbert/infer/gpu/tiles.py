"""How the kernels of the fused GPU encoder are cut, by the number of tokens."""

from __future__ import annotations

from typing import NamedTuple

FEW_TOKENS = 4_096
"""Batches up to this size are replayed as graphs: of larger ones a device has more to do than a host."""
SHORT = 1_024
"""In larger batches, sequences beyond this length are left to an attention backend in global layers."""


class Tile(NamedTuple):
    """How a product is cut.

    Attributes:
        rows: Tokens of a tile.
        columns: Outputs of a tile.
        step: Terms of its sums that are loaded at once.
        warps: That work on it.
        stages: Loads on their way.
        programs: Of each multiprocessor, going through all tiles; 0: a program for each tile. `add` has
            such alone.
    """

    rows: int
    columns: int
    step: int
    warps: int
    stages: int
    programs: int = 0


class Cut(NamedTuple):
    """How all steps of a forward pass are cut; `attend` by queries, keys, warps and stages."""

    project: Tile
    add: Tile
    gate: Tile
    attend: tuple[int, int, int, int]


CUTS: tuple[tuple[int, Cut], ...] = (
    (
        128,
        Cut(Tile(64, 32, 128, 4, 4), Tile(64, 32, 256, 4, 3), Tile(64, 64, 128, 4, 3), (64, 64, 4, 2)),
    ),
    (
        1024,
        Cut(Tile(128, 128, 64, 8, 4), Tile(64, 64, 128, 4, 3), Tile(128, 128, 64, 8, 4), (64, 64, 4, 2)),
    ),
    (
        4096,
        Cut(Tile(128, 128, 64, 4, 3), Tile(128, 128, 64, 8, 4), Tile(128, 128, 64, 4, 3), (64, 64, 4, 4)),
    ),
)
"""Up to so many tokens, so: for each step the fastest of some that were timed alone on an H100."""
MANY = Cut(Tile(128, 256, 64, 8, 3, 1), Tile(128, 128, 64, 4, 3), Tile(128, 256, 64, 8, 4, 1), (64, 64, 4, 3))
"""And more."""


def cut(num_tokens: int) -> Cut:
    """Return the cut for so many tokens."""
    return next((chosen for most, chosen in CUTS if num_tokens <= most), MANY)
