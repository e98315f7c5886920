"""Tables of a fine-tuning benchmark: what they say, and what they mark."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from modernbert import files
from modernbert.evaluate import finetuned_report
from modernbert.evaluate.collected import Finished, Outcome
from modernbert.evaluate.finetuned import SEEDS, SUITES
from modernbert.evaluate.published import PUBLISHED
from modernbert.evaluate.suites import Values


def finished(task: str, seed: int, scores: dict[str, Any], rate: float = 5e-5, **fields: Any) -> Finished:
    values = Values(learning_rate=rate, weight_decay=1e-5, epochs=3)
    return Finished(
        **{
            "name": f"{task}/{seed}",
            "task": task,
            "values": values,
            "seed": seed,
            "start": "m",
            "from_mnli": False,
            "scores": scores,
            "model": "m",
            "seconds": 90.0,
            "figures": {},
            "settings": {},
            **fields,
        }
    )


def outcome_of(*runs: Finished, **fields: Any) -> Outcome:
    tasks = tuple(dict.fromkeys(it.task for it in runs))
    return Outcome(
        **{
            "suite": "glue",
            "model": "my/model",
            "parameters": 149_000_000,
            "size": "base",
            "tasks": tasks,
            "examples": {task: {"train": 2490, "dev": 277} for task in tasks},
            "sources": {},
            "finished": runs,
            "notes": ("a note",),
            **fields,
        }
    )


RTE = [finished("rte", seed, {"dev": {"accuracy": 0.8 + n / 100}}) for n, seed in enumerate(SEEDS[:3])]
SST2 = finished("sst2", SEEDS[0], {"dev": {"accuracy": 0.95}})


def test_published_rows_stand_beside_ours() -> None:
    outcome = outcome_of(SST2, *RTE)
    rows = finetuned_report.tables(outcome)["Scores, %"]
    assert len(rows) == len(PUBLISHED["glue"]) + 1
    by_model = {row["model"]: row for row in rows}
    assert by_model["ModernBERT-base"] == {
        "model": "ModernBERT-base",
        "parameters": "149M",
        "SST-2": "96.0",
        "RTE": "87.4",
        "mean of 2 of 8": "91.7",
    }
    assert by_model["my/model (ours)"] == {
        "model": "my/model (ours)",
        "parameters": "149M",
        "SST-2": "95.0",
        "RTE": "81.0 ±1.0 †",
        "mean of 2 of 8": "88.0",
    }
    assert finetuned_report.remarks(outcome) == [
        "a note",
        "† started from the model itself; as published it starts from MNLI",
        "±: standard deviation over seeds",
        "mean: over the tasks that were run, in published rows too",
    ]


def test_the_whole_of_glue_has_a_plain_mean_and_that_is_the_published_one() -> None:
    runs = [
        finished(name, 1618, {"dev": {SUITES["glue"].tasks[name].metrics[0]: 0.9}}, from_mnli=True)
        for name in SUITES["glue"].default
    ]
    outcome = outcome_of(*runs)
    means = {row["model"]: row["mean"] for row in finetuned_report.tables(outcome)["Scores, %"]}
    assert means["my/model (ours)"] == "90.0"
    assert (means["BERT-base"], means["BERT-large"], means["ModernBERT-large"]) == ("84.7", "85.2", "90.5")
    assert float(means["ModernBERT-base"]) == pytest.approx(88.4, abs=0.11)  # as the paper rounds
    assert finetuned_report.remarks(outcome) == ["a note"]


def test_a_task_outside_of_the_mean() -> None:
    outcome = outcome_of(finished("wnli", 1618, {"dev": {"accuracy": 0.5}}))
    (ours,) = finetuned_report.tables(outcome)["Scores, %"]
    assert ours == {"model": "my/model (ours)", "parameters": "149M", "WNLI": "50.0"}


def test_of_a_grid_the_best_is_shown() -> None:
    better = [finished("rte", seed, {"dev": {"accuracy": 0.9}}, rate=8e-5) for seed in SEEDS[:3]]
    (row,) = finetuned_report.tables(outcome_of(*RTE, *better))["Runs"]
    assert row == {
        "task": "RTE",
        "scores": "accuracy 90.0 ±0.0",
        "rate / decay / epochs": "8e-05 / 1e-05 / 3",
        "seeds": "1618, 42, 6033",
        "start": "m",
        "train": "2,490",
        "minutes": "4.5",
    }


def test_both_dev_sets_of_mnli_are_shown() -> None:
    scores = {"dev": {"accuracy": 0.891}, "mismatched": {"accuracy": 0.893}}
    (row,) = finetuned_report.tables(outcome_of(finished("mnli", 1618, scores)))["Runs"]
    assert row["scores"] == "accuracy 89.1; mismatched: accuracy 89.3"


def test_entities_are_shown_by_their_test_set() -> None:
    scores = {"dev": {"f1": 0.95, "precision": 0.9}, "test": {"f1": 0.91, "precision": 0.9}}
    outcome = outcome_of(finished("conll2003", 1618, scores), suite="ner")
    rows = finetuned_report.tables(outcome)["Scores, %"]
    assert [row["model"] for row in rows] == ["BERT-base", "BERT-large", "my/model (ours)"]
    assert rows[-1]["CoNLL-2003"] == "91.0"


def test_files(tmp_path: Path) -> None:
    outcome = outcome_of(SST2, *RTE, limit=16)
    finetuned_report.report(outcome).save(tmp_path)
    text = (tmp_path / "results.md").read_text()
    assert text.startswith("# GLUE of my/model: 149M parameters, 4 runs, 0.1 hours; only 16 rows of each spl")
    assert "| model | parameters | SST-2 | RTE | mean of 2 of 8 |\n| --- | --- | --- | --- | --- |\n" in text
    assert "| my/model (ours) | 149M | 95.0 | 81.0 ±1.0 † | 88.0 |" in text
    assert text.endswith("in published rows too\n")
    tree = files.read_json(tmp_path / "results.json")
    found = [it["scores"]["dev"]["accuracy"] for it in tree["finished"]]
    assert found == pytest.approx([0.95, 0.8, 0.81, 0.82])
    assert tree["summary"]["rte"]["scores"]["dev"]["accuracy"]["mean"] == pytest.approx(0.81)
    assert Finished.from_json(tree["finished"][0]) == SST2
