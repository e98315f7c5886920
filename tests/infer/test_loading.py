"""`modernbert.load`: every name, dtype, backend and limit; what is chosen, what is refused and why."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch

import modernbert
from modernbert.data.tokenizer import Tokenizer
from modernbert.errors import BackendError, CheckpointError, ConfigError, InputError, ModernBertError
from modernbert.infer import fused, loading, sentence_folder
from modernbert.infer.embedding_head import DenseConfig, EmbeddingConfig, EmbeddingHead
from modernbert.infer.encoder import Encoder
from modernbert.infer.fused import FusedEncoder
from modernbert.infer.gpu import encoder as gpu
from modernbert.infer.loading import load
from modernbert.infer.runner import TorchRunner
from modernbert.layout import SequenceLayout
from modernbert.model.config import EncoderConfig

CPU = torch.device("cpu")
ONE = "The capital of [MASK] is a small town."
TEXTS = ["the river runs", "France", "a small town " * 30]


def needs(precision: str) -> pytest.MarkDecorator:
    why = fused.refusal(CPU, precision)
    return pytest.mark.skipif(why is not None, reason=f"fused {precision}: {why}")


def runner(encoder: Encoder) -> TorchRunner:
    assert isinstance(encoder.encoder_runner, TorchRunner)
    return encoder.encoder_runner


@pytest.fixture(scope="module")
def masked(folder: Callable[..., Path]) -> Path:
    return folder("ForMaskedLM")


@pytest.fixture(scope="module")
def plain(masked: Path) -> Encoder:
    return load(masked, device="cpu", backend="plain")


@pytest.fixture
def copied(masked: Path, tmp_path: Path) -> Path:
    """A copy of the masked language model, to be changed."""
    copy = tmp_path / "model"
    copy.mkdir()
    for file in masked.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    return copy


class TestNames:
    def test_a_folder(self, masked: Path, tokenizer: Tokenizer) -> None:
        for name in (masked, str(masked)):
            encoder = load(name, device="cpu")
            assert encoder.name == str(masked)
            assert encoder.tokenizer.fingerprint == tokenizer.fingerprint
            assert len(encoder.fill_mask(ONE)) == 5

    def test_it_is_public(self, masked: Path) -> None:
        assert isinstance(modernbert.load(masked, device="cpu"), modernbert.Encoder)

    def test_a_tokenizer_from_elsewhere(self, copied: Path, masked: Path) -> None:
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (copied / name).unlink()
        with pytest.raises(InputError, match="tokenizer"):
            load(copied, device="cpu")
        assert load(copied, tokenizer=masked, device="cpu").fill_mask(ONE) == load(
            masked, device="cpu"
        ).fill_mask(ONE)

    def test_a_preset_has_random_weights_and_the_given_tokenizer(self, masked: Path) -> None:
        one, other = (load("tiny", tokenizer=masked, device="cpu") for _ in range(2))
        assert one.fill_mask(ONE) == other.fill_mask(ONE)
        assert one.fill_mask(ONE)[0]["score"] < 0.1
        assert (one.config.hidden_size, one.config.vocab_size) == (64, 384)
        assert one.encode("a").shape == (64,)
        assert one.architecture == "ModernBertForMaskedLM"

    def test_a_preset_without_tokenizer(self) -> None:
        with pytest.raises(InputError) as caught:
            load("tiny", device="cpu")
        assert str(caught.value) == (
            "the preset `tiny` has random weights and no tokenizer; it must be given one; name one as "
            "`tokenizer`"
        )

    def test_a_folder_of_a_presets_name(
        self, copied: Path, monkeypatch: pytest.MonkeyPatch, plain: Encoder
    ) -> None:
        copied.rename(copied.parent / "tiny")
        monkeypatch.chdir(copied.parent)
        encoder = load("tiny", device="cpu", backend="plain")
        np.testing.assert_array_equal(encoder.encode("a"), plain.encode("a"))

    def test_what_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(ModernBertError, match="missing"):
            load(tmp_path / "missing", device="cpu")

    def test_a_tokenizer_that_does_not_fit(self, masked: Path, tmp_path: Path) -> None:
        Tokenizer.train([f"{a}{b}{c} " * 3 for a in "bcdfgh" for b in "aeiou" for c in "klmn"],
                        vocab_size=448).save_pretrained(tmp_path)  # fmt: skip
        with pytest.raises(ConfigError, match=r"the tokenizer has ids up to 447, .* `vocab_size` is 384"):
            load(masked, tokenizer=tmp_path, device="cpu")

    def test_what_the_hub_is_asked(
        self, masked: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        asked: list[dict[str, Any]] = []

        def snapshot_download(name: str, **options: Any) -> str:
            asked.append({"name": name, **options})
            return str(masked)

        monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
        common = {"cache_dir": tmp_path, "local_files_only": True, "token": "secret"}
        load("some/model", revision="v1", tokenizer="some/words", device="cpu", **common)  # type: ignore[arg-type]
        model, words = asked
        assert model == {
            "name": "some/model",
            "revision": "v1",
            "allow_patterns": list(sentence_folder.FILES),
            **common,
        }
        assert (words["name"], words["revision"]) == ("some/words", None)
        assert common.items() <= words.items()


class TestBackends:
    @pytest.mark.parametrize("backend", ["plain", "portable"])
    def test_attention_by_name(self, backend: str, masked: Path, plain: Encoder) -> None:
        encoder = load(masked, device="cpu", backend=backend)
        assert runner(encoder).model.backend == backend
        np.testing.assert_allclose(encoder.encode(TEXTS), plain.encode(TEXTS), atol=2e-5)

    @needs("fp32")
    @pytest.mark.parametrize("backend", ["auto", "fused"])
    def test_fused_on_a_cpu(self, backend: str, masked: Path, plain: Encoder) -> None:
        encoder = load(masked, device="cpu", backend=backend)
        assert isinstance(runner(encoder).model, FusedEncoder)
        np.testing.assert_allclose(encoder.encode(TEXTS), plain.encode(TEXTS), atol=1e-4)
        assert [fill["token"] for fill in encoder.fill_mask(ONE)] == [
            fill["token"] for fill in plain.fill_mask(ONE)
        ]

    def test_auto_says_once_what_it_chose(
        self, masked: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(fused, "refusal", lambda device, precision: "it is Sunday")
        with caplog.at_level(logging.INFO, "modernbert.infer.loading"):
            encoder = load(masked, device="cpu")
        assert not isinstance(runner(encoder).model, FusedEncoder)
        said = [it.getMessage() for it in caplog.records if it.name == "modernbert.infer.loading"]
        assert said == ["backend for cpu, auto: not fused: it is Sunday"]

    def test_on_a_gpu_fused_is_taken_by_name_alone(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(gpu, "refusal", lambda *_: None)
        chosen = partial(loading._is_fused, EncoderConfig(), torch.device("cuda"), "bf16")
        assert chosen("fused")
        with caplog.at_level(logging.INFO, "modernbert.infer.loading"):
            assert not chosen("auto")
        assert "not fused: on a GPU it is taken by name alone, until" in caplog.records[-1].getMessage()
        monkeypatch.setattr(gpu, "IS_AUTOMATIC", True)
        assert chosen("auto")

    def test_a_named_one_never_falls_back(self, masked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(fused, "refusal", lambda device, precision: "it is Sunday")
        for options in ({"backend": "fused"}, {"dtype": "int8"}):
            with pytest.raises(BackendError, match="the `fused` backend cannot serve: it is Sunday; choose"):
                load(masked, device="cpu", **options)  # type: ignore[arg-type]

    @pytest.mark.skipif(torch.cuda.is_available(), reason="it can serve where there is a GPU")
    def test_varlen_has_no_cpu(self, masked: Path) -> None:
        with pytest.raises(BackendError, match="attention backend `varlen` cannot serve"):
            load(masked, device="cpu", backend="varlen")

    def test_a_pair(self, masked: Path, plain: Encoder) -> None:
        encoder = load(masked, device="cpu", backend="plain+portable")
        np.testing.assert_allclose(encoder.encode(TEXTS), plain.encode(TEXTS), atol=1e-4)

    def test_unknown(self, masked: Path) -> None:
        with pytest.raises(ConfigError, match=r"^unknown `backend` `fussed`; did you mean `fused`"):
            load(masked, backend="fussed")
        with pytest.raises(ConfigError, match=r"^unknown `backend` `varlan`; did you mean `varlen`"):
            load(masked, backend="fa3+varlan")


class TestDtypes:
    @pytest.mark.parametrize("dtype", ["auto", "float32", "fp32", torch.float32])
    @pytest.mark.parametrize("backend", ["auto", "portable"])
    def test_exact(self, dtype: Any, backend: str, masked: Path, plain: Encoder) -> None:
        encoder = load(masked, device="cpu", dtype=dtype, backend=backend)
        np.testing.assert_allclose(encoder.encode(TEXTS), plain.encode(TEXTS), atol=1e-4)

    @pytest.mark.parametrize(
        ("dtype", "backend"),
        [
            pytest.param("bfloat16", "fused", marks=needs("bf16")),
            pytest.param(torch.bfloat16, "auto", marks=needs("bf16")),
            ("bf16", "portable"),
            ("float16", "portable"),
            ("fp16", "auto"),
            (torch.float16, "plain"),
            pytest.param("int8", "auto", marks=needs("int8")),
            pytest.param(torch.int8, "fused", marks=needs("int8")),
        ],
    )
    def test_lossy(self, dtype: Any, backend: str, masked: Path, plain: Encoder) -> None:
        encoder = load(masked, device="cpu", dtype=dtype, backend=backend)
        found, exact = encoder.encode(TEXTS), plain.encode(TEXTS)
        assert found.dtype == np.float32
        assert not np.allclose(found, exact, atol=1e-6), "it computes in fewer bits"
        cosine = (found * exact).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(exact, axis=1)
        assert cosine.min() > 0.97, "the weights are wild"
        assert len(encoder.fill_mask(ONE)) == 5

    @pytest.mark.parametrize("backend", ["portable", "plain", "varlen"])
    def test_int8_is_of_few(self, backend: str, masked: Path) -> None:
        with pytest.raises(BackendError) as caught:
            load(masked, device="cpu", dtype="int8", backend=backend)
        assert str(caught.value) == (
            f"the backend `{backend}` has no int8; choose `auto`, `fused` or `onnx`, on a CPU"
        )

    def test_fused_has_no_fp16(self, masked: Path) -> None:
        with pytest.raises(BackendError, match="the `fused` backend cannot serve: it has no fp16; choose"):
            load(masked, device="cpu", dtype="float16", backend="fused")

    @pytest.mark.parametrize("dtype", ["float8", "double", torch.float64, None, 16])
    def test_unknown(self, dtype: Any, masked: Path) -> None:
        with pytest.raises(ConfigError, match=r"^unknown `dtype` "):
            load(masked, device="cpu", dtype=dtype)

    def test_half_precision_weights_serve_exactly(self, masked: Path, copied: Path, plain: Encoder) -> None:
        from modernbert.model.heads import ModernBertForMaskedLM

        ModernBertForMaskedLM.from_pretrained(masked, dtype=torch.bfloat16).save_pretrained(copied)
        for backend in ("auto", "portable"):
            encoder = load(copied, device="cpu", backend=backend)
            assert all(weight.dtype == torch.float32 for weight in encoder.runner.model.parameters())  # type: ignore[attr-defined]
            assert np.corrcoef(encoder.encode("France"), plain.encode("France"))[0, 1] > 0.98


class TestOnnx:
    def test_without_the_file(self, masked: Path) -> None:
        with pytest.raises(ModernBertError):
            load(masked, backend="onnx")

    def test_it_is_for_the_cpu(self, masked: Path) -> None:
        for options in ({"device": "cuda"}, {"dtype": "bf16"}, {"dtype": "fp16", "device": "cpu"}):
            with pytest.raises(
                BackendError, match="the `onnx` backend serves on a CPU in float32 or int8, not on"
            ):
                load(masked, backend="onnx", **options)  # type: ignore[arg-type]

    def test_a_preset_has_none(self, masked: Path) -> None:
        with pytest.raises(InputError, match="a preset has no ONNX file"):
            load("tiny", tokenizer=masked, backend="onnx")


class TestLimits:
    def test_the_models_own(self, masked: Path) -> None:
        assert load(masked, device="cpu").max_length == 128

    def test_a_lower_one(self, masked: Path, plain: Encoder) -> None:
        encoder = load(masked, device="cpu", max_length=5, backend="plain")
        assert encoder.max_length == 5
        assert len(encoder.encode(TEXTS[0], output_value="token_embeddings")) == 5
        shortest = load(masked, device="cpu", max_length=3)
        assert len(shortest.encode(TEXTS[0], output_value="token_embeddings")) == 3

    @pytest.mark.parametrize("max_length", [-1, 0, 2, 129])
    def test_out_of_range(self, max_length: int, masked: Path) -> None:
        with pytest.raises(ConfigError) as caught:
            load(masked, device="cpu", max_length=max_length)
        assert str(caught.value) == f"`max_length` is {max_length}; it must be from 3 to 128"

    @pytest.mark.parametrize("argument", ["batch_tokens", "threads"])
    @pytest.mark.parametrize("value", [0, -1])
    def test_other_numbers(self, argument: str, value: int, masked: Path) -> None:
        with pytest.raises(ConfigError, match=rf"^`{argument}` is {value}; it must be at least 1, or None$"):
            load(masked, device="cpu", **{argument: value})  # type: ignore[arg-type]

    def test_they_reach_the_engine(self, masked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        chosen: list[int] = []
        monkeypatch.setattr(torch, "set_num_threads", chosen.append)
        encoder = load(masked, device="cpu", batch_tokens=77, deterministic=True, threads=1)
        assert (encoder.engine.batch_tokens, encoder.engine.deterministic) == (77, True)
        assert chosen == [1]
        usual = load(masked, device="cpu").engine
        assert (usual.batch_tokens, usual.deterministic) == (loading.CPU_BATCH_TOKENS, False)
        assert chosen == [1], "left as they are"

    def test_a_wrong_device_is_refused_before_anything_is_read(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="`tpu` is not a device"):
            load(tmp_path / "missing", device="tpu")


class TestBatchesOnGpu:
    """With a runner that only claims to be there."""

    @pytest.mark.parametrize(
        ("bytes_a_token", "free", "expected"),
        [
            (2_000_000, 80e9, 16_384),
            (100, 80e9, loading.LARGEST_BATCH_TOKENS),
            (10**9, 8e9, None),
        ],
    )
    def test_what_its_memory_holds(
        self, bytes_a_token: int, free: float, expected: int | None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        tried: list[int] = []

        def run(sequences: list[list[int]]) -> None:
            tried.append(sum(map(len, sequences)))

        run.device = torch.device("cuda", 0)  # type: ignore[attr-defined]
        run.config = SimpleNamespace(pad_token_id=2)  # type: ignore[attr-defined]
        fake = {
            "reset_peak_memory_stats": lambda device: None,
            "memory_allocated": lambda device: 5_000,
            "max_memory_allocated": lambda device: 5_000 + bytes_a_token * sum(tried),
            "mem_get_info": lambda device: (int(free), 2 * int(free)),
        }
        for name, function in fake.items():
            monkeypatch.setattr(torch.cuda, name, function)
        found = loading._batch_tokens(run, 8192)  # type: ignore[arg-type]
        assert tried == [16 * 512]
        assert found == expected or (expected is None and found >= 1)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["Model", "ForMaskedLM", "ForMultipleChoice"])
def test_on_a_gpu(kind: str, folder: Callable[..., Path]) -> None:
    expected = load(folder(kind), device="cpu", backend="plain").encode(TEXTS)
    exact = load(folder(kind), device="cuda", dtype="float32", backend="portable")
    np.testing.assert_allclose(exact.encode(TEXTS), expected, atol=1e-3)
    serves = gpu.refusal(torch.device("cuda"), "bf16", EncoderConfig.preset("tiny")) is None
    for backend in ("auto", "portable", *(["fused"] if serves else [])):
        encoder = load(folder(kind), device="cuda", backend=backend)
        assert encoder.engine.batch_tokens >= loading.CPU_BATCH_TOKENS
        cosine = torch.nn.functional.cosine_similarity(
            torch.from_numpy(encoder.encode(TEXTS)), torch.from_numpy(expected)
        )
        assert cosine.min() > 0.97, "the weights are wild"


class TestSentenceFolders:
    @pytest.fixture
    def rich(self, folder: Callable[..., Path], tmp_path: Path) -> Path:
        """A sentence-transformers folder with a prompt, a dense layer and normalisation."""
        copy = tmp_path / "rich"
        copy.mkdir()
        for file in folder("Model").iterdir():
            (copy / file.name).write_bytes(file.read_bytes())
        config = EmbeddingConfig(
            width=64,
            pooling=("cls",),
            dense=(DenseConfig(in_features=64, out_features=12),),
            normalize=True,
            prompts={"query": "the river "},
            similarity="dot",
            max_seq_length=40,
        )
        sentence_folder.write(copy, EmbeddingHead(config))
        return copy

    @pytest.mark.parametrize("backend", ["auto", "portable"])
    def test_all_of_it_is_used(self, rich: Path, backend: str) -> None:
        encoder = load(rich, device="cpu", backend=backend)
        assert (encoder.max_length, encoder.embedding_dim) == (40, 12)
        vectors = encoder.encode(TEXTS)
        assert vectors.shape == (3, 12)
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
        np.testing.assert_allclose(encoder.encode_query("runs"), encoder.encode("the river runs"), atol=1e-6)
        assert encoder.embedding_config.similarity == "dot"
        head = sentence_folder.read(rich).head
        hidden = torch.from_numpy(np.asarray(encoder.encode(TEXTS[0], output_value="token_embeddings")))
        with torch.no_grad():
            expected = head(hidden, SequenceLayout.of([len(hidden)]))[0]
        np.testing.assert_allclose(vectors[0], expected, atol=1e-5)

    def test_they_are_saved_and_loaded_again(self, rich: Path, tmp_path: Path) -> None:
        encoder = load(rich, device="cpu", backend="portable")
        encoder.save_pretrained(tmp_path / "again")
        again = load(tmp_path / "again", device="cpu", backend="portable")
        assert again.embedding_config == encoder.embedding_config
        np.testing.assert_array_equal(again.encode(TEXTS), encoder.encode(TEXTS))

    def test_the_limit_may_be_raised(self, rich: Path) -> None:
        assert load(rich, device="cpu", max_length=128).max_length == 128

    def test_damage(self, rich: Path) -> None:
        (rich / "2_Dense/model.safetensors").unlink()
        with pytest.raises(CheckpointError):
            load(rich, device="cpu")


def test_the_folder_is_not_needed_afterwards(copied: Path, plain: Encoder) -> None:
    encoder = load(copied, device="cpu", backend="plain")
    shutil.rmtree(copied)
    np.testing.assert_array_equal(encoder.encode(TEXTS), plain.encode(TEXTS))
