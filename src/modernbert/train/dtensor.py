"""Tensors that are split over ranks (FSDP2's `DTensor`): this rank's part, the whole, norms of the whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor, distributed

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def is_split(tensor: Tensor) -> TypeGuard[DTensor]:
    """Whether a tensor knows itself as one of several ranks' parts of a whole."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return False  # and one process need not wait for the import
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


@torch.no_grad()
def local(tensor: Tensor) -> Tensor:
    """Return this rank's part of a tensor, in the same memory; all of it if it is not split."""
    return tensor.to_local() if is_split(tensor) else tensor


@torch.no_grad()
def gather(part: Tensor, like: Tensor) -> Tensor:
    """Return the whole tensor on each rank.

    Args:
        part: This rank's part of it.
        like: A tensor of the whole's shape that is split in the same way.
    """
    if not is_split(like):
        return part
    from torch.distributed.tensor import DTensor

    split = DTensor.from_local(
        part, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )
    return split.full_tensor()


@torch.no_grad()
def placed_like(whole: Tensor, like: Tensor) -> Tensor:
    """Return a tensor that each rank has as a whole, split as `like` is, which may be on another device."""
    if not is_split(like):
        return whole
    from torch.distributed.tensor import distribute_tensor

    # Without a source rank nothing is sent: each cuts its own part out.
    return distribute_tensor(whole.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def whole_norms(norms: list[Tensor], tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return the Euclidean norms of whole tensors; one collective for all that are split alike.

    Args:
        norms: Of this rank's part of each, a scalar.
        tensors: What they are norms of, or others that are split in the same way.
    """
    alike: dict[tuple[Any, ...], list[int]] = {}
    for index, tensor in enumerate(tensors):
        if groups := _groups(tensor):
            alike.setdefault(groups, []).append(index)
    whole = list(norms)
    for groups, indices in alike.items():
        squares = torch.stack([norms[index] for index in indices]).square_()
        for group in groups:
            distributed.all_reduce(squares, group=group)
        for index, norm in zip(indices, squares.sqrt_().unbind(), strict=True):
            whole[index] = norm
    return whole


def _groups(tensor: Tensor) -> tuple[Any, ...]:
    """Return the groups of ranks that hold the other parts of a tensor; none if it is whole."""
    if not is_split(tensor):
        return ()
    mesh = tensor.device_mesh
    return tuple(mesh.get_group(dim) for dim, placed in enumerate(tensor.placements) if placed.is_shard())
