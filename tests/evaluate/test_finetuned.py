"""What a benchmark plans, and the run files that come with the package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from modernbert import config
from modernbert.errors import ConfigError
from modernbert.evaluate.finetuned import SEEDS, SUITES, EvaluationRun, nearest_size, plan
from modernbert.evaluate.glue import GLUE, TASKS
from modernbert.evaluate.suites import Size, Values
from modernbert.model.config import EncoderConfig

ROOT = Path(__file__).parents[2]
RUN_FILES = {path.stem: path for path in sorted(ROOT.glob("runs/glue/*.yaml"))}


def run_of(**fields: Any) -> EvaluationRun:
    return EvaluationRun(**{"suite": "glue", "model": "base", "data": "hub", "folder": "out", **fields})


@pytest.mark.parametrize("size", ["base", "large"])
def test_the_run_file_builds_and_says_what_is_published(size: Size) -> None:
    run = config.build(EvaluationRun, config.load(RUN_FILES[size]))
    assert run.best == {name: TASKS[name].values[size] for name in GLUE.default}
    assert config.build(EvaluationRun, config.to_tree(run)) == run
    assert run.finetune["tuning"] == {"batch_size": GLUE.batch_size, "warmup": 0.1}
    assert run.finetune["data"] == {"max_length": GLUE.max_length}
    assert run.values == size


def test_there_are_two_run_files() -> None:
    assert list(RUN_FILES) == ["base", "large"]


def test_the_grid_is_the_published_one() -> None:
    grids = {name: [*GLUE.grid(task)] for name, task in TASKS.items()}
    assert {len(grid) for grid in grids.values()} == {4 * 4 * 3}
    for name in ("sst2", "mnli", "rte"):
        assert {it.epochs for it in grids[name]} == {1, 2, 3}
    for name in ("qnli", "qqp", "cola", "mrpc", "stsb"):
        assert {it.epochs for it in grids[name]} == {2, 5, 10}
    for name in GLUE.default:
        for values in TASKS[name].values.values():
            assert values in grids[name]
    assert [name for name in GLUE.default if TASKS[name].from_mnli] == ["mrpc", "stsb", "rte"]


def test_mnli_goes_first_if_others_start_from_it() -> None:
    run = run_of(seeds=2)
    planned = plan(run, GLUE.choose(None), "base", tunes_mnli=True)
    assert [it.task.name for it in planned[:4]] == ["mnli", "mnli", "cola", "cola"]
    assert len(planned) == 2 * 8
    assert {it.task.name for it in planned if it.starts_from_mnli} == {"rte", "mrpc", "stsb"}
    assert {it.seed for it in planned} == {1618, 42}
    plain = plan(run, GLUE.choose(None), "base", tunes_mnli=False)
    assert [it.task.name for it in plain][::2] == [*GLUE.default]
    assert not any(it.starts_from_mnli for it in plain)


def test_mnli_is_tuned_once_if_only_others_are_wanted() -> None:
    planned = plan(run_of(seeds=3), GLUE.choose(["rte"]), "large", tunes_mnli=True)
    assert [(it.task.name, it.seed) for it in planned] == [("mnli", 1618)] + [
        ("rte", seed) for seed in SEEDS[:3]
    ]
    assert planned[1].values == Values(learning_rate=5e-5, weight_decay=8e-6, epochs=3)
    assert planned[1].name == "rte/lr5e-05-wd8e-06-ep3-seed1618"


def test_values_that_are_given_go_before_the_published() -> None:
    own = Values(learning_rate=1e-4, weight_decay=0.0, epochs=1)
    run = run_of(best={"rte": own}, seeds=6)
    planned = plan(run, GLUE.choose(["rte", "sst2"]), "base", tunes_mnli=False)
    assert {it.values for it in planned if it.task.name == "rte"} == {own}
    assert [it.seed for it in planned if it.task.name == "rte"] == [*SEEDS, 1, 2]
    assert {it.values for it in planned if it.task.name == "sst2"} == {TASKS["sst2"].values["base"]}


@pytest.mark.parametrize(
    ("preset", "size"), [("tiny", "base"), ("base", "base"), ("large", "large"), ("400m", "large")]
)
def test_the_nearest_size(preset: str, size: str) -> None:
    assert nearest_size(EncoderConfig.preset(preset)) == size


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"seeds": 0}, "`seeds` is 0; it must be at least 1"),
        ({"limit": -1}, "`limit` is -1"),
        ({"tasks": ("rte", "colla")}, "unknown task `colla` of GLUE; did you mean `cola`"),
        ({"suite": "ner", "tasks": ("rte",)}, "unknown task `rte` of NER"),
        ({"best": {"ret": TASKS["rte"].values["base"]}}, "`best.ret` names no task of glue; did you mean"),
        (
            {"finetune": {"tuning": {"epochs": 3}}},
            "`finetune.tuning.epochs` is set for all tasks.*set `best.TASK.epochs`",
        ),
        ({"finetune": {"seed": 3}}, "`finetune.seed` is set for all runs; each has its own"),
    ],
)
def test_wrong_settings(fields: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        run_of(**fields)


def test_wrong_values() -> None:
    for wrong in ({"learning_rate": 0.0}, {"epochs": 0}, {"weight_decay": -1.0}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            Values(**{"learning_rate": 1e-5, "weight_decay": 0.0, "epochs": 1, **wrong})


@pytest.mark.parametrize("name", SUITES)
def test_what_a_suite_says_of_its_tasks_holds_together(name: str) -> None:
    suite = SUITES[name]
    assert set(suite.default) <= set(suite.tasks)
    for key, task in suite.tasks.items():
        assert task.name == key
        assert {"train", "dev", task.scored_on} <= set(task.splits) == set(task.hub_splits)
        assert set(task.values) == {"base", "large"}
