"""Settings that a task has no use for are refused; the table that says so names settings that there are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any, get_args

import pytest

from modernbert.data.columns import Columns
from modernbert.errors import ConfigError
from modernbert.recipes.finetune.settings import TAKEN_BY, FinetuneRun, HeadSettings, TaskName

Plan = Callable[..., FinetuneRun]

OTHERS: dict[str, Any] = {
    "data.label_separator": "'|'",
    "data.stride": 32,
    "head.problem": "regression",
    "head.pooling": "cls",
    "head.dropout": 0.1,
    "head.label_smoothing": 0.1,
    "head.class_weights": "balanced",
    "head.template": "'{text} [MASK]'",
    "head.words": "{a: b}",
}


def test_every_setting_of_head_and_columns_is_somebodys() -> None:
    names = {f"head.{it.name}" for it in fields(HeadSettings)}
    names |= {f"data.columns.{it.name}" for it in fields(Columns)}
    assert names <= TAKEN_BY.keys()


@pytest.mark.parametrize("name", TAKEN_BY)
def test_is_taken_by_some_and_refused_by_the_others(name: str, plan: Plan) -> None:
    assert set(TAKEN_BY[name]) < set(get_args(TaskName))
    for task in get_args(TaskName):
        setting = f"{name}={OTHERS.get(name, 'column')}"
        if task in TAKEN_BY[name]:
            plan(task, setting)
            continue
        with pytest.raises(ConfigError, match=f"`{name}` is .*; `{task}` has no use for it, only `"):
            plan(task, setting)
