"""What is drawn on a terminal through `rich`: tables, the log, the bar of a progress."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Column, Table
from rich.text import Text

from modernbert.telemetry.words import beside, human

WIDTH_WITHOUT_TERMINAL = 120

# One for all, so that a line of the log moves a progress bar down. `[MASK]` and `:a:` are text, not markup.
_STDERR = Console(stderr=True, markup=False, emoji=False)
_STDERR.width = _STDERR.width if _STDERR.is_terminal else WIDTH_WITHOUT_TERMINAL


def log_handler() -> RichHandler:
    """Return what writes a log to stderr."""
    return RichHandler(console=_STDERR, show_path=False, show_time=False, markup=False)


def table(title: str, rows: Sequence[Mapping[str, object]]) -> None:
    """Show rows of equal keys as a table on stderr."""
    sheet = Table(title=title, title_justify="left")
    for name in rows[0] if rows else ():
        sheet.add_column(name, justify="right" if name != next(iter(rows[0])) else "left")
    for row in rows:
        sheet.add_row(*(str(value) for value in row.values()))
    _STDERR.print(sheet)


class Bar:
    """The `Meter` of a terminal."""

    def __init__(self, title: str, total: float | None, unit: str, done: float) -> None:
        facts = Column()  # in a narrow window they wrap, lest the time to go is cut
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=12),
            _Amount(unit),
            TimeRemainingColumn(table_column=Column(no_wrap=True)),
            TextColumn("{task.fields[facts]}", markup=False, table_column=facts),
            console=_STDERR,
        )
        self._task = self._bar.add_task(title, total=total, facts="", done=done)
        self._bar.update(self._task, completed=done)

    def __enter__(self) -> Bar:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self._bar.stop()

    def advance(self, amount: float, **facts: object) -> None:
        """See `Meter`."""
        self._bar.update(self._task, advance=amount, facts=beside(facts))


class _Amount(ProgressColumn):
    """Units done, units in all, units a second."""

    def __init__(self, unit: str) -> None:
        super().__init__(table_column=Column(no_wrap=True))
        self._unit = unit

    def render(self, task: Task) -> Text:
        done = human(task.completed)
        whole = f"/{human(task.total)}" if task.total is not None else ""
        seconds = task.elapsed or 0.0
        rate = (task.completed - task.fields["done"]) / seconds if seconds else 0.0
        return Text(f"{done}{whole} {self._unit} {human(rate)}/s")
