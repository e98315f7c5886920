"""Sparse encoders against sentence-transformers': vectors, folders both ways, inference-free queries."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from modernbert.data.tokenizer import Tokenizer
from modernbert.errors import CheckpointError, ConfigError, InputError
from modernbert.infer import sparse_tasks
from modernbert.infer.sparse import SparseEncoder

library = pytest.importorskip("sentence_transformers")
pytest.importorskip("scipy")

TEXTS = ["the river", "", "a small town runs through France. " * 30, "capital", "the the town"]


def plain(checkpoint: Path, activation: str = "relu", **options: Any) -> Any:
    modules = library.sparse_encoder.modules
    transformer = modules.Transformer(str(checkpoint), transformer_task="fill-mask")
    pooling = modules.SpladePooling("max", activation_function=activation)
    return library.SparseEncoder(modules=[transformer, pooling], device="cpu", **options)


def routed(checkpoint: Path) -> Any:
    """With queries that need no model, and a weight of 0 among theirs."""
    modules = library.sparse_encoder.modules
    transformer, pooling = plain(checkpoint)
    weights = torch.arange(384).float() / 100
    static = modules.SparseStaticEmbedding(tokenizer=transformer.tokenizer, weight=weights, frozen=True)
    router = library.base.modules.Router.for_query_document([static], [transformer, pooling])
    return library.SparseEncoder(modules=[router], device="cpu", prompts={"query": "of "})


@pytest.fixture(scope="module", params=["plain", "log1p_relu", "prompts", "routed"])
def theirs(request: Any, checkpoint: Path) -> Any:
    if request.param == "prompts":
        prompts = {"query": "of the ", "document": "a ", "other": "river "}
        return plain(checkpoint, prompts=prompts, max_active_dims=5, default_prompt_name="other")
    if request.param == "routed":
        return routed(checkpoint)
    return plain(checkpoint, activation=request.param.replace("plain", "relu"))


def dense(vectors: Any) -> Any:
    """Of a torch sparse tensor or of a CSR matrix."""
    return vectors.to_dense().numpy() if isinstance(vectors, torch.Tensor) else vectors.toarray()


def assert_same(ours: SparseEncoder, theirs: Any) -> None:
    for role in ("encode_query", "encode_document", "encode"):
        found = getattr(ours, role)(TEXTS)
        assert (found.format, found.dtype, found.shape) == ("csr", np.float32, (5, 384))
        assert found.has_canonical_format
        assert np.all(found.data > 0)
        assert 0 < found.nnz < 0.9 * np.prod(found.shape)
        np.testing.assert_allclose(found.toarray(), dense(getattr(theirs, role)(TEXTS)), atol=1e-5, rtol=1e-5)
    queries, documents = ours.encode_query(TEXTS), ours.encode_document(TEXTS)
    expected = theirs.similarity(theirs.encode_query(TEXTS), theirs.encode_document(TEXTS))
    np.testing.assert_allclose(ours.similarity(queries, documents), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backend", ["auto", "portable"])
def test_theirs_loads_here_and_ours_there(theirs: Any, backend: str, tmp_path: Path) -> None:
    theirs.save_pretrained(str(tmp_path / "theirs"))
    ours = SparseEncoder.load(tmp_path / "theirs", device="cpu", backend=backend)
    assert_same(ours, theirs)
    if backend == "auto":
        return
    ours.save_pretrained(tmp_path / "ours")
    again = library.SparseEncoder(str(tmp_path / "ours"), device="cpu", local_files_only=True)
    assert str(again) == str(theirs).replace("'embedding_dimension': None", "'embedding_dimension': 384")
    assert again.max_active_dims == theirs.max_active_dims
    assert again.prompts == theirs.prompts
    assert again.max_seq_length == theirs.max_seq_length
    assert_same(SparseEncoder.load(tmp_path / "ours", device="cpu"), again)


def test_a_bare_checkpoint_is_pooled_by_default(checkpoint: Path) -> None:
    assert_same(
        SparseEncoder.load(checkpoint, device="cpu"),
        library.SparseEncoder(str(checkpoint), device="cpu", local_files_only=True),
    )


@pytest.fixture(scope="module")
def ours(checkpoint: Path) -> SparseEncoder:
    return SparseEncoder.load(checkpoint, device="cpu", backend="portable")


class TestUse:
    def test_one_text_none_and_an_iterator(self, ours: SparseEncoder) -> None:
        assert ours.encode_document("the river").shape == (1, 384)
        assert ours.encode_document([]).shape == (0, 384)
        assert ours.encode_document(text for text in TEXTS).shape == (5, 384)

    def test_what_is_no_string(self, ours: SparseEncoder) -> None:
        with pytest.raises(InputError, match="input 1 is 7 \\(int\\); it must be a string"):
            ours.encode_document(["a", 7])  # type: ignore[list-item]

    def test_vectors_come_in_parts(self, ours: SparseEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
        whole = ours.encode_document(TEXTS)
        monkeypatch.setattr(sparse_tasks, "VECTORS_AT_ONCE", 2)
        np.testing.assert_allclose(ours.encode_document(TEXTS).toarray(), whole.toarray(), atol=1e-5)

    def test_max_active_dims(self, ours: SparseEncoder) -> None:
        whole, few = ours.encode_document(TEXTS), ours.encode_document(TEXTS, max_active_dims=3)
        assert np.diff(few.indptr).tolist() == [3] * 5
        for row, kept in zip(whole, few, strict=True):
            assert sorted(row.data)[-3:] == pytest.approx(sorted(kept.data), abs=1e-5)
        with pytest.raises(InputError, match="`max_active_dims` is 0; it must be at least 1"):
            ours.encode_document(TEXTS, max_active_dims=0)

    def test_decode(self, ours: SparseEncoder, checkpoint: Path) -> None:
        vectors = ours.encode_document(TEXTS)
        theirs = library.SparseEncoder(str(checkpoint), device="cpu", local_files_only=True)
        for index, row in enumerate(vectors):
            expected = theirs.decode(theirs.encode_document(TEXTS)[index], top_k=4)
            found = ours.decode(row, top_k=4)
            assert [token for token, _ in found] == [token for token, _ in expected]
            assert [weight for _, weight in found] == pytest.approx(
                [weight for _, weight in expected], rel=1e-4
            )
        assert len(ours.decode(vectors[0])) == vectors[0].nnz
        with pytest.raises(InputError, match=r"shape \[5, 384\]; it must be one row, \[1, 384\]"):
            ours.decode(vectors)
        with pytest.raises(InputError, match="`top_k` is 0"):
            ours.decode(vectors[0], top_k=0)

    def test_idf(self, ours: SparseEncoder, tmp_path: Path) -> None:
        model = ours.with_idf(["the river", "the town", "the the capital"])
        weights = dict(model.decode(model.encode_query("the river the")))
        common, rare = np.log(1 + 0.5 / 3.5), np.log(1 + 2.5 / 1.5)
        found = {token.strip("Ġ"): weight for token, weight in weights.items()}
        assert found["river"] == pytest.approx(rare)
        assert min(weights.values()) == pytest.approx(common)
        np.testing.assert_array_equal(model.encode("a").toarray(), ours.encode("a").toarray())
        model.save_pretrained(tmp_path / "idf")
        theirs = library.SparseEncoder(str(tmp_path / "idf"), device="cpu", local_files_only=True)
        assert not theirs[0].sub_modules["query"][0].frozen
        np.testing.assert_allclose(
            dense(theirs.encode_query(TEXTS)), model.encode_query(TEXTS).toarray(), rtol=1e-6
        )
        with pytest.raises(InputError, match="no documents to count tokens in"):
            ours.with_idf([])

    def test_a_model_with_spare_rows(
        self, build: Callable[..., Any], tokenizer: Tokenizer, tmp_path: Path
    ) -> None:
        build("ForMaskedLM", vocab_size=448).save_pretrained(tmp_path / "wide")
        tokenizer.save_pretrained(tmp_path / "wide", model_max_length=64)
        wide = SparseEncoder.load(tmp_path / "wide", device="cpu", backend="portable")
        (vector,) = wide.encode_document(["the river"])
        assert vector.shape == (1, 448)
        assert len(wide.decode(vector)) == np.sum(vector.indices < 384) < vector.nnz
        quick = wide.with_idf(["the river", "the town"])
        quick.save_pretrained(tmp_path / "quick")
        theirs = library.SparseEncoder(str(tmp_path / "quick"), device="cpu", local_files_only=True)
        expected = quick.encode_query(TEXTS).toarray()
        np.testing.assert_allclose(dense(theirs.encode_query(TEXTS)), expected[:, :384], rtol=1e-6)
        again = SparseEncoder.load(tmp_path / "quick", device="cpu")
        np.testing.assert_array_equal(again.encode_query(TEXTS).toarray(), expected)

    def test_few_dims_of_a_query_without_model(self, ours: SparseEncoder) -> None:
        model = ours.with_idf(["the river", "the town"])
        whole, few = (model.encode_query("the river runs", max_active_dims=most) for most in (None, 2))
        assert sorted(whole.data)[-2:] == sorted(few.data)
        assert few.has_canonical_format

    def test_frozen_weights_stay_frozen(self, checkpoint: Path, tmp_path: Path) -> None:
        routed(checkpoint).save_pretrained(str(tmp_path / "a"))
        SparseEncoder.load(tmp_path / "a", device="cpu", backend="portable").save_pretrained(tmp_path / "b")
        again = library.SparseEncoder(str(tmp_path / "b"), device="cpu", local_files_only=True)
        assert again[0].sub_modules["query"][0].frozen


class TestRefusals:
    def test_another_head(self, folder: Callable[..., Path]) -> None:
        with pytest.raises(InputError, match="is a `ModernBertModel`; sparse vectors need"):
            SparseEncoder.load(folder("Model"), device="cpu")

    @pytest.mark.parametrize(
        ("file", "change", "message"),
        [
            ("1_SpladePooling/config.json", {"pooling_strategy": "sum"}, "pools by `sum`; it must be `max`"),
            ("1_SpladePooling/config.json", {"activation_function": "tanh"}, "unknown activation `tanh`"),
            ("config_sentence_transformers.json", {"similarity_fn_name": "cosine"}, "must be `dot`"),
            ("config_sentence_transformers.json", {"max_active_dims": "x"}, "`max_active_dims` 'x'"),
            ("config_sentence_transformers.json", {"max_active_dims": -1}, "must be at least 1, or None"),
            ("config_sentence_transformers.json", {"default_prompt_name": "q"}, "no prompt `q`"),
        ],
    )
    def test_plain(
        self, file: str, change: dict[str, Any], message: str, checkpoint: Path, tmp_path: Path
    ) -> None:
        self.refused(plain(checkpoint), file, change, message, tmp_path)

    @pytest.mark.parametrize(
        ("file", "change", "message"),
        [
            ("router_config.json", {"structure": {"query": []}}, "it must have `query`, a SparseStatic"),
            (
                "router_config.json",
                {"parameters": {"route_mappings": {"a": "query"}}},
                "and mappings of them",
            ),
            ("router_config.json", {"structure": {"query": ["../x"]}}, "a module must lie in the folder"),
            ("query_0_SparseStaticEmbedding/config.json", {"path": "idf.json"}, "weights in `idf.json`"),
            ("query_0_SparseStaticEmbedding/config.json", {"frozen": "x"}, "`frozen` 'x'"),
        ],
    )
    def test_routed(
        self, file: str, change: dict[str, Any], message: str, checkpoint: Path, tmp_path: Path
    ) -> None:
        self.refused(routed(checkpoint), file, change, message, tmp_path)

    def test_weights_of_another_vocabulary(self, checkpoint: Path, tmp_path: Path) -> None:
        model = routed(checkpoint)
        static = model[0].sub_modules["query"][0]
        static.weight = torch.nn.Parameter(torch.ones(7))
        model.save_pretrained(str(tmp_path))
        with pytest.raises(CheckpointError, match=r"`weight` of 384 numbers.*its shape is \[7\]"):
            SparseEncoder.load(tmp_path, device="cpu")

    def test_a_dense_model(self, checkpoint: Path, tmp_path: Path) -> None:
        shutil.copytree(checkpoint, tmp_path / "dense")
        entry = {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}
        (tmp_path / "dense" / "modules.json").write_text(json.dumps([entry]))
        with pytest.raises(CheckpointError, match="lists Transformer; a sparse encoder must have"):
            SparseEncoder.load(tmp_path / "dense", device="cpu")

    def test_unknown_prompt(self, checkpoint: Path) -> None:
        with pytest.raises(ConfigError, match="no prompt `passage`"):
            SparseEncoder.load(checkpoint, device="cpu").encode("a", prompt_name="passage")

    def test_packed_weights_are_not_saved(self, checkpoint: Path, tmp_path: Path) -> None:
        ours = SparseEncoder.load(checkpoint, device="cpu", dtype="int8")
        assert ours.encode_query("the river").nnz
        with pytest.raises(InputError, match=r'load `.*` with `backend="portable"`'):
            ours.save_pretrained(tmp_path / "saved")

    @staticmethod
    def refused(model: Any, file: str, change: dict[str, Any], message: str, folder: Path) -> None:
        model.save_pretrained(str(folder))
        tree = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps({**tree, **change}))
        with pytest.raises(CheckpointError, match=message):
            SparseEncoder.load(folder, device="cpu")
