"""Say what a checkpoint is, and which tools load it: from its small files and the headers of its weights.

A damaged folder is described as far as it goes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from modernbert.data.tokenizer import Tokenizer
from modernbert.errors import CheckpointError
from modernbert.infer.facts import Facts, read_facts
from modernbert.infer.readers import Verdict, judge
from modernbert.model.config import GLOBAL, EncoderConfig
from modernbert.telemetry import human

_FIRST_DIALECT = ("global_attn_every_n_layers", "global_rope_theta", "local_rope_theta")
_SECOND_DIALECT = ("layer_types", "rope_parameters")


@dataclass(frozen=True, kw_only=True)
class Report:
    """What was found out about a checkpoint."""

    facts: Facts
    verdicts: tuple[Verdict, ...]

    @property
    def exit_code(self) -> int:
        """1 if this package cannot load it, else 0."""
        return 1 if self.facts.refusals else 0

    def rows(self) -> list[dict[str, object]]:
        """Return the facts, one a row, for a table."""
        return [{"what": what, "value": value} for what, value in _described(self.facts)]

    def verdict_rows(self) -> list[dict[str, object]]:
        """Return the verdicts, one a row, for a table."""
        return [{"reader": v.reader, "loads it": v.answer, "reason": v.reason} for v in self.verdicts]

    def to_json(self) -> dict[str, Any]:
        """Return all of it as plain values."""
        facts = self.facts
        return {
            "folder": str(facts.folder),
            "facts": dict(_measured(facts)),
            "problems": [*facts.refusals, *facts.remarks],
            "readers": [vars(verdict) for verdict in self.verdicts],
        }

    def text(self) -> str:
        """Write it for people: facts, problems, verdicts."""
        lines = [str(self.facts.folder), *_columns(self.rows())]
        problems = [*self.facts.refusals, *self.facts.remarks]
        lines += ["", "Problems", *(f"  {problem}" for problem in problems)] if problems else []
        return "\n".join([*lines, "", "Readers", *_columns(self.verdict_rows())])


def inspect_folder(folder: str | Path) -> Report:
    """Find out what a checkpoint is and which tools load it.

    Args:
        folder: Of a model, in the published form; may be damaged or incomplete.

    Raises:
        CheckpointError: There is no such folder.
    """
    path = Path(folder).expanduser()
    if not path.is_dir():
        raise CheckpointError(
            f"`{folder}` is no folder; it must be the folder of a checkpoint; check the path"
        )
    facts = read_facts(path)
    return Report(facts=facts, verdicts=judge(facts))


def _measured(facts: Facts) -> Iterator[tuple[str, Any]]:
    """Yield the facts as plain values, for machines."""
    yield "architecture", facts.architecture
    if facts.tensors:
        yield "num_parameters", _num_parameters(facts.tensors)
        yield "num_tensors", len(facts.tensors)
        yield "bytes_by_dtype", dict(_bytes_by_dtype(facts.tensors))
    if facts.encoder:
        yield from _shape(facts.encoder)
    yield "config_dialects", _dialects(facts.settings)
    yield "tokenizer", facts.tokenizer and _tokenizer_facts(facts.tokenizer, facts.encoder)
    yield "modules", [{"type": module.type, "path": module.path} for module in facts.modules]
    yield "pooling", list(facts.pooling_modes)
    yield "pooling_dialects", _pooling_dialects(facts.pooling)
    yield "onnx", list(facts.onnx)
    yield "adapter", facts.adapter and facts.adapter.get("peft_type", "unknown")
    if facts.adapter_tensors:
        yield "num_adapter_parameters", _num_parameters(facts.adapter_tensors)
    yield "pickles", list(facts.pickles)


def _shape(encoder: EncoderConfig) -> Iterator[tuple[str, Any]]:
    for name in (
        "num_hidden_layers",
        "hidden_size",
        "num_attention_heads",
        "intermediate_size",
        "vocab_size",
    ):
        yield name, getattr(encoder, name)
    yield "context", encoder.max_position_embeddings
    yield "window", encoder.window
    yield "global_layers", [i for i, kind in enumerate(encoder.layer_types) if kind == GLOBAL]
    yield "global_rope_theta", encoder.global_rope_theta
    yield "local_rope_theta", encoder.local_rope_theta
    yield "labels", list(encoder.head.labels)
    yield "problem_type", encoder.head.problem_type
    yield "classifier_pooling", encoder.head.pooling


def _described(facts: Facts) -> Iterator[tuple[str, str]]:
    """Yield the facts in words, for people."""
    yield "architecture", facts.architecture or "not named"
    if facts.tensors:
        number = _num_parameters(facts.tensors)
        sizes = ", ".join(f"{dtype} {human(size)}B" for dtype, size in _bytes_by_dtype(facts.tensors).items())
        yield "parameters", f"{human(number)} ({number:,}) in {len(facts.tensors)} tensors: {sizes}"
    if facts.encoder:
        yield from _described_shape(facts.encoder, facts.head)
    yield "config.json", " and ".join(_dialects(facts.settings)) or "neither dialect's keys"
    if facts.tokenizer:
        it = _tokenizer_facts(facts.tokenizer, facts.encoder)
        special = ", ".join(f"{token} {id}" for token, id in it["special_tokens"].items())
        fits = {True: "fits the model", False: "too large for the model", None: "the model is unknown"}
        yield "tokenizer", f"{it['vocab_size']:,} entries, {fits[it['fits']]}; {special}"
    if facts.modules:
        yield "sentence-transformers", " → ".join(module.name for module in facts.modules)
    if facts.pooling is not None:
        dialects = " and ".join(_pooling_dialects(facts.pooling)) or "none"
        yield "pooling", f"{' and '.join(facts.pooling_modes) or 'not said'} (keys: {dialects})"
    for what, names in (("ONNX", facts.onnx), ("pickles", facts.pickles)):
        if names:
            yield what, ", ".join(names)
    if facts.adapter is not None:
        yield "adapter", _adapter_in_words(facts.adapter, facts.adapter_tensors)


def _described_shape(encoder: EncoderConfig, head: str) -> Iterator[tuple[str, str]]:
    it = dict(_shape(encoder))
    yield (
        "shape",
        f"{it['num_hidden_layers']} layers, width {it['hidden_size']}, {it['num_attention_heads']} heads, "
        f"feed-forward {it['intermediate_size']}, vocabulary {it['vocab_size']:,}",
    )
    yield "context", f"{it['context']:,} tokens; local layers see {it['window']} on each side"
    yield "global layers", " ".join(map(str, it["global_layers"])) or "none"
    yield "RoPE bases", f"global {it['global_rope_theta']:,.0f}, local {it['local_rope_theta']:,.0f}"
    if head in ("SequenceClassification", "TokenClassification"):
        names = ", ".join(it["labels"][:8]) + (" …" if len(it["labels"]) > 8 else "")
        yield "labels", f"{len(it['labels'])}: {names}; {it['problem_type'] or 'problem type not said'}"
    if head in ("SequenceClassification", "MultipleChoice"):
        yield "head pools", it["classifier_pooling"]


def _adapter_in_words(settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    kind = "DoRA" if settings.get("use_dora") else str(settings.get("peft_type", "unknown"))
    parts = [kind]
    if "r" in settings:
        parts.append(f"rank {settings['r']}")
    if tensors:
        parts.append(f"{human(_num_parameters(tensors))} parameters in {len(tensors)} tensors")
    if settings.get("base_model_name_or_path"):
        parts.append(f"on `{settings['base_model_name_or_path']}`")
    return ", ".join(parts)


def _num_parameters(tensors: Mapping[str, Tensor]) -> int:
    """Count parameters; the tied decoder's weight, which some files repeat, is the embedding's."""
    return sum(tensor.numel() for name, tensor in tensors.items() if name != "decoder.weight")


def _bytes_by_dtype(tensors: Mapping[str, Tensor]) -> Counter[str]:
    sizes: Counter[str] = Counter()
    for tensor in tensors.values():
        sizes[str(tensor.dtype).removeprefix("torch.")] += tensor.nbytes
    return sizes


def _dialects(settings: Mapping[str, Any]) -> list[str]:
    """Name the dialects of which the file has every key, or of a part of the keys, which ones."""
    found = []
    for name, keys in (("transformers 4.48", _FIRST_DIALECT), ("transformers 5", _SECOND_DIALECT)):
        present = [key for key in keys if key in settings]
        if present:
            found.append(name if len(present) == len(keys) else f"{name} in part ({', '.join(present)})")
    return found


def _pooling_dialects(pooling: Mapping[str, Any] | None) -> list[str]:
    keys = (pooling or {}).keys()
    older = any(key.startswith("pooling_mode_") for key in keys)
    return [*(["older"] if older else []), *(["sentence-transformers 5.4"] if "pooling_mode" in keys else [])]


def _tokenizer_facts(tokenizer: Tokenizer, encoder: EncoderConfig | None) -> dict[str, Any]:
    ids = (tokenizer.cls_id, tokenizer.sep_id, tokenizer.pad_id, tokenizer.mask_id, tokenizer.unk_id)
    return {
        "vocab_size": tokenizer.vocab_size,
        "special_tokens": {tokenizer.token(id): id for id in ids if id is not None},
        "fits": tokenizer.vocab_size <= encoder.vocab_size if encoder else None,
    }


def _columns(rows: list[dict[str, object]]) -> list[str]:
    """Lay rows out in columns, all but the last of equal width."""
    cells = [[str(value) for value in row.values()] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    padded = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in cells]
    return [("  " + "  ".join(row)).rstrip() for row in padded]
