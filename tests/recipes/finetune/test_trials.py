"""Seeds, folds and searches: which runs they stand for, which of them is taken, and what is written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from modernbert import config, files
from modernbert.errors import ConfigError
from modernbert.recipes.finetune.data import held_out
from modernbert.recipes.finetune.settings import FinetuneRun, LabelledData
from modernbert.recipes.finetune.trials import finetune_all, trials_of

pytest.importorskip("sklearn", reason="needs the extra `finetune`")
pytestmark = pytest.mark.usefixtures("undrawn")

Plan = Callable[..., FinetuneRun]


class TestWhich:
    def test_one_is_the_run_itself(self, plan: Plan) -> None:
        run = plan("classify")
        (trial,) = trials_of(run)
        assert (trial.run, trial.choice) == (run, {})

    def test_all_with_all(self, plan: Plan) -> None:
        run = plan(
            "classify",
            "trials.seeds=2",
            "trials.search={tuning.learning_rate: [1e-4, 3e-4], tuning.batch_size: [4]}",
        )
        found = [
            (it.run.tuning.learning_rate, it.run.tuning.batch_size, it.run.seed) for it in trials_of(run)
        ]
        assert found == [(1e-4, 4, 17), (1e-4, 4, 18), (3e-4, 4, 17), (3e-4, 4, 18)]
        names = [Path(it.run.folder).relative_to(run.folder) for it in trials_of(run)]
        assert names[0] == Path("trials/learning_rate=0.0001-batch_size=4-seed=17")
        assert len(set(names)) == 4

    def test_one_value_to_search_counts_too(self, plan: Plan) -> None:
        (trial,) = trials_of(plan("classify", "trials.search={tuning.learning_rate: [7e-4]}"))
        assert trial.run.tuning.learning_rate == 7e-4
        assert trial.name == "learning_rate=0.0007-seed=17"

    def test_folds_hold_out_each_example_once(self, plan: Plan) -> None:
        runs = [trial.run.data for trial in trials_of(plan("classify", "trials.folds=3"))]
        records = list(range(20))
        parts = [held_out(records, data) for data in runs]
        assert sorted(record for _, part in parts for record in part) == records
        for train, validation in parts:
            assert sorted(train + validation) == records
            assert len(validation) in (6, 7)

    def test_folds_and_a_validation_file(self, plan: Plan) -> None:
        with pytest.raises(ConfigError, match=r"`trials.folds` is 2 and `data.validation` `dev.csv`"):
            trials_of(plan("classify", "trials.folds=2", "data.validation=dev.csv", "data.held_out=0.1"))

    def test_an_unknown_setting_is_named(self, plan: Plan) -> None:
        with pytest.raises(ConfigError, match=r"did you mean `.*learning_rate`"):
            trials_of(plan("classify", "trials.search={tuning.learning_rat: [1e-4, 2e-4]}"))

    @pytest.mark.parametrize("name", ["seed", "device"])
    def test_what_is_not_a_trial_s_own_to_choose(self, name: str, plan: Plan) -> None:
        with pytest.raises(ConfigError, match=f"`trials.search` has `{name}`.* leave it out"):
            trials_of(plan("classify", f"trials.search={{{name}: [cpu]}}"))

    @pytest.mark.parametrize(("fold", "folds"), [(None, 3), (3, 3), (0, None)])
    def test_a_fold_that_there_is_not(self, fold: int | None, folds: int | None) -> None:
        with pytest.raises(ConfigError, match="`fold` is"):
            LabelledData(train="a.csv", fold=fold, folds=folds)


def test_the_best_gives_model_and_report(plan: Plan, tmp_path: Path) -> None:
    run = plan(
        "classify",
        "trials.seeds=2",
        "tuning.epochs=4",
        "trials.search={tuning.learning_rate: [1e-8, 3e-3]}",
    )
    outcomes = finetune_all(run)
    folder = tmp_path / "run"
    scores = [result.score or 0 for _, result in outcomes]
    assert [trial.choice["tuning.learning_rate"] for trial, _ in outcomes] == [3e-3, 3e-3, 1e-8, 1e-8]
    assert scores[0] >= scores[1]
    best = outcomes[0][1].model
    assert best is not None
    assert (folder / "model" / "model.safetensors").read_bytes() == (best / "model.safetensors").read_bytes()
    table = files.read_json(folder / "trials.json")
    assert table["metric"] == "accuracy"
    assert [row["score"] for row in table["best_first"]] == scores
    spread = files.read_json(folder / "report.json")["findings"]["validation"]["spread"]["accuracy"]
    assert spread["mean"] == pytest.approx(sum(scores[:2]) / 2)
    assert [result.score for _, result in finetune_all(run)] == scores  # it is done, and says so again
    assert config.load(folder / "run.yaml") == config.to_tree(run)
    for other in (replace(run, trials=replace(run.trials, seeds=3)), plan("classify", "tuning.epochs=4")):
        with pytest.raises(ConfigError, match=r"holds a run with other settings .*`trials.seeds`: 2 →"):
            finetune_all(other)


def test_the_best_by_a_figure_of_which_less_is_better(plan: Plan) -> None:
    search = "trials.search={tuning.learning_rate: [3e-3, 1e-8]}"
    outcomes = finetune_all(plan("classify", "tuning.epochs=2", "selection.metric=log_loss", search))
    scores = [result.score for _, result in outcomes]
    assert None not in scores
    assert scores == sorted(scores)  # type: ignore[type-var]
    assert outcomes[0][0].choice["tuning.learning_rate"] == 3e-3
