"""Folders of sentence-transformers: theirs read here, ours read there, old readers' keys, damage told."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from modernbert.data.tokenizer import Tokenizer
from modernbert.errors import CheckpointError
from modernbert.infer import sentence_folder
from modernbert.infer.embedding_head import ACTIVATIONS, DenseConfig, EmbeddingConfig, EmbeddingHead
from modernbert.layout import pack
from modernbert.model.config import EncoderConfig
from modernbert.model.encoder import ModernBertModel

TOKENIZER = Tokenizer.train(["the river runs through a small town in France " * 9], vocab_size=320)
TEXTS = ["the river", "a small town", "in France " * 20]
DENSE = (
    DenseConfig(in_features=128, out_features=20, activation="GELU"),
    DenseConfig(in_features=20, out_features=12, bias=False, activation="Identity"),
)
RICH = EmbeddingConfig(
    width=64,
    pooling=("cls", "weighted"),
    include_prompt=False,
    dense=DENSE,
    normalize=True,
    prompts={"query": "river: ", "other": "so: "},
    default_prompt_name="other",
    similarity="dot",
    max_seq_length=40,
    truncate_dim=10,
)
POOLINGS = {
    "cls": "pooling_mode_cls_token",
    "mean": "pooling_mode_mean_tokens",
    "max": "pooling_mode_max_tokens",
    "last": "pooling_mode_lasttoken",
    "weighted": "pooling_mode_weightedmean_tokens",
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder and its tokenizer, as `save_pretrained` leaves them."""
    folder = tmp_path_factory.mktemp("plain")
    settings = {
        "vocab_size": TOKENIZER.vocab_size,
        "pad_token_id": TOKENIZER.pad_id,
        "cls_token_id": TOKENIZER.cls_id,
        "sep_token_id": TOKENIZER.sep_id,
        "max_position_embeddings": 64,
    }
    torch.manual_seed(3)
    ModernBertModel(EncoderConfig.preset("tiny", **settings)).save_pretrained(folder)
    TOKENIZER.save_pretrained(folder, model_max_length=64)
    return folder


@pytest.fixture
def folder(plain: Path, tmp_path: Path) -> Path:
    """A copy of that."""
    return Path(shutil.copytree(plain, tmp_path / "model"))


def embed(folder: Path) -> Any:
    """What a folder makes of the texts, by this package's parts alone."""
    found = sentence_folder.read(folder)
    encoder = ModernBertModel.from_pretrained(found.encoder)
    limit = found.head.config.max_seq_length
    ids, layout = pack([[*ids[: limit - 1], TOKENIZER.sep_id] if limit and len(ids) > limit else ids
                        for ids in TOKENIZER.encode_batch(TEXTS)])  # fmt: skip
    with torch.no_grad():
        return found.head(encoder(ids, layout), layout)[:, : found.head.config.truncate_dim].numpy()


def library(folder: Path) -> Any:
    module = pytest.importorskip("sentence_transformers")
    return module.SentenceTransformer(str(folder), device="cpu", local_files_only=True)


def edit(path: Path, **changes: Any) -> None:
    """Change keys of a JSON file; a value of None removes the key."""
    tree = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in tree.items() if value is not None}))


class TestWhatIsWritten:
    def test_comes_back(self, folder: Path) -> None:
        head = EmbeddingHead(RICH)
        sentence_folder.write(folder, head)
        found = sentence_folder.read(folder)
        assert found.encoder == folder
        assert found.head.config == RICH
        assert not found.head.training
        torch.testing.assert_close(found.head.state_dict(), head.state_dict(), rtol=0, atol=0)

    def test_sentence_transformers_reads(self, folder: Path) -> None:
        sentence_folder.write(folder, EmbeddingHead(RICH))
        theirs = library(folder)
        np.testing.assert_allclose(theirs.encode(TEXTS, prompt=""), embed(folder), atol=1e-5)
        assert theirs.prompts == RICH.prompts
        assert theirs.default_prompt_name == "other"
        assert theirs.similarity_fn_name == "dot"
        assert theirs.max_seq_length == 40

    @pytest.mark.parametrize("activation", ACTIVATIONS)
    def test_sentence_transformers_reads_activations(self, folder: Path, activation: str) -> None:
        dense = (DenseConfig(in_features=64, out_features=5, activation=activation),)
        sentence_folder.write(folder, EmbeddingHead(EmbeddingConfig(width=64, dense=dense)))
        modules = pytest.importorskip("sentence_transformers.sentence_transformer.modules")
        layer = modules.Dense.load(str(folder), subfolder="2_Dense")
        assert type(layer.activation_function) is ACTIVATIONS[activation]

    @pytest.mark.parametrize("mode", POOLINGS)
    def test_older_readers_find_their_keys(self, folder: Path, mode: str) -> None:
        sentence_folder.write(
            folder, EmbeddingHead(EmbeddingConfig(width=64, pooling=(mode,), normalize=True))
        )
        pooling = json.loads((folder / "1_Pooling" / "config.json").read_text())
        assert pooling["word_embedding_dimension"] == 64
        assert [key for key, value in pooling.items() if value is True] == [POOLINGS[mode], "include_prompt"]
        modules = json.loads((folder / "modules.json").read_text())
        assert [module["type"] for module in modules] == [
            f"sentence_transformers.models.{kind}" for kind in ("Transformer", "Pooling", "Normalize")
        ]
        assert [module["path"] for module in modules] == ["", "1_Pooling", "2_Normalize"]
        limits = json.loads((folder / "sentence_bert_config.json").read_text())
        assert limits == {"max_seq_length": 64, "do_lower_case": False}


class TestWhatOthersWrote:
    def test_sentence_transformers(self, folder: Path, tmp_path: Path) -> None:
        """Saved by version 6: its type names, its dialect of pooling, no length but the tokenizer's."""
        pytest.importorskip("sentence_transformers")
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.sentence_transformer import modules

        theirs = SentenceTransformer(
            modules=[
                modules.Transformer(str(folder), max_seq_length=40),
                modules.Pooling(64, ("cls", "weightedmean"), include_prompt=False),
                modules.Dense(128, 20, activation_function=torch.nn.GELU()),
                modules.Dense(20, 12, bias=False, activation_function=None),
                modules.Normalize(),
            ],
            device="cpu",
            prompts={"query": "river: ", "other": "so: "},
            default_prompt_name="other",
            similarity_fn_name="dot",
            truncate_dim=10,
        )
        theirs.save(str(tmp_path / "saved"), create_model_card=False)
        assert sentence_folder.read(tmp_path / "saved").head.config == RICH
        np.testing.assert_allclose(embed(tmp_path / "saved"), theirs.encode(TEXTS, prompt=""), atol=1e-5)

    @pytest.mark.parametrize("mode", POOLINGS)
    def test_the_old_dialect_of_pooling(self, folder: Path, mode: str) -> None:
        sentence_folder.write(folder, EmbeddingHead(EmbeddingConfig(width=64, pooling=(mode,))))
        edit(folder / "1_Pooling" / "config.json", pooling_mode=None, include_prompt=None)
        assert sentence_folder.read(folder).head.config.pooling == (mode,)

    def test_several_poolings(self, folder: Path) -> None:
        for modes in (("cls", "max"), ("max", "cls")):
            sentence_folder.write(folder, EmbeddingHead(EmbeddingConfig(width=64, pooling=modes)))
            assert sentence_folder.read(folder).head.config.pooling == modes
            np.testing.assert_allclose(embed(folder), library(folder).encode(TEXTS), atol=1e-5)
        edit(folder / "1_Pooling" / "config.json", pooling_mode=None)
        assert sentence_folder.read(folder).head.config.pooling == ("cls", "max")

    def test_the_encoder_in_a_folder_of_its_own(self, folder: Path, tmp_path: Path) -> None:
        outer = tmp_path / "outer"
        shutil.copytree(folder, outer / "0_Transformer")
        sentence_folder.write(folder, EmbeddingHead(RICH))
        for name in ("1_Pooling", "2_Dense", "3_Dense", "4_Normalize"):
            shutil.move(folder / name, outer / name)
        shutil.move(folder / "sentence_bert_config.json", outer / "0_Transformer")
        modules = json.loads((folder / "modules.json").read_text())
        modules[0]["path"] = "0_Transformer"
        (outer / "modules.json").write_text(json.dumps(modules))
        found = sentence_folder.read(outer)
        assert found.encoder == outer / "0_Transformer"
        assert found.head.config.max_seq_length == 40
        np.testing.assert_allclose(embed(outer), library(outer).encode(TEXTS), atol=1e-5)

    def test_a_plain_encoder(self, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.INFO):
            found = sentence_folder.read(folder)
        assert found.encoder == folder
        assert found.head.config == EmbeddingConfig(width=64, max_seq_length=64)
        assert "embeddings are the mean over all tokens" in caplog.text

    @pytest.mark.parametrize("kind", ["CrossEncoder", "SparseEncoder"])
    def test_another_kind_of_model(self, folder: Path, kind: str) -> None:
        """As version 6 saves it; the encoder is used, or its own head by whoever loads that."""
        others = {
            "CrossEncoder": [],
            "SparseEncoder": ["sentence_transformers.sparse_encoder.modules.splade_pooling.SpladePooling"],
        }
        modules = [{"type": "sentence_transformers.base.modules.transformer.Transformer", "path": ""}]
        modules += [{"type": other, "path": "1_Other"} for other in others[kind]]
        (folder / "modules.json").write_text(json.dumps(modules))
        (folder / "config_sentence_transformers.json").write_text(json.dumps({"model_type": kind}))
        found = sentence_folder.read(folder)
        assert found.encoder == folder
        assert found.head.config == EmbeddingConfig(width=64, max_seq_length=64)

    def test_a_tokenizer_without_limit(self, folder: Path) -> None:
        sentence_folder.write(folder, EmbeddingHead(EmbeddingConfig(width=64)))
        (folder / "sentence_bert_config.json").unlink()
        edit(folder / "tokenizer_config.json", model_max_length=10**30)
        assert sentence_folder.read(folder).head.config.max_seq_length is None


MODULES, POOLING, FIRST_DENSE = "modules.json", "1_Pooling/config.json", "2_Dense/config.json"


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        (POOLING, {"pooling_mode": "mean_sqrt_len_tokens"}, "pools by `mean_sqrt_len_tokens`, which this"),
        (POOLING, {"pooling_mode": "median"}, "pools by `median`"),
        (
            POOLING,
            {"word_embedding_dimension": None},
            "has `embedding_dimension` None; it must be of type int",
        ),
        (POOLING, {"word_embedding_dimension": 32}, "dense layer 0 takes 128 features; it must take 64"),
        (FIRST_DENSE, {"activation_function": "os.system"}, "has the activation `os.system`"),
        (FIRST_DENSE, {"activation_function": "torch.nn.PReLU"}, "has the activation `torch.nn.PReLU`"),
        (FIRST_DENSE, {"module_input_name": "token_embeddings"}, "a residual, or on token embeddings"),
        (FIRST_DENSE, {"use_residual": True}, "a residual, or on token embeddings"),
        (FIRST_DENSE, {"bias": False}, "has tensors .*; its `config.json` wants"),
        ("sentence_bert_config.json", {"do_lower_case": True}, "has `do_lower_case`"),
        (
            "config_sentence_transformers.json",
            {"similarity_fn_name": "maxsim"},
            "unknown similarity `maxsim`",
        ),
        ("config_sentence_transformers.json", {"default_prompt_name": "no"}, "has no prompt `no`"),
        ("config_sentence_transformers.json", {"prompts": ["a"]}, "it must be of type dict"),
    ],
)
def test_what_is_refused(folder: Path, file: str, changes: dict[str, Any], message: str) -> None:
    sentence_folder.write(folder, EmbeddingHead(RICH))
    edit(folder / file, **changes)
    with pytest.raises(CheckpointError, match=message):
        sentence_folder.read(folder)


@pytest.mark.parametrize(
    ("place", "change", "message"),
    [
        (
            4,
            {"type": "sentence_transformers.models.LSTM"},
            "a module `LSTM`, which this package does not implement",
        ),
        (4, {"type": "custom.Pooling"}, "a module `custom.Pooling`, which this package does not implement"),
        (
            2,
            {"type": "sentence_transformers.models.Normalize"},
            "lists Transformer, Pooling, Normalize, Dense",
        ),
        (1, {"type": "sentence_transformers.models.Normalize"}, "it must list a Transformer, a Pooling"),
        (1, {"path": "../1_Pooling"}, "a module must lie in the folder"),
        (1, {"path": "nowhere"}, "nowhere/config.json` does not exist"),
    ],
)
def test_modules_that_are_refused(folder: Path, place: int, change: dict[str, Any], message: str) -> None:
    sentence_folder.write(folder, EmbeddingHead(RICH))
    modules = json.loads((folder / "modules.json").read_text())
    modules[place].update(change)
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(CheckpointError, match=message):
        sentence_folder.read(folder)


def test_no_modules(folder: Path) -> None:
    (folder / "modules.json").write_text("[]")
    with pytest.raises(CheckpointError, match="lists nothing; it must list a Transformer"):
        sentence_folder.read(folder)


def test_an_encoder_of_another_width(folder: Path) -> None:
    sentence_folder.write(folder, EmbeddingHead(EmbeddingConfig(width=32)))
    with pytest.raises(CheckpointError, match="pools vectors of width 32, but the encoder's are of 64"):
        sentence_folder.read(folder)


def test_a_folder_without_encoder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds no `config.json`"):
        sentence_folder.write(tmp_path, EmbeddingHead(EmbeddingConfig(width=64)))
    assert not list(tmp_path.iterdir())
