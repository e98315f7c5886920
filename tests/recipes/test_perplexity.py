from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from modernbert.data.tokenizer import Tokenizer
from modernbert.errors import CheckpointError, InputError
from modernbert.layout import pack
from modernbert.model.config import EncoderConfig
from modernbert.model.heads import ModernBertForMaskedLM, ModernBertModel
from modernbert.recipes.perplexity import measure_perplexity
from modernbert.train.evaluation import LengthEvaluation, LengthSettings


@pytest.fixture(scope="module")
def words(corpus: Path) -> Tokenizer:
    return Tokenizer.train([(corpus / "a.txt").read_text(encoding="utf-8")], vocab_size=384)


@pytest.fixture(scope="module")
def model(words: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights, so large that the tokens seen make a difference."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(1)
    shape = EncoderConfig.preset("tiny", hidden_size=32, vocab_size=384, pad_token_id=words.pad_id)
    trained = ModernBertForMaskedLM(shape)
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.mul_(2)
    trained.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def measure(model: Path, text: Path, **settings: Any) -> list[LengthEvaluation]:
    given = LengthSettings(**settings)
    return measure_perplexity(str(model), [str(text)], given, mask_rate=0.5, device="cpu")


def test_each_token_of_short_documents_is_masked_in_turn(
    model: Path, words: Tokenizer, tmp_path: Path
) -> None:
    texts = ["abc dda fgh", "bad cab", "jig fij abba"]
    (tmp_path / "text.txt").write_text("\n".join(texts))
    (found,) = measure(model, tmp_path / "text.txt", lengths=(40,), stride=None)
    judge, total, count = ModernBertForMaskedLM.from_pretrained(model).eval(), 0.0, 0
    for ids in words.encode_batch(texts):
        for place in range(1, len(ids) - 1):
            masked, layout = pack([[*ids[:place], words.mask_id, *ids[place + 1 :]]])
            with torch.no_grad():
                logits = judge(masked, layout, torch.tensor([place]))
            total += functional.cross_entropy(logits, torch.tensor([ids[place]])).item()
            count += 1
    assert found.num_tokens == count
    assert found.pseudo_perplexity == pytest.approx(math.exp(total / count), rel=1e-4)


def test_lengths_are_compared_on_the_same_long_documents(model: Path, corpus: Path, words: Tokenizer) -> None:
    documents = words.encode_batch((corpus / "a.txt").read_text("utf-8").splitlines(), special=False)
    stretches = sum(len(ids) // 30 for ids in documents)
    short, long = measure(model, corpus / "a.txt", lengths=(32, 12), max_tokens=100_000)
    assert (short.length, long.length) == (12, 32)
    assert short.num_tokens == long.num_tokens == 30 * stretches
    assert short.pseudo_perplexity != long.pseudo_perplexity


def test_no_more_text_is_read_than_wanted(model: Path, corpus: Path) -> None:
    (found,) = measure(model, corpus / "a.txt", lengths=(64,), max_tokens=500)
    assert 300 < found.num_tokens <= 500
    (less,) = measure(model, corpus / "a.txt", lengths=(64,), max_tokens=64)
    assert less.num_tokens <= 62


def test_what_cannot_be_measured_is_refused(
    model: Path, corpus: Path, words: Tokenizer, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"no document has 398 tokens; to compare lengths up to 400"):
        measure(model, corpus / "a.txt", lengths=(16, 400))
    shape = EncoderConfig.preset("tiny", hidden_size=32, vocab_size=384, pad_token_id=words.pad_id)
    ModernBertModel(shape).save_pretrained(tmp_path)
    words.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError):
        measure(tmp_path, corpus / "a.txt", lengths=(16,))
