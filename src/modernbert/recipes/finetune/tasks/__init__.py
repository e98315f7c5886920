"""What can be fine-tuned for: one module a task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from modernbert.recipes.finetune.settings import TaskName
from modernbert.recipes.finetune.task import TuningTask
from modernbert.recipes.finetune.tasks.answer import Answer
from modernbert.recipes.finetune.tasks.choose import Choose
from modernbert.recipes.finetune.tasks.classify import Classify
from modernbert.recipes.finetune.tasks.prompt import Prompt
from modernbert.recipes.finetune.tasks.tag import Tag

TASKS: Mapping[TaskName, type[TuningTask[Any]]] = {
    "classify": Classify,
    "tag": Tag,
    "answer": Answer,
    "choose": Choose,
    "prompt": Prompt,
}
