"""The report holds the facts in words and in numbers, the problems, and every reader's verdict."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from modernbert.data.tokenizer import Tokenizer
from modernbert.errors import CheckpointError
from modernbert.infer import sentence_folder
from modernbert.infer.embedding_head import EmbeddingConfig, EmbeddingHead
from modernbert.infer.inspection import inspect_folder
from modernbert.infer.readers import READERS
from modernbert.model.adapter_files import save_adapter
from modernbert.model.adapters import AdapterSettings, add_adapter
from modernbert.model.config import EncoderConfig, HeadConfig
from modernbert.model.heads import ModernBertForSequenceClassification, ModernBertModel
from modernbert.telemetry import human

TOKENIZER = Tokenizer.train(["one town, one river"] * 3, vocab_size=320)
IDS = {f"{role}_token_id": getattr(TOKENIZER, f"{role}_id") for role in ("cls", "sep", "pad")}
CONFIG = EncoderConfig.preset("tiny", vocab_size=TOKENIZER.vocab_size, **IDS)
HEAD = HeadConfig(labels=("bad", "fair", "good"), problem_type="single_label_classification", pooling="cls")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = ModernBertForSequenceClassification(replace(CONFIG, head=HEAD))
    model.to(torch.bfloat16).save_pretrained(tmp_path)
    TOKENIZER.save_pretrained(tmp_path)
    return tmp_path


def test_facts_in_words(folder: Path) -> None:
    rows = {str(row["what"]): row["value"] for row in inspect_folder(folder).rows()}
    number = CONFIG.num_parameters() + 64 * 64 + 64 + 3 * 64 + 3
    special = ", ".join(
        f"[{role.upper()}] {getattr(TOKENIZER, f'{role}_id')}"
        for role in ("cls", "sep", "pad", "mask", "unk")
    )
    assert rows == {
        "architecture": "ModernBertForSequenceClassification",
        "parameters": f"165k ({number:,}) in 30 tensors: bfloat16 329kB",
        "shape": "4 layers, width 64, 2 heads, feed-forward 96, vocabulary 320",
        "context": "8,192 tokens; local layers see 64 on each side",
        "global layers": "0 3",
        "RoPE bases": "global 160,000, local 10,000",
        "labels": "3: bad, fair, good; single_label_classification",
        "head pools": "cls",
        "config.json": "transformers 4.48 and transformers 5",
        "tokenizer": f"320 entries, fits the model; {special}",
    }


def test_facts_for_machines(folder: Path) -> None:
    tree = json.loads(json.dumps(inspect_folder(str(folder)).to_json()))
    assert tree["folder"] == str(folder)
    facts = tree["facts"]
    assert facts["bytes_by_dtype"] == {"bfloat16": 2 * facts["num_parameters"]}
    assert (facts["num_hidden_layers"], facts["global_layers"], facts["window"]) == (4, [0, 3], 64)
    assert (facts["labels"], facts["classifier_pooling"]) == (["bad", "fair", "good"], "cls")
    assert facts["tokenizer"]["special_tokens"]["[MASK]"] == TOKENIZER.mask_id
    assert tree["problems"] == []
    assert [it["reader"] for it in tree["readers"]] == [reader.name for reader in READERS]
    assert tree["readers"][0] == {"reader": "this package", "answer": "yes", "reason": ""}


def test_a_part_of_a_dialect_is_named(folder: Path) -> None:
    settings = json.loads((folder / "config.json").read_text())
    for key in ("global_rope_theta", "local_rope_theta"):  # what transformers 5 leaves out of an older file
        del settings[key]
    (folder / "config.json").write_text(json.dumps(settings))
    assert inspect_folder(folder).to_json()["facts"]["config_dialects"] == [
        "transformers 4.48 in part (global_attn_every_n_layers)",
        "transformers 5",
    ]


def test_sentence_transformers(tmp_path: Path) -> None:
    ModernBertModel(CONFIG).save_pretrained(tmp_path)
    sentence_folder.write(tmp_path, EmbeddingHead(EmbeddingConfig(width=64, normalize=True)))
    report = inspect_folder(tmp_path)
    rows = {str(row["what"]): row["value"] for row in report.rows()}
    assert rows["sentence-transformers"] == "Transformer → Pooling → Normalize"
    assert rows["pooling"] == "mean (keys: older and sentence-transformers 5.4)"
    assert report.to_json()["facts"]["pooling_dialects"] == ["older", "sentence-transformers 5.4"]


@pytest.mark.parametrize(("kind", "word"), [("lora", "LORA"), ("dora", "DoRA")])
def test_an_adapter_alone(kind: Any, word: str, tmp_path: Path) -> None:
    model = ModernBertForSequenceClassification(replace(CONFIG, head=HEAD))
    add_adapter(model, AdapterSettings(kind=kind, rank=4, targets=("Wqkv",)))
    save_adapter(model, tmp_path, base="some/base")
    TOKENIZER.save_pretrained(tmp_path)
    report = inspect_folder(tmp_path)
    number = 4 * 4 * (64 + 192) + (kind == "dora") * 4 * 192 + 64 * 64 + 64 + 3 * 64 + 3
    rows = {str(row["what"]): row["value"] for row in report.rows()}
    words = f"{word}, rank 4, {human(number)} parameters in {12 + 4 * (kind == 'dora')} tensors"
    assert rows["adapter"] == f"{words}, on `some/base`"
    assert rows["architecture"] == "ModernBertForSequenceClassification"
    assert "parameters" not in rows
    tree = report.to_json()
    assert (tree["facts"]["adapter"], tree["facts"]["num_adapter_parameters"]) == ("LORA", number)
    assert (report.exit_code, tree["problems"]) == (0, [])
    assert {verdict.answer for verdict in report.verdicts} >= {"unknown"}
    assert (
        report.verdicts[0].reason
        == "it is an adapter alone, which needs PEFT and its base model, `some/base`"
    )


def test_text(folder: Path) -> None:
    text = inspect_folder(folder).text()
    assert text.startswith(f"{folder}\n  architecture   ModernBertForSequenceClassification\n")
    assert "\n\nReaders\n  this package " in text
    assert "Problems" not in text
    assert all(line == line.rstrip() for line in text.splitlines())


def test_a_damaged_folder(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    report = inspect_folder(folder)
    assert report.exit_code == 1
    assert report.verdicts[0].answer == "no"
    assert "\n\nProblems\n  `" in report.text()
    assert report.to_json()["problems"] == [report.verdicts[0].reason]
    (folder / "config.json").write_text("{")
    assert inspect_folder(folder).rows()[0] == {"what": "architecture", "value": "not named"}


def test_what_does_not_stop_this_package_is_no_failure(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    report = inspect_folder(folder)
    assert report.exit_code == 0
    assert "Problems" in report.text()
    assert report.verdicts[0].reason == "the weights alone: there is no tokenizer"


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is no folder; it must be the folder of a checkpoint"):
        inspect_folder(tmp_path / "none")
