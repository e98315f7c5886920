"""A benchmark with a stand-in for fine-tuning: order, what is handed on, what is not repeated."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from modernbert import files
from modernbert.errors import ConfigError
from modernbert.evaluate.collected import Outcome
from modernbert.evaluate.finetuned import EvaluationRun
from modernbert.evaluate.glue import TASKS
from modernbert.evaluate.runner import Stopped, evaluate, score
from modernbert.evaluate.suites import Example, SuiteTask
from modernbert.model.config import EncoderConfig
from modernbert.model.dialects import to_published
from tests.evaluate.layouts import write_ner, write_original, write_superglue


@dataclass(frozen=True, kw_only=True)
class Tuned:
    model: Path | None
    figures: Mapping[str, Mapping[str, float]]
    seconds: float = 90.0
    stopped_by: str | None = None


@dataclass
class StandIn:
    """Notes what it is asked to fine-tune; its models are right if `skill` says so of their settings."""

    skill: Callable[[dict[str, Any]], bool] = lambda tree: True
    fails_at: str | None = None
    trees: list[dict[str, Any]] = field(default_factory=list)

    def finetune(self, tree: dict[str, Any]) -> Tuned:
        if self.fails_at is not None and self.fails_at in tree["folder"]:
            raise KeyboardInterrupt
        self.trees.append(tree)
        model = Path(tree["folder"]) / "model"
        model.mkdir(parents=True)
        (model.parent / "checkpoints").mkdir()
        (model / "is_right").write_text(json.dumps(self.skill(tree)))
        found = {"f1": 0.8, "precision": 0.75, "recall": 0.86, "accuracy": 0.9}
        return Tuned(model=model, figures={"validation": found, "test": {**found, "f1": 0.7}})

    def predict(self, task: SuiteTask, model: Path, examples: Sequence[Example]) -> list[Any]:
        right = [example["label"] for example in examples]
        return right if json.loads((model / "is_right").read_text()) else right[::-1]

    @property
    def names(self) -> list[str]:
        return [tree["folder"].split("runs/")[1] for tree in self.trees]


@pytest.fixture
def run(tmp_path: Path) -> EvaluationRun:
    files.write_json(
        tmp_path / "model" / "config.json", to_published(EncoderConfig(), "ModernBertForMaskedLM")
    )
    return EvaluationRun(
        suite="glue",
        model=str(tmp_path / "model"),
        data=str(write_original(tmp_path / "glue")),
        folder=str(tmp_path / "out"),
    )


def carry_out(run: EvaluationRun, stand_in: StandIn) -> Outcome:
    return evaluate(run, finetune=stand_in.finetune, predict=stand_in.predict)


def of_task(stand_in: StandIn, name: str) -> list[dict[str, Any]]:
    return [tree for tree in stand_in.trees if f"/runs/{name}/" in tree["folder"]]


def test_all_tasks_with_published_values_and_mnli_first(run: EvaluationRun) -> None:
    stand_in = StandIn()
    outcome = carry_out(run, stand_in)
    assert [name.split("/")[0] for name in stand_in.names] == [
        *("mnli", "cola", "sst2", "mrpc", "stsb", "qqp", "qnli", "rte")
    ]
    (mnli,), (rte,), (cola,) = (of_task(stand_in, name) for name in ("mnli", "rte", "cola"))
    assert rte["model"] == str(Path(mnli["folder"]) / "model")
    assert cola["model"] == mnli["model"] == run.model
    data = Path(run.folder) / "data" / "mnli"
    assert mnli == {
        "folder": f"{run.folder}/runs/mnli/lr5e-05-wd5e-06-ep1-seed1618",
        "task": "classify",
        "model": run.model,
        "data": {
            "train": str(data / "train.jsonl"),
            "validation": str(data / "dev.jsonl"),
            "test": str(data / "mismatched.jsonl"),
            "columns": {"text": "text", "text_pair": "text_pair", "label": "label"},
            "max_length": 256,
        },
        "tuning": {
            "learning_rate": 5e-5,
            "weight_decay": 5e-6,
            "epochs": 1,
            "batch_size": 64,
            "warmup": 0.1,
        },
        "head": {"problem": "single_label_classification"},
        "selection": {"metric": None, "patience": 3},
        "seed": 1618,
    }
    assert rte["data"]["test"] is None
    assert cola["data"]["columns"] == {"text": "text", "label": "label"}
    assert cola["selection"]["metric"] == "mcc"
    (stsb,) = of_task(stand_in, "stsb")
    assert (stsb["head"]["problem"], stsb["selection"]["metric"]) == ("regression", "spearman")
    assert outcome.size == "base"
    assert outcome.parameters == EncoderConfig().num_parameters()
    assert outcome.figures("mnli")["mismatched"]["accuracy"].mean == 1
    assert set(outcome.figures("stsb")["dev"]) == {"spearman", "pearson"}
    assert outcome.runs("rte")[0].from_mnli


def test_what_is_finished_is_not_repeated(run: EvaluationRun) -> None:
    stopped = StandIn(fails_at="runs/qqp")
    with pytest.raises(KeyboardInterrupt):
        carry_out(run, stopped)
    assert len(stopped.trees) == 5
    on = StandIn()
    outcome = carry_out(run, on)
    assert [name.split("/")[0] for name in on.names] == ["qqp", "qnli", "rte"]
    again = StandIn()
    assert carry_out(run, again).to_json() == outcome.to_json()
    assert again.trees == []


def test_a_folder_that_was_moved_goes_on(run: EvaluationRun, tmp_path: Path) -> None:
    carry_out(replace(run, tasks=("mnli",)), StandIn())
    Path(run.folder).rename(tmp_path / "moved")
    on = StandIn()
    carry_out(replace(run, tasks=("rte",), folder=str(tmp_path / "moved")), on)
    (tree,) = on.trees
    assert tree["model"] == str(
        tmp_path / "moved" / "runs" / "mnli" / "lr5e-05-wd5e-06-ep1-seed1618" / "model"
    )


def test_more_seeds_are_added_to_what_is_there(run: EvaluationRun) -> None:
    run = replace(run, tasks=("rte",))
    carry_out(run, StandIn())
    more = StandIn(skill=lambda tree: tree["seed"] == 42)
    outcome = carry_out(replace(run, seeds=3), more)
    assert [tree["seed"] for tree in more.trees] == [42, 6033]
    figure = outcome.figures("rte")["dev"]["accuracy"]
    assert (figure.mean, figure.spread) == (pytest.approx(2 / 3), pytest.approx(3**-0.5))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"finetune": {"tuning": {"warmup": 0.2}}}, r"`tuning.warmup`: 0.1 → 0.2"),
        ({"finetune": {"compile": True}}, r"`compile`: None → True"),
        ({"limit": 1}, r"`digest`: '.*' → '.*'"),
        ({"mnli": "none"}, r"`start`: 'mnli/lr5e-05-wd5e-06-ep1-seed1618' → '.*model'"),
    ],
)
def test_other_settings_in_the_same_folder_are_refused(
    run: EvaluationRun, change: dict[str, Any], match: str
) -> None:
    run = replace(run, tasks=("rte",))
    carry_out(run, StandIn())
    with pytest.raises(ConfigError, match=rf"was made with other settings: {match}.*another `folder`"):
        carry_out(replace(run, **change), StandIn())


def test_mnli_given_and_mnli_none(run: EvaluationRun, tmp_path: Path) -> None:
    run = replace(run, tasks=("rte", "sst2"))
    given = StandIn()
    outcome = carry_out(replace(run, mnli="some/mnli", folder=str(tmp_path / "given")), given)
    assert [tree["model"] for tree in given.trees] == [run.model, "some/mnli"]
    assert outcome.runs("rte")[0].from_mnli
    none = StandIn()
    outcome = carry_out(replace(run, mnli="none"), none)
    assert [tree["model"] for tree in none.trees] == [run.model, run.model]
    assert not outcome.runs("rte")[0].from_mnli


def test_without_data_of_mnli_they_start_from_the_model_and_a_note_says_so(
    run: EvaluationRun, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (Path(run.data) / "MNLI").iterdir():
        path.unlink()
    stand_in = StandIn()
    outcome = carry_out(run, stand_in)
    assert of_task(stand_in, "rte")[0]["model"] == run.model
    notes = capsys.readouterr().err
    assert "MNLI left out: `" in notes
    assert "MRPC, STS-B, RTE start from the model itself, not from MNLI as published" in notes
    assert outcome.tasks == ("cola", "sst2", "mrpc", "stsb", "qqp", "qnli", "rte")


def test_a_named_task_without_data_is_refused(run: EvaluationRun, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"RTE: .* has no folder for it; add the data, or leave it out"):
        carry_out(replace(run, data=str(tmp_path / "empty"), tasks=("rte",)), StandIn())
    with pytest.raises(ConfigError, match=r"has data of no task of GLUE"):
        carry_out(replace(run, data=str(tmp_path / "empty")), StandIn())


def test_the_grid_takes_the_best_on_dev_hands_it_on_and_keeps_its_model_alone(run: EvaluationRun) -> None:
    def is_good(tree: dict[str, Any]) -> bool:
        values = tree["tuning"]
        return values["learning_rate"] == 3e-5 and values["weight_decay"] == 8e-6 and values["epochs"] == 2

    stand_in = StandIn(skill=is_good)
    outcome = carry_out(replace(run, tasks=("rte",), grid=True), stand_in)
    assert len(stand_in.trees) == 2 * 48
    best = "lr3e-05-wd8e-06-ep2-seed1618"
    assert {tree["model"] for tree in of_task(stand_in, "rte")} == {f"{run.folder}/runs/mnli/{best}/model"}
    assert [it.name for it in outcome.runs("rte")] == [f"rte/{best}"]
    kept = {str(path.parent.relative_to(run.folder)) for path in Path(run.folder).glob("runs/*/*/model")}
    assert kept == {f"runs/mnli/{best}", f"runs/rte/{best}"}
    again = StandIn()
    carry_out(replace(run, tasks=("rte",), grid=True), again)
    assert again.trees == []


def test_all_models_stay_if_wanted(run: EvaluationRun) -> None:
    carry_out(replace(run, tasks=("sst2",), seeds=2, keep="all"), StandIn())
    assert len([*Path(run.folder).glob("runs/*/*/model")]) == 2


def test_what_a_run_left_to_go_on_with_is_removed(run: EvaluationRun) -> None:
    carry_out(replace(run, tasks=("sst2",)), StandIn())
    (folder,) = Path(run.folder).glob("runs/*/*")
    assert {path.name for path in folder.iterdir()} == {"model", "result.json"}


def test_a_signal_ends_it_and_the_same_call_goes_on(run: EvaluationRun) -> None:
    run, stopped = replace(run, tasks=("sst2",)), StandIn()
    stopped.finetune = lambda tree: Tuned(model=None, figures={}, stopped_by="SIGTERM")  # type: ignore[method-assign]
    with pytest.raises(Stopped, match="stopped by SIGTERM in sst2/lr8e-05-wd1e-05-ep2-seed1618; the same co"):
        carry_out(run, stopped)
    on = StandIn()
    carry_out(run, on)
    assert len(on.trees) == 1


def test_several_processes_are_refused(run: EvaluationRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "8")
    with pytest.raises(ConfigError, match="was started in 8 processes; it must be one"):
        carry_out(run, StandIn())


def test_superglue(run: EvaluationRun, tmp_path: Path) -> None:
    stand_in = StandIn()
    data = str(write_superglue(tmp_path / "super"))
    outcome = carry_out(replace(run, suite="superglue", data=data), stand_in)
    assert [tree["task"] for tree in stand_in.trees] == ["classify", "classify", "choose"] + ["classify"] * 2
    found = {name: {*outcome.figures(name)["dev"]} for name in outcome.tasks}
    assert found["multirc"] == {"f1a", "exact_match"}
    assert found["cb"] == {"accuracy", "macro_f1"}
    assert outcome.figures("copa")["dev"]["accuracy"].mean == 1


def test_entities_are_scored_by_what_fine_tuning_measured(run: EvaluationRun, tmp_path: Path) -> None:
    stand_in = StandIn()
    data = str(write_ner(tmp_path / "ner"))
    outcome = carry_out(replace(run, suite="ner", data=data), stand_in)
    assert {tree["task"] for tree in stand_in.trees} == {"tag"}
    assert outcome.figures("conll2003")["test"]["f1"].mean == 0.7
    assert outcome.figures("conll2003")["dev"]["f1"].mean == 0.8
    lacking = StandIn()
    lacking.finetune = lambda tree: Tuned(model=Path("m"), figures={"validation": {}})  # type: ignore[method-assign]
    with pytest.raises(ConfigError, match="fine-tuning gave no `f1` of validation"):
        carry_out(replace(run, suite="ner", data=data, folder=str(tmp_path / "new")), lacking)


def test_scores_are_those_that_are_published() -> None:
    right = [{"label": label} for label in ("equivalent", "equivalent", "not_equivalent")]
    found = score(TASKS["mrpc"], right, ["equivalent", "not_equivalent", "not_equivalent"])
    assert found == {"accuracy": pytest.approx(2 / 3), "f1": pytest.approx(2 / 3)}
    found = score(TASKS["stsb"], [{"label": it} for it in (1.0, 2.0, 3.0)], [0.1, 0.2, 5.0])
    assert list(found) == ["spearman", "pearson"]
    assert found["spearman"] == pytest.approx(1)
