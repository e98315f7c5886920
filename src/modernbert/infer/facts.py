"""What a checkpoint's folder says of itself: its small files, and the headers of its weights.

No weight is read and no pickle opened. What is damaged is left out, and said.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from modernbert.data import tokenizer_files
from modernbert.data.tokenizer import Tokenizer
from modernbert.errors import ModernBertError
from modernbert.files import read_json
from modernbert.infer import sentence_folder
from modernbert.model import adapter_files, checkpoint, heads
from modernbert.model.config import EncoderConfig, regular_layer_types

POOLING = "1_Pooling/config.json"
SENTENCE_SETTINGS = "sentence_bert_config.json"
POOLING_KEYS = {
    "cls": "pooling_mode_cls_token",
    "mean": "pooling_mode_mean_tokens",
    "max": "pooling_mode_max_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}
"""The key of each pooling mode in sentence-transformers before 5.4."""

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")

Read = TypeVar("Read")


@dataclass(frozen=True, kw_only=True)
class Module:
    """One module of a sentence-transformers model: its dotted class, its folder and what is set there."""

    type: str
    path: str
    settings: Mapping[str, Any]

    @property
    def name(self) -> str:
        return self.type.rpartition(".")[2]


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known of a checkpoint's folder. What could not be read is None or empty.

    Attributes:
        folder: Where it lies.
        refusals: Why this package cannot load it; empty if it can.
        remarks: What is wrong with it besides.
        settings: The content of `config.json`.
        encoder: The same, as this package understands it.
        architecture: The name of the model's class.
        tensors: The weights, by name: mapped files, of which only the headers were read. Of an adapter alone,
            none.
        pickles: Names of files with weights that are pickles, which are never opened.
        tokenizer: The tokenizer beside the weights.
        modules: Of a sentence-transformers model.
        sentence_settings: The content of `sentence_bert_config.json`; None if there is no such file.
        pooling: The settings of the pooling module; None if there is none.
        onnx: Names of ONNX files.
        adapter: The content of `adapter_config.json`; None if there is no such file.
        adapter_tensors: The adapter's weights, by name, read in the same way.
    """

    folder: Path
    refusals: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    encoder: EncoderConfig | None = None
    architecture: str | None = None
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    pickles: tuple[str, ...] = ()
    tokenizer: Tokenizer | None = None
    modules: tuple[Module, ...] = ()
    sentence_settings: Mapping[str, Any] | None = None
    pooling: Mapping[str, Any] | None = None
    onnx: tuple[str, ...] = ()
    adapter: Mapping[str, Any] | None = None
    adapter_tensors: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def head(self) -> str:
        """What the architecture is for: `MaskedLM`, `SequenceClassification` …; empty for a bare encoder."""
        return (self.architecture or "").partition("For")[2]

    @property
    def has_regular_layers(self) -> bool:
        """Whether every n-th layer is global for some n: all that the first dialect can say."""
        if self.encoder is None:
            return True
        count = self.encoder.num_hidden_layers
        return any(regular_layer_types(count, n) == self.encoder.layer_types for n in range(1, count + 1))

    @property
    def pooling_modes(self) -> tuple[str, ...]:
        """Modes of the pooling module, in either dialect."""
        settings = self.pooling or {}
        modes = settings.get("pooling_mode")
        if modes is None:
            return tuple(mode for mode, key in POOLING_KEYS.items() if settings.get(key))
        return tuple(map(str, modes)) if isinstance(modes, list) else (str(modes),)


def read_facts(folder: Path) -> Facts:
    """Read what the folder's files say of the model, and note what is wrong with them."""
    refusals, remarks = _Problems(), _Problems()
    settings = refusals.attempt(lambda: _settings(folder / checkpoint.CONFIG)) or {}
    encoder = refusals.attempt(lambda: checkpoint.read_config(folder))
    tensors, adapter_tensors = _weights(folder, refusals)
    kind = refusals.attempt(lambda: heads.class_of(folder)) if encoder else None
    if encoder and tensors and kind:
        refusals.attempt(lambda: _check_loads(kind, encoder, tensors, folder))
    tokenizer = _tokenizer(folder, encoder, refusals, remarks)
    modules = _modules(folder, remarks)
    if modules and encoder:
        remarks.attempt(lambda: sentence_folder.read(folder))
    return Facts(
        folder=folder,
        refusals=tuple(refusals),
        settings=settings,
        encoder=encoder,
        architecture=_architecture(settings, kind),
        tensors=tensors,
        pickles=_names(folder, *_PICKLES),
        tokenizer=tokenizer,
        modules=modules,
        sentence_settings=_optional(folder / SENTENCE_SETTINGS, remarks),
        pooling=_pooling(folder, modules, remarks),
        onnx=_names(folder, "*.onnx", "onnx/*.onnx"),
        adapter=_optional(folder / checkpoint.ADAPTER_CONFIG, remarks),
        adapter_tensors=adapter_tensors,
        remarks=tuple(remarks),
    )


class _Problems(list[str]):
    """Messages of what failed, each once."""

    def attempt(self, read: Callable[[], Read]) -> Read | None:
        """Return what `read` returns; of its error, note the message and return None."""
        try:
            return read()
        except (ModernBertError, OSError) as error:
            if str(error) not in self:
                self.append(str(error))
            return None


def _weights(folder: Path, refusals: _Problems) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:
    """Return the weights, and those of an adapter; an adapter alone needs a base model that it names."""
    whole: Mapping[str, Tensor] = {}
    if adapter_files.is_adapter(folder):
        refusals.attempt(lambda: adapter_files.base_of(folder))
    else:
        whole = refusals.attempt(lambda: checkpoint.read_tensors(folder)) or {}
    is_there = (folder / checkpoint.ADAPTER_WEIGHTS).is_file()
    adapter = refusals.attempt(lambda: adapter_files.read_adapter(folder)) if is_there else None
    return whole, adapter or {}


def _settings(path: Path) -> Mapping[str, Any]:
    tree = read_json(path) if path.is_file() else {}  # that it is missing, `read_config` says better
    return tree if isinstance(tree, Mapping) else {}


def _architecture(settings: Mapping[str, Any], kind: type[checkpoint.Pretrained] | None) -> str | None:
    """Return the name that the file gives, also of what this package lacks; or else what the tensors fit."""
    named = settings.get("architectures")
    if isinstance(named, list) and named:
        return str(named[0])
    return None if kind is None else kind.__name__


def _optional(path: Path, remarks: _Problems) -> Mapping[str, Any] | None:
    return remarks.attempt(lambda: _settings(path)) if path.is_file() else None


def _check_loads(
    kind: type[checkpoint.Pretrained], encoder: EncoderConfig, tensors: Mapping[str, Tensor], folder: Path
) -> None:
    """Load the checkpoint without its numbers: the loader itself says what does not fit."""
    with torch.device("meta"):
        model = kind(encoder)
    checkpoint.load(model, tensors, source=checkpoint.weights_file(folder), device="meta")


def _tokenizer(
    folder: Path, encoder: EncoderConfig | None, refusals: _Problems, remarks: _Problems
) -> Tokenizer | None:
    path = folder / tokenizer_files.TOKENIZER
    if not path.is_file():
        remarks.append(f"`{folder}` holds no `{path.name}`; without it no text can be read; put it there")
        return None
    tokenizer = refusals.attempt(lambda: Tokenizer.from_file(path))
    if tokenizer and encoder:
        refusals.attempt(lambda: tokenizer.check_fits(encoder.vocab_size))
        for role in ("cls", "sep", "pad"):
            ours, theirs = getattr(encoder, f"{role}_token_id"), getattr(tokenizer, f"{role}_id")
            if ours != theirs:
                remarks.append(
                    f"`config.json` has `{role}_token_id` {ours}, but the tokenizer's "
                    f"{tokenizer.token(theirs)} is {theirs}; both must be one; correct `config.json`"
                )
    return tokenizer


def _modules(folder: Path, remarks: _Problems) -> tuple[Module, ...]:
    path = folder / sentence_folder.MODULES
    tree = remarks.attempt(lambda: read_json(path)) if path.is_file() else None
    entries = [entry for entry in tree if isinstance(entry, Mapping)] if isinstance(tree, list) else []
    if tree is not None and not entries:
        remarks.append(f"`{path}` names no modules; it must be a list of them; write it again")
    modules = []
    for entry in entries:
        kind, place = str(entry.get("type", "")), str(entry.get("path", ""))
        settings = _optional(folder / place / "config.json", remarks) if place else None
        modules.append(Module(type=kind, path=place, settings=settings or {}))
    return tuple(modules)


def _pooling(folder: Path, modules: tuple[Module, ...], remarks: _Problems) -> Mapping[str, Any] | None:
    """Return the pooling module's settings; some readers take those in its usual place without a list."""
    listed = [module.settings for module in modules if module.name == "Pooling"]
    return listed[0] if listed else _optional(folder / POOLING, remarks)


def _names(folder: Path, *patterns: str) -> tuple[str, ...]:
    found = [path for pattern in patterns for path in folder.glob(pattern)]
    return tuple(sorted(path.relative_to(folder).as_posix() for path in found))
