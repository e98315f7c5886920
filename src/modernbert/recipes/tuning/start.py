"""What a run begins with: a checkpoint's weights, some of them frozen, some drawn anew."""

from __future__ import annotations

from typing import TypeVar

import torch

from modernbert.errors import ConfigError
from modernbert.model.checkpoint import Pretrained
from modernbert.model.config import HeadConfig
from modernbert.model.heads import encoder_of
from modernbert.model.init import initialise
from modernbert.recipes.tuning.settings import TuningRun
from modernbert.train.supervised import freeze

Model = TypeVar("Model", bound=Pretrained)


def begin(run: TuningRun, kind: type[Model], head: HeadConfig | None = None) -> Model:
    """Load the checkpoint of a run, and make it what is trained.

    Args:
        run: Its settings.
        kind: The model's class.
        head: What the head becomes; its tensors are kept where they fit. None: the checkpoint's own.

    Raises:
        CheckpointError: Nothing found, or files that are damaged.
        ConfigError: More layers are to be frozen or new than there are, or some both; a dropout out of range.
    """
    torch.manual_seed(run.seed)
    model = kind.from_pretrained(run.model, revision=run.revision, new_head=head, dtype=torch.float32)
    encoder_of(model).backend = run.attention
    if run.tuning.attn_out_dropout is not None:
        encoder_of(model).set_attn_out_dropout(run.tuning.attn_out_dropout)
    _renew(model, run.tuning.new_layers, run.seed)
    freeze(model, run.tuning.frozen_layers)
    both, layers = run.tuning.frozen_layers + run.tuning.new_layers, len(encoder_of(model).layers)
    if both > layers:
        raise ConfigError(
            f"`frozen_layers` and `new_layers` are {both} together; they must be at most the model's "
            f"{layers} layers, as a new layer must be learned"
        )
    return model


def _renew(model: Pretrained, num_layers: int, seed: int) -> None:
    """Draw the weights of the last layers anew."""
    encoder = encoder_of(model)
    most = len(encoder.layers)
    if num_layers > most:
        raise ConfigError(f"`new_layers` is {num_layers}; it must be at most the model's {most} layers")
    renewed = {id(param) for layer in encoder.layers[most - num_layers :] for param in layer.parameters()}
    names = [name for name, param in model.named_parameters() if id(param) in renewed]
    if names:
        initialise(model, seed=seed, names=names)
