"""What a fine-tuning run begins with: a checkpoint's weights, a head, perhaps adapters."""

from __future__ import annotations

import importlib.util

import torch

from modernbert.errors import BackendError, ConfigError
from modernbert.model.adapters import add_adapter
from modernbert.model.checkpoint import Pretrained
from modernbert.model.config import HeadConfig
from modernbert.model.heads import encoder_of
from modernbert.model.init import initialise
from modernbert.recipes.finetune.settings import FinetuneRun
from modernbert.train.supervised import freeze


def check_packages(run: FinetuneRun) -> None:
    """Make sure, before anything is learned, that what its evaluation needs is there.

    Raises:
        BackendError: A package is not installed.
    """
    names = {"sklearn": "scikit-learn", "scipy": "scipy", "matplotlib": "matplotlib"}
    if run.task == "tag":
        names["seqeval"] = "seqeval"
    for name, package in names.items():
        if importlib.util.find_spec(name) is None:
            raise BackendError(
                f"`{package}` is not installed, which the figures and the report of a run need; run `pip "
                "install 'modernbert[finetune]'`"
            )


def begin(run: FinetuneRun, kind: type[Pretrained], head: HeadConfig | None) -> Pretrained:
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
    if run.adapter is not None:
        add_adapter(model, run.adapter, seed=run.seed)
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
