"""What a folder says of itself is found, however damaged it is, and what is damaged is said."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from modernbert.data.tokenizer import Tokenizer
from modernbert.infer import sentence_folder
from modernbert.infer.embedding_head import EmbeddingConfig, EmbeddingHead
from modernbert.infer.facts import read_facts
from modernbert.model.adapter_files import save_adapter
from modernbert.model.adapters import AdapterSettings, adapter_tensors, add_adapter
from modernbert.model.config import EncoderConfig
from modernbert.model.heads import ModernBertForMaskedLM, ModernBertModel

TOKENIZER = Tokenizer.train(["one town, one river"] * 3, vocab_size=320)
IDS = {f"{role}_token_id": getattr(TOKENIZER, f"{role}_id") for role in ("cls", "sep", "pad")}
CONFIG = EncoderConfig.preset("tiny", vocab_size=TOKENIZER.vocab_size, **IDS)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    ModernBertForMaskedLM(CONFIG).save_pretrained(tmp_path, max_shard_bytes=200_000)
    TOKENIZER.save_pretrained(tmp_path)
    return tmp_path


class TestWhole:
    def test_facts(self, folder: Path) -> None:
        facts = read_facts(folder)
        assert facts.refusals == facts.remarks == ()
        assert facts.encoder == CONFIG
        assert (facts.architecture, facts.head) == ("ModernBertForMaskedLM", "MaskedLM")
        assert facts.tokenizer is not None
        assert facts.tokenizer.fingerprint == TOKENIZER.fingerprint
        assert sum(tensor.numel() for tensor in facts.tensors.values()) == CONFIG.num_parameters(head=True)
        assert (facts.modules, facts.pooling, facts.onnx, facts.adapter) == ((), None, (), None)

    def test_what_lies_beside_the_model(self, folder: Path) -> None:
        (folder / "onnx").mkdir()
        for name in ("onnx/model.onnx", "model_quantized.onnx"):
            (folder / name).touch()
        (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
        facts = read_facts(folder)
        assert facts.onnx == ("model_quantized.onnx", "onnx/model.onnx")
        assert facts.adapter == {"peft_type": "LORA"}

    def test_an_adapter_alone(self, tmp_path: Path) -> None:
        model = ModernBertForMaskedLM(CONFIG)
        add_adapter(model, AdapterSettings(rank=4))
        save_adapter(model, tmp_path, base="some/base")
        TOKENIZER.save_pretrained(tmp_path)
        facts = read_facts(tmp_path)
        assert facts.refusals == facts.remarks == ()
        assert (facts.encoder, facts.architecture, facts.tensors) == (CONFIG, "ModernBertForMaskedLM", {})
        assert facts.adapter is not None
        assert (facts.adapter["peft_type"], facts.adapter["r"]) == ("LORA", 4)
        assert facts.adapter_tensors.keys() == adapter_tensors(model).keys()

    @pytest.mark.parametrize("pooling", [("mean",), ("cls",), ("cls", "mean")])
    def test_sentence_transformers(self, pooling: tuple[str, ...], tmp_path: Path) -> None:
        ModernBertModel(CONFIG).save_pretrained(tmp_path)
        TOKENIZER.save_pretrained(tmp_path)
        config = EmbeddingConfig(width=CONFIG.hidden_size, pooling=pooling, normalize=True)
        sentence_folder.write(tmp_path, EmbeddingHead(config))
        facts = read_facts(tmp_path)
        assert facts.refusals == facts.remarks == ()
        assert [module.name for module in facts.modules] == ["Transformer", "Pooling", "Normalize"]
        assert facts.pooling_modes == pooling
        assert facts.sentence_settings == {"max_seq_length": 8192, "do_lower_case": False}


def write(name: str, text: str) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        (folder / name).write_text(text)

    return apply


def lose(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def cut(name: str) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])

    return apply


def another_width(folder: Path) -> None:
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "intermediate_size": 100}))


def larger_tokenizer(folder: Path) -> None:
    texts = [f"{a}{b} " * 4 for a in "bcdfghjklm" for b in "aeiouvwxyz"]
    Tokenizer.train(texts, vocab_size=384).save_pretrained(folder)


SHARD = "model-00001-of-00004.safetensors"


class TestDamaged:
    @pytest.mark.parametrize(
        ("damage", "message"),
        [
            (lose("config.json"), "holds no `config.json`"),
            (write("config.json", "{"), "is not valid JSON"),
            (write("config.json", "[]"), "holds no mapping"),
            (write("config.json", '{"model_type": "modernbert", "layer_types": 3}'), "`layer_types`"),
            (lose("model.safetensors.index.json"), "holds neither"),
            (write("model.safetensors.index.json", "{}"), "has no `weight_map`"),
            (lose(SHARD), f"names `{SHARD}`; all shards must be there"),
            (cut(SHARD), "is not a whole safetensors file"),
            (another_width, "does not fit `ModernBertForMaskedLM`"),
            (larger_tokenizer, "the tokenizer has ids up to"),
            (cut("tokenizer.json"), "is not valid JSON"),
        ],
    )
    def test_what_stops_this_package_is_said(
        self, folder: Path, damage: Callable[[Path], None], message: str
    ) -> None:
        damage(folder)
        (refusal, *others) = read_facts(folder).refusals
        assert message in refusal
        assert not others

    @pytest.mark.parametrize(
        ("damage", "message"),
        [
            (lose("tokenizer.json"), "holds no `tokenizer.json`"),
            (write("modules.json", "{}"), "names no modules"),
            (write("modules.json", "["), "is not valid JSON"),
            (write("modules.json", '[{"type": "mine.Own", "path": ""}]'), "has a module `mine.Own`"),
            (write("adapter_config.json", "{"), "is not valid JSON"),
        ],
    )
    def test_what_does_not_is_remarked(
        self, folder: Path, damage: Callable[[Path], None], message: str
    ) -> None:
        damage(folder)
        facts = read_facts(folder)
        assert facts.refusals == ()
        assert any(message in remark for remark in facts.remarks)

    def test_a_pickle_is_named_and_not_opened(self, folder: Path) -> None:
        for path in folder.glob("model*"):
            path.unlink()
        (folder / "pytorch_model.bin").write_bytes(b"no pickle at all")
        facts = read_facts(folder)
        assert facts.pickles == ("pytorch_model.bin",)
        assert "a pickle, which can run any code" in facts.refusals[0]

    def test_ids_that_disagree(self, tmp_path: Path) -> None:
        ModernBertModel(EncoderConfig.preset("tiny")).save_pretrained(tmp_path)
        TOKENIZER.save_pretrained(tmp_path)
        facts = read_facts(tmp_path)
        assert facts.refusals == ()
        assert facts.remarks[2] == (
            f"`config.json` has `pad_token_id` 3, but the tokenizer's [PAD] is {TOKENIZER.pad_id}; both must "
            "be one; correct `config.json`"
        )

    def test_an_adapter(self, tmp_path: Path) -> None:
        model = ModernBertForMaskedLM(CONFIG)
        add_adapter(model, AdapterSettings())
        save_adapter(model, tmp_path, base="")
        TOKENIZER.save_pretrained(tmp_path)
        cut("adapter_model.safetensors")(tmp_path)
        (no_base, damaged) = read_facts(tmp_path).refusals
        assert "`base_model_name_or_path` ''; it must name the model" in no_base
        assert "is not a whole safetensors file" in damaged

    def test_an_empty_folder(self, tmp_path: Path) -> None:
        facts = read_facts(tmp_path)
        assert (facts.settings, facts.encoder, facts.tensors, facts.tokenizer) == ({}, None, {}, None)
        assert len(facts.refusals) == 2
