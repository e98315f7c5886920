"""The card is what the hub reads, and no text in it becomes markup."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modernbert.recipes.finetune.about import About, DataPart
from modernbert.recipes.finetune.card import PIPELINES, model_card
from modernbert.recipes.finetune.findings import Findings, LabelRow
from modernbert.recipes.finetune.intervals import Interval, Spread

FOUND = Findings(
    problem="classes",
    split="validation",
    num_examples=60,
    figures={"accuracy": 0.875, "mcc": 0.5, "log_loss": 0.75, "calibration_error": 0.1},
    intervals={"accuracy": Interval(low=0.8, high=0.9)},
    spread={"accuracy": Spread(count=3, mean=0.87, deviation=0.01, least=0.86, most=0.88)},
    per_label=(LabelRow(label="rare", support=3, predicted=1, precision=1.0, recall=0.3, f1=0.5),),
)


def test_the_hub_reads_the_front_matter(about: About) -> None:
    data = ModelCard(model_card(about, [FOUND], facts={"gpu": "H100", "torch": "2.13"})).data
    assert (data.library_name, data.pipeline_tag, data.language) == (
        "transformers",
        "text-classification",
        ["en"],
    )
    assert data.base_model == "someone/encoder"
    assert data.metrics == ["accuracy", "matthews_correlation"]
    assert data.model_name == "sorter"
    first = data.eval_results[0]
    assert (first.metric_type, first.metric_value, first.dataset_split) == ("accuracy", 0.875, "validation")
    assert first.dataset_name == "dev.csv"


def test_the_text_says_what_one_must_know(about: About) -> None:
    card = model_card(
        about, [FOUND], settings={"learning_rate": 1e-4}, facts={"gpu": "H100", "torch": "2.13"}
    )
    for part in (
        "# sorter",
        'modernbert classify -m FOLDER "…"',
        'pipeline("text-classification", model=',
        "| Accuracy | 87.50% | 80.00% to 90.00% | 87.00% ± 1.00% (3) |",
        "| train | `train.csv` | 600 | 9,000 |",
        "- 2 texts are empty, the first in train.csv, line 7",
        "6 steps in 0:01:01 on H100",
        "learning_rate: 0.0001",
        "No test set was evaluated",
        "off by more than 5 points",
        "have these labels: `rare`",
    ):
        assert part in card
    assert "No test set" not in model_card(about, [replace(FOUND, split="test")])


@pytest.mark.parametrize("task", PIPELINES)
def test_each_task_has_a_card_whose_python_compiles(about: About, task: str) -> None:
    card = model_card(replace(about, task=task, takes_pairs=task == "classify"), [])  # type: ignore[arg-type]
    front = yaml.safe_load(card.split("---\n")[1])
    assert front["pipeline_tag"] == PIPELINES[task]
    assert "model-index" not in front
    blocks = [block.split("```")[0] for block in card.split("```python\n")[1:]]
    assert len(blocks) == 2
    for block in blocks:
        compile(block, "card", "exec")


def test_a_folder_is_no_base_model_for_the_hub(about: About, tmp_path: Path) -> None:
    card = model_card(replace(about, base_model=str(tmp_path)), [])
    assert "base_model" not in yaml.safe_load(card.split("---\n")[1])
    assert f"`{tmp_path}`" in card


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(st.characters(exclude_categories=["Cs", "Cc"], include_characters="\n`|<"), min_size=1))
def test_any_text_leaves_the_front_matter_and_the_tables_whole(about: About, text: str) -> None:
    part = DataPart(split="validation", source=text, num_examples=1, num_tokens=1)
    hostile = replace(about, model=text, base_model=text, labels=(text,), data=(part,), remarks=(text,))
    card = model_card(hostile, [FOUND], settings={"text": text}, facts={"cpu": text})
    data = ModelCard(card).data
    assert data.model_name == text
    assert data.eval_results[0].dataset_name == text
    (row,) = [line for line in card.splitlines() if line.startswith("| validation |")]
    assert row.endswith("| 1 | 1 |")
