"""A folder with a tiny model and its tokenizer."""

from __future__ import annotations

from pathlib import Path

import pytest

from modernbert.data.tokenizer import Tokenizer
from modernbert.model.config import EncoderConfig
from modernbert.model.heads import ModernBertForMaskedLM
from modernbert.model.init import initialise


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    model = ModernBertForMaskedLM(EncoderConfig.preset("tiny", max_position_embeddings=64))
    initialise(model, seed=0)
    model.save_pretrained(path)
    Tokenizer.train(["a text of few words"], vocab_size=384, min_frequency=1).save_pretrained(path)
    return path
