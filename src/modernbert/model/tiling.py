"""Weights for one size of the model from those of another: tiling (paper 2.2.2) and shrinking (mmBERT)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from modernbert.errors import ConfigError
from modernbert.model.config import EncoderConfig
from modernbert.model.heads import ModernBertForMaskedLM
from modernbert.model.layers import FUSED

_AXES: Mapping[str, tuple[str, ...]] = {
    "tok_embeddings.weight": ("vocabulary", "width"),
    "attn.Wqkv.weight": ("heads", "width"),
    "attn.Wo.weight": ("width", "heads"),
    "mlp.Wi.weight": ("ffn", "width"),
    "mlp.Wo.weight": ("width", "ffn"),
    "head.dense.weight": ("width", "width"),
    "head.dense.bias": ("width",),
    "norm.weight": ("width",),
    "decoder.bias": ("vocabulary",),
}
"""What the rows, and the columns, of a weight count, by the end of its name."""

_LAYER = re.compile(r"(?<=^model\.layers\.)\d+")


def resize(
    model: ModernBertForMaskedLM,
    source: ModernBertForMaskedLM,
    *,
    how: Literal["tile", "shrink"],
    keep_layer_types: bool = False,
) -> None:
    """Give a model the weights of another of the same vocabulary but of another size, in place.

    Values are copied, never scaled or disturbed. Fused weights are resized part by part, heads as wholes.

    Args:
        model: To be filled.
        source: Trained; is not changed.
        how: `tile` puts each tensor into the middle of the larger one and repeats it towards both ends;
            `shrink` takes layers, heads and places in equal strides.
        keep_layer_types: See `layer_map`.

    Raises:
        ConfigError: The sizes do not fit `how`, or vocabularies or the widths of a head differ.
    """
    old, new = source.config, model.config
    _check(old, new, how)
    layers = layer_map(old.layer_types, new.layer_types, keep_types=keep_layer_types)
    origins = {
        "vocabulary": torch.arange(new.vocab_size),
        "width": places(old.hidden_size, new.hidden_size),
        "ffn": places(old.intermediate_size, new.intermediate_size),
        "heads": _spread(places(old.num_attention_heads, new.num_attention_heads), new.head_dim),
    }
    given = dict(source.named_parameters())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            weight = given.get(_LAYER.sub(lambda index: str(layers[int(index[0])]), name))
            if weight is None:  # the attention norm that layer 0 has not: what a norm begins with
                parameter.fill_(1.0)
            else:
                parameter.copy_(_resized(name, weight, origins))


def layer_map(
    source_types: Sequence[str], target_types: Sequence[str], *, keep_types: bool = False
) -> tuple[int, ...]:
    """Say for each layer of the target which layer of the source fills it.

    Layer i is filled by layer `round(i * S / T)`, as published, where global layers may fill local ones.

    Args:
        source_types: Type of each of the source's layers.
        target_types: Type of each of the target's layers.
        keep_types: Take the nearest layer of the same type instead, of two equally near the earlier.

    Raises:
        ConfigError: With `keep_types`, the source has no layer of a type that the target has.
    """
    num_source, num_target = len(source_types), len(target_types)
    if not keep_types:
        return tuple(min(round(i * num_source / num_target), num_source - 1) for i in range(num_target))
    for kind in target_types:
        if kind not in source_types:
            raise ConfigError(
                f"the source has no layer of type `{kind}`, which the target has; it must have one to keep "
                "the types; do not keep them, or choose another source"
            )
    return tuple(
        min(
            (j for j in range(num_source) if source_types[j] == kind),
            key=lambda j: abs(j - i * num_source / num_target),
        )
        for i, kind in enumerate(target_types)
    )


def places(old: int, new: int) -> Tensor:
    """Say for each place of a new axis which place of the old one it copies.

    Args:
        old: Places of the old axis.
        new: Places of the new one. More: the old axis stands in the middle and goes on periodically on both
            sides. Fewer: every `old / new`-th place, from the first on.

    Returns:
        int64 `[new]`.
    """
    if new >= old:
        return (torch.arange(new) - (new - old) // 2) % old
    return torch.arange(new) * old // new


def _spread(heads: Tensor, width: int) -> Tensor:
    """Turn places of heads, each `width` wide, into the places of what they hold."""
    return (heads[:, None] * width + torch.arange(width)).flatten()


def _resized(name: str, weight: Tensor, origins: Mapping[str, Tensor]) -> Tensor:
    axes = next(axes for ending, axes in _AXES.items() if name.endswith(ending))
    num_parts = next((count for ending, count in FUSED.items() if name.endswith(ending)), 1)
    for dim, axis in enumerate(axes):
        parts = weight.chunk(num_parts if dim == 0 else 1, dim)
        weight = torch.cat([part.index_select(dim, origins[axis].to(part.device)) for part in parts], dim)
    return weight


def _check(old: EncoderConfig, new: EncoderConfig, how: str) -> None:
    for key in ("vocab_size", "head_dim"):
        if getattr(old, key) != getattr(new, key):
            raise ConfigError(
                f"`{key}` is {getattr(old, key)} in the source and {getattr(new, key)} in the model; it must "
                "be the same in both; change the model, or choose another source"
            )
    for key in ("hidden_size", "intermediate_size", "num_hidden_layers"):
        was, is_now = getattr(old, key), getattr(new, key)
        if (is_now < was) if how == "tile" else (is_now > was):
            rule = "at least as much" if how == "tile" else "at most as much"
            raise ConfigError(
                f"`{key}` is {was} in the source and {is_now} in the model; to {how} it must be {rule}; "
                f"{'shrink' if how == 'tile' else 'tile'} instead, or choose another source"
            )
