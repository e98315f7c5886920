"""`modernbert.load` on an adapter's folder: its base model is found, and the adapter merged in."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch

from modernbert.data.tokenizer import Tokenizer
from modernbert.errors import BackendError, CheckpointError
from modernbert.infer.loading import load
from modernbert.model.adapter_files import save_adapter
from modernbert.model.adapters import AdapterSettings, add_adapter, merged
from modernbert.model.checkpoint import Pretrained
from modernbert.model.config import HeadConfig
from modernbert.model.heads import ModernBertForSequenceClassification

LABELS = ("bad", "fair", "good")
TEXTS = ["the river runs", "France", "a small town " * 30]


@pytest.fixture
def model(folder: Callable[..., Path]) -> Any:
    """A classifier with an adapter, on the base of a masked language model."""
    base = folder("ForMaskedLM")
    model = ModernBertForSequenceClassification.from_pretrained(base, new_head=HeadConfig(labels=LABELS))
    add_adapter(model, AdapterSettings(kind="dora"))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


@pytest.fixture
def adapter(model: Pretrained, folder: Callable[..., Path], tokenizer: Tokenizer, tmp_path: Path) -> Path:
    save_adapter(model, tmp_path, base=folder("ForMaskedLM"))
    tokenizer.save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("backend", ["portable", "auto"])
def test_a_folder(adapter: Path, model: Any, tokenizer: Tokenizer, backend: str, tmp_path: Path) -> None:
    merged(model).save_pretrained(tmp_path / "whole")
    tokenizer.save_pretrained(tmp_path / "whole")
    found = load(adapter, device="cpu", backend=backend)
    expected = load(tmp_path / "whole", device="cpu", backend=backend)
    assert found.architecture == "ModernBertForSequenceClassification"
    assert found.classify(TEXTS) == expected.classify(TEXTS)


def test_without_a_tokenizer_the_bases_is_taken(adapter: Path, tokenizer: Tokenizer) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (adapter / name).unlink()
    assert load(adapter, device="cpu").tokenizer.fingerprint == tokenizer.fingerprint


def test_a_base_on_the_hub(
    model: Any,
    folder: Callable[..., Path],
    tokenizer: Tokenizer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []

    def download(name: str, **given: Any) -> str:
        asked.append((name, given["token"], "adapter_model.safetensors" in given["allow_patterns"]))
        return str(tmp_path if name == "some/adapter" else folder("ForMaskedLM"))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    save_adapter(model, tmp_path, base="some/base")
    tokenizer.save_pretrained(tmp_path)
    encoder = load("some/adapter", device="cpu", token="secret")
    assert encoder.architecture == "ModernBertForSequenceClassification"
    assert asked == [("some/adapter", "secret", True), ("some/base", "secret", False)]


def test_a_base_that_is_gone(model: Any, tokenizer: Tokenizer, tmp_path: Path) -> None:
    save_adapter(model, tmp_path, base=tmp_path / "gone" / "away" / "far")
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"is an adapter, and its base model `.*far` is no"):
        load(tmp_path, device="cpu")


def test_without_peft_the_extra_is_named(adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(BackendError, match=r"run `pip install 'modernbert\[finetune\]'`"):
        load(adapter, device="cpu")
