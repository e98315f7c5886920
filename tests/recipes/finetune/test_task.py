"""Evaluating among several processes: each computes a share, and what is found is what one finds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from modernbert.data.tokenizer import Tokenizer
from modernbert.infer.runner import TorchRunner
from modernbert.recipes.finetune.data import open_texts, read_splits
from modernbert.recipes.finetune.settings import FinetuneRun
from modernbert.recipes.finetune.task import QUICK, VALIDATION, TuningTask
from modernbert.recipes.finetune.tasks import TASKS
from modernbert.recipes.tuning.start import begin
from modernbert.train.ranks import Ranks

pytest.importorskip("sklearn", reason="needs the extra `finetune`")
pytest.importorskip("seqeval", reason="needs the extra `finetune`")

Plan = Callable[..., FinetuneRun]


@dataclass(frozen=True, eq=False)
class InTurn(Ranks):
    """Ranks that have their turn one after the other, the first one last."""

    given: list[Any] = field(default_factory=list)

    def to_first(self, value: Any) -> list[Any]:
        self.given.insert(0, value)
        return self.given if self.is_first else []


def task_and_runner(run: FinetuneRun) -> tuple[TuningTask[Any], TorchRunner]:
    kind = TASKS[run.task]
    task = kind(run, open_texts(run, Tokenizer.from_pretrained(run.model)), read_splits(run, kind))
    return task, TorchRunner(begin(run, task.kind, task.head()).eval())


@pytest.mark.parametrize("task", sorted(TASKS))
@pytest.mark.parametrize("size", [2, 5])
def test_ranks_find_together_what_one_finds(
    task: Any, size: int, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuned, runner = task_and_runner(plan(task, "micro_batch_tokens=64"))
    expected, passes, compute = tuned.evaluate(runner, VALIDATION), [], tuned._compute
    monkeypatch.setattr(tuned, "_compute", lambda *given: passes.append(len(given[1])) or compute(*given))
    given: list[Any] = []
    found = [
        tuned.evaluate(runner, VALIDATION, ranks=InTurn(rank=rank, size=size, given=given))
        for rank in reversed(range(size))
    ]
    assert found[-1] == expected
    assert len(passes) % size == 0, "as many by each, as sharded weights need"
    assert sum(map(len, given)) > len(passes) - size, "and no more than that"


@pytest.mark.parametrize("data", ["classify", "sets", "values", "tag", "answer", "choose", "prompt"])
def test_the_names_of_figures_are_known_without_a_model(data: str, plan: Plan) -> None:
    tuned, runner = task_and_runner(plan(data if data in TASKS else "classify", data=data))
    assert sorted(tuned.figure_names(VALIDATION)) == sorted(tuned.evaluate(runner, VALIDATION, QUICK).figures)
