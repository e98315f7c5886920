"""What a fine-tuned model says of examples, by the engine that its users have."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from modernbert.evaluate.suites import Example, SuiteTask
from modernbert.infer.loading import load


def predict(task: SuiteTask, model: Path, examples: Sequence[Example]) -> list[Any]:
    """Return for each example what is predicted: a label's name, a number, or the index of a choice.

    Raises:
        CheckpointError: The model cannot be loaded.
    """
    encoder = load(model)
    if task.kind == "choose":
        asked = [{key: example[key] for key in ("prompt", "choices")} for example in examples]
        return [found["choice"] for found in encoder.choose(asked)]
    texts = [
        {"text": example["text"], "text_pair": example["text_pair"]}
        if "text_pair" in example
        else example["text"]
        for example in examples
    ]
    found = [best for (best,) in encoder.classify(texts)]
    return [best["label"] if task.labels else best["score"] for best in found]
