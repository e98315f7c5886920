"""Masked loss by source and by place: of scores that are known, and of a model against its own validation."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from modernbert.data.corpus import Document, find_files, read_documents
from modernbert.data.tokenizer import Tokenizer
from modernbert.errors import ConfigError, InputError
from modernbert.evaluate import masked
from modernbert.evaluate.masked import MaskedSettings, masked_rows, measure_masked
from modernbert.evaluate.masked_lm import load_masked_lm
from modernbert.model.heads import ModernBertForMaskedLM
from modernbert.train.loop import evaluate
from tests.evaluate.fakes import fake_model

LENGTH = 10  # eight places for text


@pytest.fixture(scope="module")
def words() -> Tokenizer:
    return Tokenizer.train(["a a a a b c d"], vocab_size=320, min_frequency=1)


@pytest.fixture(scope="module")
def text(words: Tokenizer) -> int:
    """Each token of the text is this one."""
    return words.encode(" a", special=False)[0]


def document(num_tokens: int, source: str = "", origin: str = "folder/file.txt:1") -> Document:
    return Document(" a" * num_tokens, origin, 0, source)


def sure_of_the_end(words: Tokenizer, text: int) -> Any:
    """A model with no idea of the first half of the places, and odds of one to one in the second."""

    def score(ids: list[int], place: int) -> Tensor:
        scores = torch.zeros(words.vocab_size)
        scores[text] = math.log(words.vocab_size - 1) if place > 4 else -1e-3
        return scores

    return fake_model(words, score)


def test_loss_and_accuracy_of_each_part_of_the_places(words: Tokenizer, text: int) -> None:
    settings = MaskedSettings(length=LENGTH, bins=2, mask_rate=0.5, join=True)
    found = measure_masked(sure_of_the_end(words, text), [document(1000)], settings).figures
    first, second = found["places"]
    assert (first["first"], first["last"], second["first"], second["last"]) == (0, 3, 4, 7)
    assert first["loss"] == pytest.approx(math.log(words.vocab_size) + 1e-3, abs=1e-4)
    assert second["loss"] == pytest.approx(math.log(2))
    assert (first["accuracy"], second["accuracy"]) == (0.0, 1.0)
    assert found["all"]["num_masked"] == first["num_masked"] + second["num_masked"]
    middle, start = found["rises"]
    assert not middle["rises"]
    assert start["nats"] == pytest.approx(first["loss"] * -1 + math.log(2), abs=1e-4)
    assert start["error"] == pytest.approx(0, abs=1e-6)


def test_a_rise_towards_the_end_is_told(words: Tokenizer, text: int) -> None:
    def score(ids: list[int], place: int) -> Tensor:
        return torch.zeros(words.vocab_size) if place > 6 else 9.0 * (torch.arange(words.vocab_size) == text)

    settings = MaskedSettings(length=LENGTH, bins=4, mask_rate=0.5, join=True)
    found = measure_masked(fake_model(words, score), [document(1000)], settings)
    assert [it["rises"] for it in found.figures["rises"]] == [True, True]
    assert sum("windows): a rise" in remark for remark in found.remarks) == 2


def test_text_is_of_its_record_or_of_its_file(words: Tokenizer, text: int) -> None:
    def score(ids: list[int], place: int) -> Tensor:
        return torch.zeros(words.vocab_size)

    documents = [document(30, "books"), document(50), document(30, "books"), document(20, "", "other.txt:7")]
    settings = MaskedSettings(length=LENGTH, bins=1, mask_rate=1.0)
    found = measure_masked(fake_model(words, score), documents, settings)
    assert [(it["source"], it["num_masked"]) for it in found.figures["sources"]] == [
        ("books", 60),
        ("file.txt", 50),
        ("other.txt", 20),
    ]
    assert found.figures["all"]["num_masked"] == 130
    assert found.figures["all"]["loss"] == pytest.approx(math.log(words.vocab_size))
    assert [row["source"] for row in found.tables["By source"]] == ["books", "file.txt", "other.txt", "all"]
    assert found.figures["places"][0]["num_masked"] == 8 * (3 + 3 + 6 + 2)  # of whole windows alone


def test_short_documents_share_windows_if_they_are_joined(words: Tokenizer) -> None:
    documents = [document(5), document(5), document(5)]
    apart = masked_rows(documents, words, MaskedSettings(length=LENGTH, bins=1, mask_rate=1.0))["file.txt"]
    assert [length for row in apart for length in row.layout.lengths] == [7, 7, 7]
    joined = MaskedSettings(length=LENGTH, bins=1, mask_rate=1.0, join=True)
    (row,) = masked_rows(documents, words, joined)["file.txt"]
    between = words.encode("\n\n", special=False)
    assert row.layout.lengths[:-1] == (LENGTH,) * ((15 + 2 * len(between)) // 8)
    assert row.labels.tolist()[5 : 5 + len(between)] == between


def test_no_more_of_a_source_is_taken_than_wanted(words: Tokenizer) -> None:
    settings = MaskedSettings(length=LENGTH, bins=1, max_tokens=40, mask_rate=1.0)
    rows = masked_rows([document(100, "one"), document(12, "two")], words, settings)
    assert {source: sum(row.num_masked for row in its) for source, its in rows.items()} == {
        "one": 32,
        "two": 12,
    }


def test_figures_are_those_of_validation(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [f"a text of few words {number} " * 9 for number in range(20)]
    (tmp_path / "text.txt").write_text("\n".join(lines))
    model = load_masked_lm(str(folder), device="cpu")
    settings = MaskedSettings(length=32, bins=3)
    documents = list(read_documents(find_files(tmp_path / "text.txt")))
    found = measure_masked(model, documents, settings).figures
    (rows,) = masked_rows(documents, model.tokenizer, settings).values()
    plain = ModernBertForMaskedLM.from_pretrained(folder)
    expected = evaluate(plain, rows, device=torch.device("cpu"))
    assert found["all"]["num_masked"] == expected.num_masked
    assert found["all"]["loss"] == pytest.approx(expected.loss, rel=1e-5)
    assert found["all"]["accuracy"] == pytest.approx(expected.accuracy)
    monkeypatch.setattr(masked, "ROW_TOKENS", 1)
    alone = measure_masked(model, documents, settings).figures
    assert alone["all"]["loss"] == pytest.approx(found["all"]["loss"], rel=1e-5)
    assert [it["num_masked"] for it in alone["places"]] == [it["num_masked"] for it in found["places"]]


def test_what_cannot_be_measured_is_refused(words: Tokenizer, folder: Path) -> None:
    with pytest.raises(ConfigError, match="`length` is 4, `bins` 16; there must be at least 1"):
        MaskedSettings(length=4)
    with pytest.raises(ConfigError, match="`max_tokens` is 100; it must be at least `length`, 1024"):
        MaskedSettings(max_tokens=100)
    with pytest.raises(ConfigError, match="`mask_rate` is 15; it must be a share, from 0 to 1"):
        MaskedSettings(mask_rate=15)
    model = load_masked_lm(str(folder), device="cpu")
    with pytest.raises(ConfigError, match=r"`length` is 1,024; .* takes 64 tokens at most; lower it"):
        measure_masked(model, [document(3)], MaskedSettings())
    with pytest.raises(InputError, match="not one token of the text is masked"):
        masked_rows([document(3)], words, MaskedSettings(mask_rate=0.0))
