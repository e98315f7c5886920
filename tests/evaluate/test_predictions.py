"""What a model says of examples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from modernbert.data.tokenizer import Tokenizer
from modernbert.evaluate.glue import TASKS
from modernbert.evaluate.predictions import predict
from modernbert.evaluate.superglue import TASKS as SUPERGLUE
from modernbert.infer.loading import load
from modernbert.model.config import EncoderConfig, HeadConfig
from modernbert.model.heads import HEADS
from modernbert.model.init import initialise


@pytest.fixture
def write(tmp_path: Path, folder: Path) -> Any:
    def model(kind: str, **head: Any) -> Path:
        shape = EncoderConfig.preset("tiny", max_position_embeddings=64, head=HeadConfig(**head))
        made = HEADS[f"ModernBert{kind}"](shape)
        initialise(made, seed=0)
        made.save_pretrained(tmp_path)
        Tokenizer.from_pretrained(folder).save_pretrained(tmp_path)
        return tmp_path

    return model


def test_labels_numbers_and_choices(write: Any) -> None:
    pairs = [{"text": "a text", "text_pair": "few words", "label": "entailment"}] * 2
    model = write("ForSequenceClassification", labels=("entailment", "not_entailment"))
    best = load(model).classify([("a text", "few words")])[0][0]["label"]
    assert predict(TASKS["rte"], model, pairs) == [best, best]
    single = [{"text": "a text", "label": "acceptable"}]
    assert predict(TASKS["cola"], model, single)[0] in ("entailment", "not_entailment")
    model = write("ForSequenceClassification", labels=("score",), problem_type="regression")
    (number, _) = predict(TASKS["stsb"], model, pairs)
    assert isinstance(number, float)
    model = write("ForMultipleChoice")
    asked = [{"prompt": "a text of", "choices": ["few", "words"], "label": 1}]
    assert predict(SUPERGLUE["copa"], model, asked)[0] in (0, 1)
