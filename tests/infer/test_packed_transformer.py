"""sentence-transformers on the packed engine: same vectors, scores and gradients, and its own files."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from modernbert.data.tokenizer import Tokenizer
from modernbert.errors import InputError
from modernbert.infer import sentence_folder
from modernbert.infer.embedding_head import DenseConfig, EmbeddingConfig, EmbeddingHead
from modernbert.infer.packed_transformer import PackedModel, packed
from modernbert.model.heads import ModernBertForMaskedLM

library = pytest.importorskip("sentence_transformers")

TEXTS = ["the river", "", "a small town runs through France. " * 30, "capital"]
PAIRS = [("the river", "a small town"), ("", "France " * 30), ("of", "of")]


@pytest.fixture
def folder(build: Callable[..., Any], tokenizer: Tokenizer, tmp_path: Path) -> Callable[..., str]:
    """Save a model of some kind, and its tokenizer."""

    def folder(kind: str, **head: Any) -> str:
        path = tmp_path / kind
        build(kind, **head).save_pretrained(path)
        tokenizer.save_pretrained(path, model_max_length=64)
        return str(path)

    return folder


@pytest.fixture
def model(folder: Callable[..., str]) -> Any:
    """A sentence-transformer on transformers."""
    path = folder("Model")
    config = EmbeddingConfig(
        width=64,
        pooling=("mean",),
        include_prompt=False,
        dense=(DenseConfig(in_features=64, out_features=20),),
        normalize=True,
        prompts={"query": "of the "},
    )
    sentence_folder.write(Path(path), EmbeddingHead(config))
    return library.SentenceTransformer(path, device="cpu", local_files_only=True)


def gradients(model: Any) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model.train()
    vectors = model(model.preprocess(TEXTS))["sentence_embedding"]
    (vectors * torch.arange(vectors.numel()).view_as(vectors)).sum().backward()
    return {name.replace("0.model.model.", "0.model."): p.grad for name, p in model.named_parameters()}


class TestSentenceTransformer:
    @pytest.mark.parametrize("side", ["right", "left"])
    def test_same_vectors(self, model: Any, side: str) -> None:
        calls: list[Callable[[], Any]] = [
            lambda: model.encode(TEXTS),
            lambda: model.encode(TEXTS[0]),
            lambda: model.encode_query(TEXTS),
            lambda: np.concatenate(model.encode(TEXTS, output_value="token_embeddings")),
        ]
        expected = [call() for call in calls]
        assert packed(model) is model
        assert isinstance(model[0].model, PackedModel)
        model.tokenizer.padding_side = side
        for call, vectors in zip(calls, expected, strict=True):
            # Token embeddings are not cut where padding is on the left, by sentence-transformers.
            if side == "left" and call is calls[-1]:
                continue
            np.testing.assert_allclose(call(), vectors, atol=1e-5)

    def test_same_gradients(self, model: Any) -> None:
        expected = gradients(model)
        found = gradients(packed(model))
        assert model[0].model.training
        torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-4)

    def test_it_trains(self, model: Any) -> None:
        packed(model).train()
        before = model.encode(TEXTS)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        losses = []
        for _ in range(5):
            loss = model(model.preprocess(TEXTS))["sentence_embedding"].square()[:, 0].sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses == sorted(losses, reverse=True)
        assert not np.allclose(model.encode(TEXTS), before, atol=1e-4)

    def test_what_it_saves_any_sentence_transformers_loads(self, model: Any, tmp_path: Path) -> None:
        vectors = packed(model).encode(TEXTS)
        model.save(str(tmp_path / "saved"))
        again = library.SentenceTransformer(str(tmp_path / "saved"), device="cpu", local_files_only=True)
        assert type(again[0].model).__name__ == "ModernBertModel"
        np.testing.assert_allclose(again.encode(TEXTS), vectors, atol=1e-5)
        assert "unpad_inputs" not in json.loads(
            (tmp_path / "saved" / "sentence_bert_config.json").read_text()
        )
        np.testing.assert_allclose(packed(again).encode(TEXTS), vectors, atol=1e-5)

    def test_built_of_modules(self, model: Any) -> None:
        path = model[0].config.name_or_path
        modules = library.sentence_transformer.modules
        built = library.SentenceTransformer(
            modules=[packed(modules.Transformer(path, max_seq_length=128)), *list(model)[1:]], device="cpu"
        )
        vectors = model.encode(TEXTS)
        np.testing.assert_allclose(built.encode(TEXTS), vectors, atol=1e-5)

    def test_bf16(self, model: Any) -> None:
        vectors = model.encode(TEXTS)
        found = packed(model.bfloat16()).encode(TEXTS, convert_to_tensor=True)
        assert found.dtype == torch.bfloat16
        np.testing.assert_allclose(found.float(), vectors, atol=0.03)

    def test_it_can_be_sent_to_another_process(self, model: Any) -> None:
        vectors = packed(model).encode(TEXTS)
        np.testing.assert_array_equal(pickle.loads(pickle.dumps(model)).encode(TEXTS), vectors)

    def test_twice_is_once(self, model: Any) -> None:
        inner = packed(model)[0].model
        assert packed(model)[0].model is inner


def test_cross_encoder(folder: Callable[..., str]) -> None:
    path = folder("ForSequenceClassification", labels=("relevant",), pooling="cls")
    model = library.CrossEncoder(path, device="cpu", local_files_only=True)
    expected = model.predict(PAIRS)
    np.testing.assert_allclose(packed(model).predict(PAIRS), expected, atol=1e-5)
    # With padding on the left, transformers takes the first padding for `[CLS]`.
    model.tokenizer.padding_side = "left"
    np.testing.assert_allclose(model.predict(PAIRS), expected, atol=1e-5)


class TestSparseEncoder:
    @pytest.fixture(params=["relu", "log1p_relu", "router"])
    def build_theirs(self, request: Any, checkpoint: Path) -> Callable[[], Any]:
        modules = library.sparse_encoder.modules
        kind = request.param

        def build_theirs() -> Any:
            transformer = modules.Transformer(str(checkpoint), transformer_task="fill-mask")
            if kind != "router":
                pooling = modules.SpladePooling(activation_function=kind, embedding_dimension=384)
                return library.SparseEncoder(modules=[transformer, pooling], device="cpu")
            documents = [transformer, modules.SpladePooling(embedding_dimension=384)]
            queries = [modules.SparseStaticEmbedding(transformer.tokenizer, torch.linspace(0.1, 2.0, 384))]
            router = library.base.modules.Router.for_query_document(queries, documents)
            return library.SparseEncoder(modules=[router], device="cpu")

        return build_theirs

    def test_same_vectors_and_never_all_logits(
        self, build_theirs: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model = build_theirs()
        expected = [call(TEXTS).to_dense() for call in (model.encode_query, model.encode_document)]
        packed(model)
        monkeypatch.setattr("modernbert.ops.splade.LOGITS_AT_ONCE", 1_000)
        monkeypatch.setattr(ModernBertForMaskedLM, "forward", lambda *_: pytest.fail("all logits at once"))
        for call, vectors in zip((model.encode_query, model.encode_document), expected, strict=True):
            torch.testing.assert_close(call(TEXTS).to_dense(), vectors, atol=1e-5, rtol=1e-5)

    @pytest.mark.parametrize("is_cached", [False, True])
    def test_a_training_step_is_the_same(self, build_theirs: Callable[[], Any], is_cached: bool) -> None:
        expected_losses, expected = self.step(build_theirs(), is_cached=is_cached)
        losses, found = self.step(packed(build_theirs()), is_cached=is_cached)
        assert {"base_loss", "document_regularizer_loss", "query_regularizer_loss"} <= losses.keys()
        torch.testing.assert_close(losses, expected_losses, atol=1e-5, rtol=1e-5)
        found = {name.replace(".model.", ".", 1): gradient for name, gradient in found.items()}
        assert found.keys() == expected.keys()
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
        assert all(gradient.abs().max() > 1e-3 for gradient in found.values())

    @staticmethod
    def step(model: Any, *, is_cached: bool) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        """Take one step of SPLADE's training: negatives of the batch, and FLOPS of both sides."""
        losses = library.sparse_encoder.losses
        options = {"document_regularizer_weight": 0.3, "query_regularizer_weight": 0.2}
        inner = losses.SparseMultipleNegativesRankingLoss(model, scale=0.1)
        if is_cached:
            loss = losses.CachedSpladeLoss(model, inner, mini_batch_size=2, **options)
        else:
            loss = losses.SpladeLoss(model, inner, **options)
        model.train()
        texts = {"query": TEXTS, "document": ["of France", "capital town", "river " * 40, "the the"]}
        given = loss([model.preprocess(some, task=role) for role, some in texts.items()], None)
        sum(given.values()).backward()
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        return {name: part.detach() for name, part in given.items()}, gradients

    def test_saved_loaded_and_sent_elsewhere(self, build_theirs: Callable[[], Any], tmp_path: Path) -> None:
        model = packed(build_theirs())
        vectors = model.encode(TEXTS).to_dense()
        torch.testing.assert_close(pickle.loads(pickle.dumps(model)).encode(TEXTS).to_dense(), vectors)
        model.save(str(tmp_path / "saved"))
        again = library.SparseEncoder(str(tmp_path / "saved"), device="cpu", local_files_only=True)
        assert "ModernBertForMaskedLM" in str(again)
        torch.testing.assert_close(again.encode(TEXTS).to_dense(), vectors, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(packed(packed(again)).encode(TEXTS).to_dense(), vectors)

    def test_a_sum_is_pooled_by_theirs(self, checkpoint: Path) -> None:
        modules = library.sparse_encoder.modules
        transformer = modules.Transformer(str(checkpoint), transformer_task="fill-mask")
        model = library.SparseEncoder(modules=[transformer, modules.SpladePooling("sum")], device="cpu")
        expected = model.encode(TEXTS).to_dense()
        torch.testing.assert_close(packed(model).encode(TEXTS).to_dense(), expected, atol=1e-4, rtol=1e-5)


def test_without_mask_all_are_tokens(build: Callable[..., Any]) -> None:
    model = PackedModel(build("Model"), config=None)
    ids = torch.randint(5, 300, (2, 7))
    found = model(ids)["last_hidden_state"]
    assert found.shape == (2, 7, 64)
    torch.testing.assert_close(found, model(ids, torch.ones_like(ids))["last_hidden_state"])


@pytest.mark.parametrize("kind", ["ForTokenClassification", "other"])
def test_refused(kind: str, folder: Callable[..., str]) -> None:
    import transformers

    if kind == "other":
        model: Any = transformers.BertModel(
            transformers.BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1)
        )
    else:
        model = transformers.AutoModelForTokenClassification.from_pretrained(folder(kind, labels=("a", "b")))
    outer = torch.nn.Sequential(torch.nn.Identity())
    outer[0].model = model
    with pytest.raises(InputError, match=f"computes with `{type(model).__name__}`; it must be one of"):
        packed(outer)
    with pytest.raises(InputError, match="computes with `NoneType`"):
        packed(torch.nn.Identity())
