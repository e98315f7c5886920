"""What a fine-tuning benchmark is made of: tasks with their columns, labels, metrics and values, as data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from modernbert.errors import ConfigError, InputError, did_you_mean

Kind = Literal["classify", "tag", "choose"]
Row = Mapping[str, Any]
"""A row of a data file, by column."""
Example = dict[str, Any]
"""What is written for fine-tuning: `text`, `text_pair`, `label`; `tokens`, `tags`; `prompt`, `choices`,
`label`. A `group` names the question that it belongs to, where a metric needs that."""
Size = Literal["base", "large"]

TRAIN, DEV = "train", "dev"
CONVERTED = "refs/convert/parquet"
"""Where the hub keeps the rows of a data set that comes as a script."""


@dataclass(frozen=True, kw_only=True)
class Values:
    """What a grid varies."""

    learning_rate: float
    weight_decay: float
    epochs: float

    def __post_init__(self) -> None:
        for key in ("learning_rate", "epochs"):
            if getattr(self, key) <= 0:
                raise ConfigError(f"`{key}` is {getattr(self, key)}; it must be above 0")
        if self.weight_decay < 0:
            raise ConfigError(f"`weight_decay` is {self.weight_decay}; it must be at least 0")

    @property
    def name(self) -> str:
        """A part of a file's name."""
        return f"lr{self.learning_rate:g}-wd{self.weight_decay:g}-ep{self.epochs:g}"

    def __str__(self) -> str:
        return f"{self.learning_rate:g} / {self.weight_decay:g} / {self.epochs:g}"


@dataclass(frozen=True, kw_only=True)
class SuiteTask:
    """One task.

    Attributes:
        name: What options and folders call it.
        title: What tables call it.
        kind: What is fine-tuned.
        splits: Of each split, the names that its files may have. `train` and `dev` every task has; the
            others are tested on the best model.
        examples: Makes the examples of a row; the errors that it raises name what is wrong with the row.
        labels: In the order of the hub's numbers; empty for a number or a choice.
        metrics: Names in `scores.METRICS`; the first is the task's score in tables.
        values: The best ones, by the size of the model.
        epoch_grid: Of the sweep.
        hub: Data set, subset and revision on the hub.
        hub_splits: What the hub calls the splits.
        scored_on: The split whose score tables show.
        from_mnli: Whether it starts from a model fine-tuned on MNLI.
        header: Columns of a tab-separated file that has no header.
        aliases: Other names of its folder.
        in_mean: Whether it counts in the mean, as published.
        selected_by: Fine-tuning's figure of dev by which it takes a checkpoint; None: its own choice.
    """

    name: str
    title: str
    kind: Kind
    splits: Mapping[str, tuple[str, ...]]
    examples: Callable[[Row], Iterable[Example]]
    labels: tuple[str, ...] = ()
    metrics: tuple[str, ...]
    values: Mapping[Size, Values]
    epoch_grid: tuple[float, ...]
    hub: tuple[str, str | None, str | None]
    hub_splits: Mapping[str, str]
    scored_on: str = DEV
    from_mnli: bool = False
    header: tuple[str, ...] | None = None
    aliases: tuple[str, ...] = ()
    in_mean: bool = True
    selected_by: str | None = None


@dataclass(frozen=True, kw_only=True)
class Suite:
    """A benchmark.

    Attributes:
        default: Names of the tasks that run if none are named.
        batch_size: Examples of a step.
        max_length: Tokens beyond which texts are cut; None: what the model takes.
        note: Where the values come from.
        learning_rates: Of the sweep, as are `weight_decays`.
    """

    name: str
    title: str
    tasks: Mapping[str, SuiteTask]
    default: tuple[str, ...]
    batch_size: int
    note: str
    max_length: int | None = None
    learning_rates: tuple[float, ...] = (1e-5, 3e-5, 5e-5, 8e-5)
    weight_decays: tuple[float, ...] = (1e-6, 5e-6, 8e-6, 1e-5)

    def choose(self, names: Iterable[str] | None) -> tuple[SuiteTask, ...]:
        """Return the tasks of these names, in the suite's order; of None, those that run by default.

        Raises:
            ConfigError: There is no such task.
        """
        wanted = self.default if names is None else tuple(names)
        for name in wanted:
            if name not in self.tasks:
                raise ConfigError(f"unknown task `{name}` of {self.title}{did_you_mean(name, self.tasks)}")
        return tuple(task for name, task in self.tasks.items() if name in wanted)

    def grid(self, task: SuiteTask) -> Iterator[Values]:
        """Yield what the sweep of a task tries."""
        for rate in self.learning_rates:
            for decay in self.weight_decays:
                for epochs in task.epoch_grid:
                    yield Values(learning_rate=rate, weight_decay=decay, epochs=epochs)


def one_value(learning_rate: float, weight_decay: float, epochs: float) -> dict[Size, Values]:
    """Return the same values for both sizes."""
    values = Values(learning_rate=learning_rate, weight_decay=weight_decay, epochs=epochs)
    return {"base": values, "large": values}


def text_of(row: Row, *columns: str) -> str:
    """Return the text that stands in the first of these columns that there is.

    Raises:
        InputError: None is there, or it holds no text.
    """
    column, value = _find(row, columns)
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"`{column}` is {value!r}; it must be a text")
    return value.strip()


def label_of(row: Row, labels: tuple[str, ...], *columns: str) -> str:
    """Return the name of a row's label, which may stand there as its number, or as true or false.

    Raises:
        InputError: No such column, or no such label.
    """
    column, value = _find(row, columns or ("label",))
    if isinstance(value, str) and value.strip() in labels:
        return value.strip()
    try:
        number = int(value)
    except (TypeError, ValueError):
        number = -1
    if isinstance(value, float) and value != number:
        number = -1
    if not 0 <= number < len(labels):
        raise InputError(f"`{column}` is {value!r}; it must be one of {', '.join(labels)}")
    return labels[number]


def number_of(row: Row, *columns: str) -> float:
    """Return the number that stands in the first of these columns that there is.

    Raises:
        InputError: None is there, or it holds no number.
    """
    column, value = _find(row, columns)
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if number != number:  # no number
        raise InputError(f"`{column}` is {value!r}; it must be a number")
    return number


def _find(row: Row, columns: tuple[str, ...]) -> tuple[str, Any]:
    for column in columns:
        if column in row:
            return column, row[column]
    raise MissingColumn(
        f"there is no column `{columns[0]}`{did_you_mean(columns[0], map(str, row))}"
        if row
        else f"there is no column `{columns[0]}`"
    )


class MissingColumn(InputError):
    """A column that a file lacks: no row of it can be used."""
