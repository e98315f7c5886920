"""Embeddings: those of sentence-transformers with the same options, each text as if alone, misuse told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import strategies as st

from modernbert.data.tokenizer import Tokenizer
from modernbert.errors import ConfigError, InputError
from modernbert.infer import sentence_folder
from modernbert.infer.embedding import Embed, choose_prompt, prompt_tokens
from modernbert.infer.embedding_head import DenseConfig, EmbeddingConfig, EmbeddingHead
from modernbert.infer.engine import Engine
from modernbert.infer.quantize import quantize
from modernbert.infer.runner import TorchRunner
from modernbert.infer.texts import Texts
from modernbert.model.config import EncoderConfig
from modernbert.model.encoder import ModernBertModel
from modernbert.model.pooling import POOLING

WORDS = ["capital", "river", "the", "of", "France", "is", "runs", "through", "a", "small", "town", "café"]
CORPUS = [" ".join(WORDS[(i * step) % len(WORDS)] for i in range(60)) + "." for step in (1, 5, 7, 11)]
CORPUS += [f"{a}{b} " * 4 for a in "bcdfg" for b in "aeiouvwxyz"]  # more pairs than are asked for
TOKENIZER = Tokenizer.train(CORPUS, vocab_size=384)
TEXTS = Texts(TOKENIZER, max_length=64)
SAMPLES = [
    "",
    "café",
    "The river runs through France.",
    "a small town " * 40,
    " \n",
    "of the",
    "the capital is",
]
PROMPTS = {"query": "the query: ", "passage": "a town. "}


def build() -> ModernBertModel:
    settings = {
        "vocab_size": TOKENIZER.vocab_size,
        "pad_token_id": TOKENIZER.pad_id,
        "cls_token_id": TOKENIZER.cls_id,
        "sep_token_id": TOKENIZER.sep_id,
        "max_position_embeddings": 64,
    }
    torch.manual_seed(3)
    model = ModernBertModel(EncoderConfig.preset("tiny", **settings)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


MODEL = build()
RUNNER = TorchRunner(MODEL, "fp32")
MEAN = EmbeddingHead(EmbeddingConfig(width=64, prompts=PROMPTS))


def embed(head: EmbeddingHead, texts: list[Any], **options: Any) -> Any:
    task = Embed(RUNNER, TEXTS, head, **options)
    return task.gather(list(Engine(batch_tokens=100).run(task, texts)))


def judge(head: EmbeddingHead, folder: Path) -> Any:
    """The same model in sentence-transformers, by way of a folder."""
    library = pytest.importorskip("sentence_transformers")
    MODEL.save_pretrained(folder)
    TOKENIZER.save_pretrained(folder, model_max_length=64)
    sentence_folder.write(folder, head)
    return library.SentenceTransformer(str(folder), device="cpu", local_files_only=True)


def assert_close(found: Any, expected: Any) -> None:
    assert type(found) is type(expected)
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    np.testing.assert_allclose(np.asarray(found), np.asarray(expected), atol=1e-5)


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return judge(MEAN, tmp_path_factory.mktemp("mean"))


class TestAgainstSentenceTransformers:
    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"normalize_embeddings": True},
            {"truncate_dim": 10},
            {"truncate_dim": 10, "normalize_embeddings": True},
            {"truncate_dim": 1000},
            {"convert_to_tensor": True},
            {"prompt": "of a "},
        ],
        ids=str,
    )
    def test_same_embeddings(self, theirs: Any, options: dict[str, Any]) -> None:
        assert_close(embed(MEAN, SAMPLES, **options), theirs.encode(SAMPLES, **options))

    @pytest.mark.parametrize("precision", ["int8", "uint8", "binary", "ubinary"])
    def test_same_quantized(self, theirs: Any, precision: str) -> None:
        found = embed(MEAN, SAMPLES, precision=precision)
        expected = theirs.encode(SAMPLES, precision=precision)
        assert found.dtype == expected.dtype
        if precision.endswith("int8"):  # a rounding error of the vectors may cross the edge of a step
            assert np.abs(found.astype(int) - expected.astype(int)).max() <= 1
        else:
            np.testing.assert_array_equal(found, expected)

    def test_same_token_embeddings(self, theirs: Any) -> None:
        found = embed(MEAN, SAMPLES, output_value="token_embeddings")
        expected = theirs.encode(SAMPLES, output_value="token_embeddings")
        assert len(found) == len(expected)
        for ours, other in zip(found, expected, strict=True):
            assert_close(ours, other)

    def test_same_list_of_tensors(self, theirs: Any) -> None:
        found = embed(MEAN, SAMPLES, convert_to_numpy=False)
        expected = theirs.encode(SAMPLES, convert_to_numpy=False)
        for ours, other in zip(found, expected, strict=True):
            assert_close(ours, other)

    @pytest.mark.parametrize("options", [{}, {"convert_to_tensor": True}, {"convert_to_numpy": False}])
    def test_same_of_nothing(self, theirs: Any, options: dict[str, Any]) -> None:
        found, expected = embed(MEAN, [], **options), theirs.encode([], **options)
        assert type(found) is type(expected)
        assert np.shape(found) == np.shape(expected) == (0,)

    @pytest.mark.parametrize("role", ["query", "document"])
    def test_same_prompt_by_role(self, theirs: Any, role: Any) -> None:
        found = embed(MEAN, SAMPLES, prompt=choose_prompt(MEAN.config, role=role))
        assert_close(found, getattr(theirs, f"encode_{role}")(SAMPLES))

    @pytest.mark.parametrize("mode", [*POOLING, ("cls", "weighted")])
    @pytest.mark.parametrize("prompt", ["", "the query: ", "caf"])
    def test_same_without_the_prompt(self, mode: Any, prompt: str, tmp_path: Path) -> None:
        modes = (mode,) if isinstance(mode, str) else mode
        head = EmbeddingHead(EmbeddingConfig(width=64, pooling=modes, include_prompt=False, normalize=True))
        texts = ["é", "river", "a small town " * 40]
        assert_close(embed(head, texts, prompt=prompt), judge(head, tmp_path).encode(texts, prompt=prompt))


class TestEmbeddings:
    def test_texts_have_no_neighbours(self) -> None:
        together = embed(MEAN, SAMPLES)
        for text, row in zip(SAMPLES, together, strict=True):
            assert np.abs(embed(MEAN, [text])[0] - row).max() <= 1e-6 * np.linalg.norm(row)

    @hypothesis.given(st.lists(st.text() | st.sampled_from(SAMPLES), min_size=1, max_size=6), st.randoms())
    def test_any_texts_in_any_order(self, texts: list[str], random: Any) -> None:
        order = list(range(len(texts)))
        random.shuffle(order)
        vectors = embed(MEAN, texts)
        assert np.isfinite(vectors).all()
        np.testing.assert_allclose(embed(MEAN, [texts[i] for i in order]), vectors[order], atol=1e-5)

    def test_pooling_in_place_of_the_heads_own(self) -> None:
        cls = EmbeddingHead(EmbeddingConfig(width=64, pooling=("cls",)))
        both = embed(cls, SAMPLES, pooling=("cls", "mean"))
        np.testing.assert_array_equal(embed(MEAN, SAMPLES, pooling="cls"), embed(cls, SAMPLES))
        np.testing.assert_array_equal(both, np.hstack([embed(cls, SAMPLES), embed(MEAN, SAMPLES)]))

    def test_the_configured_dimensions(self) -> None:
        short = EmbeddingHead(EmbeddingConfig(width=64, truncate_dim=7))
        np.testing.assert_array_equal(embed(short, SAMPLES), embed(MEAN, SAMPLES)[:, :7])
        assert embed(short, SAMPLES, truncate_dim=20).shape == (len(SAMPLES), 20)
        assert short.config.embedding_dim == 7

    def test_given_ranges_quantize_a_single_embedding(self) -> None:
        rows = embed(MEAN, SAMPLES)
        ranges = np.stack([rows.min(0), rows.max(0)])
        single = embed(MEAN, SAMPLES[2:3])
        found = embed(MEAN, SAMPLES[2:3], precision="int8", ranges=ranges)
        np.testing.assert_array_equal(found, quantize(single, "int8", ranges))

    def test_a_text_that_merges_with_its_prompt_keeps_a_token(self) -> None:
        """`ca` + `fé` are two tokens more than `café`: all but `[SEP]` would be left out."""
        head = EmbeddingHead(EmbeddingConfig(width=64, include_prompt=False))
        skip = prompt_tokens(TEXTS, "capita")
        assert skip >= len(TOKENIZER.encode("capital"))
        found = embed(head, ["l", "the river"], prompt="capita")
        states = embed(head, ["capital", "capitathe river"], output_value="token_embeddings")
        np.testing.assert_allclose(found[0], states[0][-1], atol=1e-5)
        np.testing.assert_allclose(found[1], states[1][skip:].mean(0), atol=1e-5)


class TestPrompts:
    CONFIG = EmbeddingConfig(width=64, prompts=PROMPTS, default_prompt_name="passage")

    @pytest.mark.parametrize(
        ("options", "expected"),
        [
            ({}, "a town. "),
            ({"prompt_name": "query"}, "the query: "),
            ({"role": "query"}, "the query: "),
            ({"role": "document"}, ""),
            ({"role": "document", "prompt_name": "query"}, "the query: "),
            ({"role": "query", "prompt": ""}, ""),
            ({"prompt": "so "}, "so "),
        ],
        ids=str,
    )
    def test_choice(self, options: dict[str, Any], expected: str) -> None:
        assert choose_prompt(self.CONFIG, **options) == expected

    def test_text_goes_before_name(self, caplog: pytest.LogCaptureFixture) -> None:
        assert choose_prompt(self.CONFIG, prompt="so ", prompt_name="query") == "so "
        assert "`prompt_name` 'query' is ignored" in caplog.text

    def test_unknown_name(self) -> None:
        with pytest.raises(ConfigError, match="no prompt `querry`; did you mean `query`"):
            choose_prompt(self.CONFIG, prompt_name="querry")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"precision": "int4"}, InputError, "`precision` is 'int4'"),
        ({"output_value": "tokens"}, InputError, "`output_value` is 'tokens'"),
        ({"output_value": "token_embeddings", "precision": "int8"}, InputError, "given as float32 only"),
        ({"truncate_dim": 0}, InputError, "`truncate_dim` is 0; it must be at least 1"),
        ({"pooling": "median"}, ConfigError, "unknown pooling `median`"),
        ({"pooling": ()}, ConfigError, "there is no pooling"),
        ({"precision": "int8"}, InputError, "have no ranges"),
    ],
)
def test_options_that_are_refused(options: dict[str, Any], error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        embed(MEAN, ["café"], **options)


@pytest.mark.parametrize("text", [None, 3, b"bytes"])
@pytest.mark.parametrize("prompt", ["", "so "])
def test_what_is_no_text(text: Any, prompt: str) -> None:
    with pytest.raises(InputError, match="input 2 is"):
        embed(MEAN, ["a", "b", text], prompt=prompt)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pooling": ("average",)}, "unknown pooling `average`"),
        ({"similarity": "maxsim"}, "unknown similarity `maxsim`"),
        ({"truncate_dim": 0}, "`truncate_dim` is 0"),
        ({"default_prompt_name": "title"}, "no prompt `title`"),
        ({"dense": (DenseConfig(in_features=65, out_features=2),)}, "takes 65 features; it must take 64"),
        (
            {"dense": tuple(DenseConfig(in_features=64, out_features=out) for out in (63, 2))},
            "dense layer 1 takes 64 features; it must take 63",
        ),
    ],
)
def test_configurations_that_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EmbeddingConfig(width=64, **settings)


@pytest.mark.parametrize("settings", [{"activation": "tanh"}, {"out_features": 0}])
def test_dense_layers_that_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="dense layer"):
        DenseConfig(**{"in_features": 4, "out_features": 4, **settings})
