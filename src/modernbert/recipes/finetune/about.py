"""What a fine-tuning run was: the facts that its report and its model card tell beside the figures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from modernbert import config, files
from modernbert.errors import ConfigError, InputError
from modernbert.recipes.finetune.settings import TaskName

FILE = "about.json"


@dataclass(frozen=True, kw_only=True)
class DataPart:
    """The examples of one split.

    Attributes:
        split: `train`, `validation` or `test`.
        source: The file or data set, as it was given.
        num_examples: How many were used.
        num_tokens: Of all of them.
    """

    split: str
    source: str
    num_examples: int
    num_tokens: int


@dataclass(frozen=True, kw_only=True)
class About:
    """One fine-tuning run.

    Attributes:
        task: The verb's task.
        model: What the new model is called.
        base_model: The checkpoint that was fine-tuned: a hub id, or a folder.
        num_parameters: Of the new model.
        num_trained: How many of them were trained; with adapters far fewer.
        labels: Names of the labels, in the order of the model's outputs; empty where there are none.
        data: One a split.
        takes_pairs: Whether an example is two texts.
        remarks: What was odd about the data, counted.
        seeds: Of the runs, the one whose model was kept first.
        runs: The folders with `metrics.jsonl` of each of them, beside or below this file's folder.
        best_step: Step of the checkpoint that was kept.
        num_steps: Steps taken.
        seconds: How long all of it took.
        language: Code of the texts' language, such as `en`; None: not said.
        license: The model's, as the hub names it; None: not said.
    """

    task: TaskName
    model: str
    base_model: str
    num_parameters: int
    num_trained: int
    labels: tuple[str, ...] = ()
    data: tuple[DataPart, ...] = ()
    takes_pairs: bool = False
    remarks: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0,)
    runs: tuple[str, ...] = (".",)
    best_step: int | None = None
    num_steps: int = 0
    seconds: float = 0.0
    language: str | None = None
    license: str | None = None

    def part(self, split: str) -> DataPart | None:
        """Return the data of a split; None if there is none."""
        return next((part for part in self.data if part.split == split), None)


def write_about(folder: Path, about: About) -> Path:
    """Write it into a run's folder; return the file.

    Raises:
        StorageError: The disk is full or not writable.
    """
    path = folder / FILE
    files.write_json(path, config.to_tree(about))
    return path


def read_about(folder: Path) -> About:
    """Read it from a run's folder.

    Raises:
        InputError: The folder holds none, or something else in its place.
    """
    path = folder / FILE
    tree = files.read_json(path)
    try:
        return config.build(About, tree)
    except (ConfigError, TypeError) as error:
        raise InputError(
            f"`{path}` does not describe a fine-tuning run: {error}; give the folder of one"
        ) from None


def command(about: About, folder: str) -> str:
    """Return the command that uses the model in `folder`."""
    pair = ' --pair "…"' if about.takes_pairs else ""
    return {
        "classify": f'modernbert classify -m {folder} "…"{pair}',
        "tag": f'modernbert tag -m {folder} "…"',
        "answer": f'modernbert answer -m {folder} "QUESTION" "TEXT"',
        "choose": f'modernbert choose -m {folder} "PROMPT" "CHOICE" "CHOICE"',
        "prompt": f'modernbert fill-mask -m {folder} "… [MASK] …"',
    }[about.task]
