"""Initial weights: the `full_megatron` method (paper appendix A; reference 1.6)."""

from __future__ import annotations

import torch
from torch import nn

from modernbert.model.encoder import ModernBertModel


def initialise(model: nn.Module, *, seed: int) -> None:
    """Draw all weights anew, in place.

    Truncated normals of mean 0: `initializer_range` wide for the embedding and for layers that read
    the residual stream (Wqkv, Wi, the head's dense); divided by sqrt(2 * layers) for those that write
    to it (both Wo). Norm weights are 1, biases 0.

    Args:
        model: An encoder, or an encoder with a head.
        seed: The same seed and shape give the same weights, whatever was drawn before.
    """
    encoder = next(module for module in model.modules() if isinstance(module, ModernBertModel))
    config = encoder.config
    generator = torch.Generator(device=encoder.final_norm.weight.device).manual_seed(seed)
    narrow = config.initializer_range / (2 * config.num_hidden_layers) ** 0.5
    for name, parameter in model.named_parameters():
        with torch.no_grad():
            if name.endswith(".bias"):
                parameter.zero_()
            elif parameter.ndim == 1:
                parameter.fill_(1.0)
            else:
                std = narrow if name.endswith(".Wo.weight") else config.initializer_range
                cut = config.initializer_cutoff_factor * std
                nn.init.trunc_normal_(parameter, std=std, a=-cut, b=cut, generator=generator)
