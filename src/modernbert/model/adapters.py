"""LoRA and DoRA: small matrices that are trained beside the encoder's, which stay as they are; by PEFT.

They are put into a model in place, so that its class, its packed rows and its loss stay what they are.
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from modernbert.errors import BackendError, ConfigError, InputError, did_you_mean
from modernbert.model.checkpoint import Pretrained
from modernbert.model.heads import HEADS, encoder_of
from modernbert.model.student import Student

TARGETS = ("Wqkv", "Wo", "Wi", "attn.Wo", "mlp.Wo")
HEAD_PARTS = ("head", "classifier")
NAME = "default"
"""What PEFT calls the adapter inside a model; files do not have it."""

_TASKS = {
    "ModernBertModel": "FEATURE_EXTRACTION",
    "ModernBertForSequenceClassification": "SEQ_CLS",
    "ModernBertForTokenClassification": "TOKEN_CLS",
    "ModernBertForQuestionAnswering": "QUESTION_ANS",
}
"""PEFT's word for what a model is for, by its class; it has none for the others."""


@dataclass(frozen=True, kw_only=True)
class AdapterSettings:
    """What is trained in place of the encoder's own weights.

    Attributes:
        kind: `lora`: the product of two narrow matrices is added to a matrix. `dora`: and the length of each
            row is trained apart from its direction.
        rank: Width of the narrow matrices.
        alpha: The product is scaled by `alpha / rank`.
        dropout: On what goes into the product, in training.
        targets: Matrices that get an adapter, by the ends of their names: `Wo` is `attn.Wo` and `mlp.Wo`.
        trained: Parts of the task head that are trained as a whole; those that a model has not are left out.

    Raises:
        ConfigError: A number out of range, no target, or an unknown name.
    """

    kind: Literal["lora", "dora"] = "lora"
    rank: int = 16
    alpha: int = 32
    dropout: float = 0.0
    targets: tuple[str, ...] = ("Wqkv", "Wo", "Wi")
    trained: tuple[str, ...] = HEAD_PARTS

    def __post_init__(self) -> None:
        if self.kind not in ("lora", "dora"):
            raise ConfigError(f"`kind` is {self.kind!r}{did_you_mean(str(self.kind), ('lora', 'dora'))}")
        for name in ("rank", "alpha"):
            if getattr(self, name) < 1:
                raise ConfigError(f"`{name}` is {getattr(self, name)}; it must be at least 1")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"`dropout` is {self.dropout}; it must be at least 0 and below 1")
        if not self.targets:
            raise ConfigError(f"`targets` is empty; it must name at least one of: {', '.join(TARGETS)}")
        for key, known in (("targets", TARGETS), ("trained", HEAD_PARTS)):
            for name in getattr(self, key):
                if name not in known:
                    raise ConfigError(f"`{key}` has {name!r}{did_you_mean(str(name), known)}")


def add_adapter(model: Pretrained, settings: AdapterSettings, *, seed: int = 0) -> None:
    """Put an adapter into a model, in place, and freeze everything else. At first it changes no result.

    Args:
        model: Before it is spread over processes, and before an optimizer holds its parameters.
        settings: What is trained.
        seed: The same seed and shape give the same adapter, whatever was drawn before.

    Raises:
        InputError: The model has an adapter already.
        BackendError: PEFT is not installed.
    """
    peft = import_peft()
    config = peft.LoraConfig(
        task_type=_TASKS.get(class_of(model).__name__),
        use_dora=settings.kind == "dora",
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=list(settings.targets),
        modules_to_save=[name for name in settings.trained if hasattr(model, name)] or None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # of the CPU alone, where PEFT draws for any device
        inject(model, config)


def inject(model: Pretrained, config: Any) -> None:
    """Put the adapter that a `peft.LoraConfig` describes into a model, in place.

    Raises:
        InputError: The model has an adapter already.
        BackendError: PEFT is not installed.
        ValueError: PEFT finds nothing in the model that the configuration could mean.
    """
    if is_adapted(model):
        raise InputError(
            "the model has an adapter already; it must have none; merge that one first, or load its base"
        )
    import_peft().inject_adapter_in_model(config, model, adapter_name=NAME)
    encoder = encoder_of(model)
    encoder.draws_in_layers = encoder.draws_in_layers or config.lora_dropout > 0


def is_adapted(model: nn.Module) -> bool:
    """Whether a model holds an adapter."""
    return NAME in _configs(model)


def config_of(model: nn.Module) -> Any:
    """Return the `peft.LoraConfig` of a model's adapter.

    Raises:
        InputError: It has none.
    """
    if not is_adapted(model):
        raise InputError(
            f"the `{type(model).__name__}` has no adapter; it must have one; give it one with `add_adapter`"
        )
    return _configs(model)[NAME]


def adapter_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return what an adapter's file holds: the model's own tensors, under the names that PEFT gives them.

    Raises:
        InputError: The model has no adapter.
    """
    config_of(model)
    # Asked about embeddings, PEFT would look for the base model, even on the network; they are never trained.
    named = import_peft().get_peft_model_state_dict(model, adapter_name=NAME, save_embedding_layers=False)
    return {f"base_model.model.{name}": tensor for name, tensor in named.items()}


def merged(model: Pretrained) -> Pretrained:
    """Return a plain model that computes the same: the adapter is added to the weights that it adapts.

    Args:
        model: With an adapter, whole on this process; is not changed.

    Raises:
        InputError: The model has no adapter.
    """
    config_of(model)
    plain = copy.deepcopy(model)
    for name, whole in _replaced(plain):
        plain.set_submodule(name, whole)
    del plain.peft_config
    encoder = encoder_of(plain)
    encoder.draws_in_layers = encoder.config.attn_out_dropout > 0
    return plain.requires_grad_(True)


def blank_like(model: Pretrained) -> Pretrained:
    """Return a model of the same class, shape and adapter, if it has one, on the meta device."""
    with torch.device("meta"):
        blank = model.blank() if isinstance(model, Student) else class_of(model)(model.config)
        if is_adapted(model):
            inject(blank, copy.deepcopy(config_of(model)))
    return blank


def class_of(model: Pretrained) -> type[Pretrained]:
    """Return the published class of a model, which FSDP gives a class of its own."""
    return next(kind for kind in type(model).__mro__ if kind in HEADS.values())


def import_peft() -> Any:
    """Import PEFT.

    Raises:
        BackendError: It is not installed.
    """
    try:
        return importlib.import_module("peft")
    except ModuleNotFoundError:
        raise BackendError(
            "`peft` is not installed, which adapters need; run `pip install 'modernbert[finetune]'`"
        ) from None


def _configs(model: nn.Module) -> dict[str, Any]:
    """Return what PEFT notes in a model that it has put adapters into, by their names."""
    configs: dict[str, Any] = getattr(model, "peft_config", {})
    return configs


def _replaced(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the name of each part that PEFT has put into a model, and what stands there without it."""
    layers = importlib.import_module("peft.tuners.tuners_utils")
    wrappers = importlib.import_module("peft.utils")
    for name, part in list(model.named_modules()):
        if isinstance(part, layers.BaseTunerLayer):
            part.merge()
            yield name, part.get_base_layer()
        elif isinstance(part, wrappers.ModulesToSaveWrapper):
            yield name, part.modules_to_save[NAME]
