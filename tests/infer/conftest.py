"""A tokenizer, tiny models with spread-out random weights, a runner with chosen logits, and an engine."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from modernbert.data.tokenizer import Tokenizer
from modernbert.infer.engine import Engine
from modernbert.infer.runner import TorchRunner
from modernbert.infer.task import Task
from modernbert.infer.texts import Texts
from modernbert.layout import SequenceLayout
from modernbert.model import heads
from modernbert.model.config import EncoderConfig, HeadConfig

WORDS = ["capital", "river", "the", "of", "France", "is", "runs", "through", "a", "small", "town", "café"]
CORPUS = [" ".join(WORDS[(i * step) % len(WORDS)] for i in range(60)) + "." for step in (1, 5, 7, 11)]
CORPUS += [f"{a}{b} " * 4 for a in "bcdfg" for b in "aeiouvwxyz"]  # more pairs than are asked for
MAX_LENGTH = 128


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(CORPUS, vocab_size=384)


@pytest.fixture(scope="session")
def texts(tokenizer: Tokenizer) -> Texts:
    return Texts(tokenizer, MAX_LENGTH)


@pytest.fixture(scope="session")
def build(tokenizer: Tokenizer) -> Callable[..., Any]:
    """Make a tiny model whose random weights are far enough apart that no two scores are equal."""

    def build(kind: str, *, vocab_size: int = 384, **head: Any) -> Any:
        config = EncoderConfig.preset(
            "tiny",
            vocab_size=vocab_size,
            pad_token_id=tokenizer.pad_id,
            cls_token_id=tokenizer.cls_id,
            sep_token_id=tokenizer.sep_id,
            max_position_embeddings=MAX_LENGTH,
            head=HeadConfig(**head),
        )
        torch.manual_seed(3)
        model = heads.HEADS[f"ModernBert{kind}"](config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.2)
        return model.eval()

    return build


@pytest.fixture(scope="session")
def runner(build: Callable[..., Any]) -> Callable[..., TorchRunner]:
    return lambda kind, **head: TorchRunner(build(kind, **head), "fp32")


@pytest.fixture(scope="session")
def folder(
    build: Callable[..., Any], tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """Save the model that `build` makes, with the tokenizer; once for all tests, which must not change it."""

    @cache
    def folder(kind: str, **head: Any) -> Path:
        path: Path = tmp_path_factory.mktemp(kind)
        build(kind, **head).save_pretrained(path)
        tokenizer.save_pretrained(path, model_max_length=MAX_LENGTH)
        return path

    return folder


@pytest.fixture(scope="session")
def checkpoint(
    build: Callable[..., Any], tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Save a masked language model with logits of about 1, most of them below 0, as SPLADE has them."""
    path = tmp_path_factory.mktemp("splade")
    model = build("ForMaskedLM")
    with torch.no_grad():
        for parameter in model.head.norm.parameters():
            parameter.mul_(0.1)
        model.decoder.bias.sub_(0.8)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path, model_max_length=64)
    return path


@pytest.fixture(scope="session")
def pipeline(folder: Callable[..., Path]) -> Callable[..., Any]:
    """Make transformers' pipeline of a task, on the same model as `runner` gives."""

    def pipeline(task: str, kind: str, **head: Any) -> Any:
        path = str(folder(kind, **head))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return transformers.pipeline(task, model=path, tokenizer=path, device="cpu")

    return pipeline


class ChosenLogits:
    """A runner that gives the logits that a function makes of each sequence.

    Args:
        logits: From token ids to `[length, L]`, `[L]` or a number.
        labels: The model's labels.
    """

    device = torch.device("cpu")

    def __init__(self, logits: Callable[[list[int]], Any], labels: tuple[str, ...] = ()) -> None:
        self.logits = logits
        self.config = EncoderConfig.preset("tiny", head=HeadConfig(labels=labels))
        self.seen: list[list[int]] = []

    def __call__(
        self, sequences: list[list[int]], positions: Tensor | None = None
    ) -> tuple[Tensor, SequenceLayout]:
        self.seen += sequences
        rows = [torch.tensor(self.logits(ids), dtype=torch.float32) for ids in sequences]
        per_token = rows[0].ndim == 2
        return (
            torch.cat(rows) if per_token else torch.stack(rows),
            SequenceLayout.of([len(ids) for ids in sequences]),
        )


@pytest.fixture(scope="session")
def chosen() -> type[ChosenLogits]:
    return ChosenLogits


@pytest.fixture(scope="session")
def run() -> Callable[..., list[Any]]:
    def run(task: Task[Any, Any, Any], inputs: Any, batch_tokens: int = 4096) -> list[Any]:
        return list(Engine(batch_tokens).run(task, inputs))

    return run


def assert_close(found: Any, expected: Any) -> None:
    """The same lists, dicts and values, numbers up to rounding."""
    if isinstance(expected, list):
        assert isinstance(found, list)
        assert len(found) == len(expected)
        for pair in zip(found, expected, strict=True):
            assert_close(*pair)
    elif isinstance(expected, dict):
        assert list(found) == list(expected)
        for key in expected:
            assert_close(found[key], expected[key])
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-6)
    else:
        assert found == expected


@pytest.fixture(scope="session")
def same() -> Callable[[Any, Any], None]:
    return assert_close
