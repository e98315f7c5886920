"""What the world is told: lines where nobody watches, a bar on a terminal, results apart from remarks."""

from __future__ import annotations

import errno
import io
import json
import logging
import re
import sys
import time
from collections.abc import Iterator
from contextlib import redirect_stderr
from pathlib import Path

import pytest
from rich.console import Console

from modernbert import telemetry
from modernbert.errors import StorageError
from modernbert.telemetry import drawn

Captured = pytest.CaptureFixture[str]


class Clock:
    """A clock that moves when it is told to."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock)
    return clock


def plain(text: str) -> str:
    """The text without the codes that move a terminal's cursor and set its colours."""
    return re.sub(r"\x1b\[[?\d;]*[A-Za-z]", "", text)


def lines(captured: Captured) -> list[str]:
    out, err = captured.readouterr()
    assert out == ""
    return plain(err).splitlines()


class TestLines:
    """Progress where stderr is no terminal."""

    def test_at_most_one_every_ten_seconds_with_rate_and_time_to_go(
        self, clock: Clock, capsys: Captured
    ) -> None:
        with telemetry.progress("train", 100_000, "tokens") as meter:
            for step in range(100):
                clock.now += 0.5
                meter.advance(1000, loss=f"{step:.1f}")
        assert lines(capsys) == [
            "train: 20k/100k tokens, 2k/s, 0:00:40 to go  loss 19.0",
            "train: 40k/100k tokens, 2k/s, 0:00:30 to go  loss 39.0",
            "train: 60k/100k tokens, 2k/s, 0:00:20 to go  loss 59.0",
            "train: 80k/100k tokens, 2k/s, 0:00:10 to go  loss 79.0",
            "train: 100k/100k tokens, 2k/s  loss 99.0",
        ]

    def test_short_work_gets_one_line_at_its_end(self, clock: Clock, capsys: Captured) -> None:
        with telemetry.progress("read", None, "bytes") as meter:
            clock.now += 2
            meter.advance(500)
            meter.advance(1500)
        assert lines(capsys) == ["read: 2k bytes, 1k/s"]

    def test_no_line_stands_twice(self, clock: Clock, capsys: Captured) -> None:
        with telemetry.progress("read", 10, "bytes") as meter:
            clock.now += 20
            meter.advance(10)
        assert lines(capsys) == ["read: 10/10 bytes, 0.5/s"]

    def test_going_beyond_the_total_is_no_negative_time(self, clock: Clock, capsys: Captured) -> None:
        with telemetry.progress("read", 10, "bytes") as meter:
            for _ in range(3):
                clock.now += 1
                meter.advance(8)
        assert lines(capsys) == ["read: 24/10 bytes, 8/s"]

    def test_what_was_done_before_has_no_part_in_the_rate(self, clock: Clock, capsys: Captured) -> None:
        with telemetry.progress("train", 200, "tokens", done=100) as meter:
            clock.now += 10
            meter.advance(20)
        assert lines(capsys) == ["train: 120/200 tokens, 2/s, 0:00:40 to go"]

    def test_long_work_counts_days(self, clock: Clock, capsys: Captured) -> None:
        with telemetry.progress("train", 10**9, "tokens") as meter:
            clock.now += 1
            meter.advance(2000)
        assert lines(capsys) == ["train: 2k/1G tokens, 2k/s, 5 days, 18:53:19 to go"]

    def test_nothing_done_is_nothing_said(self, clock: Clock, capsys: Captured) -> None:
        with telemetry.progress("read", 10, "bytes"):
            clock.now += 100
        assert lines(capsys) == []

    def test_no_time_passed_is_no_rate(self, clock: Clock, capsys: Captured) -> None:
        with telemetry.progress("read", 10, "bytes") as meter:
            meter.advance(5)
        assert lines(capsys) == ["read: 5/10 bytes, 0/s"]

    def test_an_error_passes_and_leaves_the_last_word(self, clock: Clock, capsys: Captured) -> None:
        def work() -> None:
            with telemetry.progress("read", 10, "bytes") as meter:
                clock.now += 1
                meter.advance(5)
                raise RuntimeError("broken")

        with pytest.raises(RuntimeError, match="broken"):
            work()
        assert lines(capsys) == ["read: 5/10 bytes, 5/s, 0:00:01 to go"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True

    @property
    def shown(self) -> list[str]:
        return [line.rstrip() for line in plain(self.getvalue()).splitlines() if line.strip()]


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Where someone watches, 100 characters wide; a test redirects stderr to it."""
    console = Console(
        stderr=True, markup=False, emoji=False, force_terminal=True, width=100, color_system=None
    )
    monkeypatch.setattr(drawn, "_STDERR", console)
    return Terminal()


class TestBar:
    """Progress on a terminal."""

    def test_shows_amount_rate_and_facts(self, terminal: Terminal) -> None:
        with redirect_stderr(terminal), telemetry.progress("train", 2000, "tokens") as meter:
            meter.advance(500, loss="2.5", phase="one")
            meter.advance(1000, loss="1.5", phase="two")
        last = terminal.shown[-1]
        assert "train" in last
        assert "━" in last
        assert "1.5k/2k tokens" in last
        assert "/s" in last
        assert "loss 1.5  phase two" in last

    def test_an_unknown_total_is_not_shown(self, terminal: Terminal) -> None:
        with redirect_stderr(terminal), telemetry.progress("read", None, "bytes") as meter:
            meter.advance(12)
        assert " 12 bytes " in terminal.shown[-1]

    def test_what_was_done_before_counts_for_the_bar_and_not_for_the_rate(self, terminal: Terminal) -> None:
        with redirect_stderr(terminal), telemetry.progress("train", 2000, "tokens", done=1000):
            pass
        assert "1k/2k tokens 0/s" in terminal.shown[-1]

    def test_brackets_and_colons_are_text(self, terminal: Terminal) -> None:
        with redirect_stderr(terminal), telemetry.progress("tokenize [red]", 2, "texts") as meter:
            meter.advance(1, phase="[/x] :smile:")
        assert "tokenize [red]" in terminal.shown[-1]
        assert "phase [/x] :smile:" in terminal.shown[-1]

    def test_remarks_and_log_stand_above_it(self, terminal: Terminal, package_log: logging.Logger) -> None:
        telemetry.configure_logging()
        with redirect_stderr(terminal), telemetry.progress("train", 2, "texts") as meter:
            telemetry.note("a remark")
            package_log.info("a choice")
            meter.advance(1)
        assert any(line.endswith("a remark") for line in terminal.shown)
        assert any(line.endswith("a choice") for line in terminal.shown)
        assert "train" in terminal.shown[-1]

    def test_an_error_gives_the_terminal_back(self, terminal: Terminal) -> None:
        def work() -> None:
            with telemetry.progress("train", 2, "texts"):
                raise RuntimeError("broken")

        with redirect_stderr(terminal):
            with pytest.raises(RuntimeError, match="broken"):
                work()
            assert sys.stderr is terminal


@pytest.fixture
def package_log() -> Iterator[logging.Logger]:
    """The package's logger, given back as it was."""
    logger = logging.getLogger("modernbert")
    handlers, level = logger.handlers, logger.level
    yield logger
    logger.handlers = handlers
    logger.setLevel(level)


class TestLogging:
    def test_goes_to_stderr_without_markup(self, package_log: logging.Logger, capsys: Captured) -> None:
        telemetry.configure_logging()
        logging.getLogger("modernbert.ops").info("chose [MASK] for %s", "cpu")
        logging.getLogger("modernbert.ops").debug("a detail")
        (line,) = lines(capsys)
        assert "chose [MASK] for cpu" in line

    def test_tells_details_on_request_and_nothing_twice(
        self, package_log: logging.Logger, capsys: Captured
    ) -> None:
        telemetry.configure_logging()
        telemetry.configure_logging(verbose=True)
        package_log.debug("a detail")
        (line,) = lines(capsys)
        assert "a detail" in line


def test_results_go_to_stdout_and_remarks_to_stderr(capsys: Captured) -> None:
    telemetry.result("a result [MASK]")
    telemetry.note("a remark")
    telemetry.note()
    assert capsys.readouterr() == ("a result [MASK]\n", "a remark\n\n")


@pytest.mark.parametrize(
    ("encoding", "text", "as_json"),
    [
        ("utf-8", "Ġü", '"Ġü"'),
        ("cp1252", r"\u0120ü", r'"\u0120\u00fc"'),
        ("ascii", r"\u0120\xfc", r'"\u0120\u00fc"'),
    ],
)
def test_results_fit_the_encoding_of_stdout(
    encoding: str, text: str, as_json: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stdout = io.TextIOWrapper(io.BytesIO(), encoding=encoding, newline="")
    monkeypatch.setattr(sys, "stdout", stdout)
    telemetry.accept_any_text()
    telemetry.result("Ġü")
    telemetry.result_json("Ġü")
    stdout.seek(0)
    assert stdout.read() == f"{text}\n{as_json}\n"


def test_any_stream_may_stand_for_stdout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    telemetry.accept_any_text()
    telemetry.result_json("Ġ")
    assert json.loads(sys.stdout.getvalue()) == "Ġ"  # type: ignore[attr-defined]


class TestTable:
    def test_shows_names_and_values_on_stderr(self, capsys: Captured) -> None:
        telemetry.table("Phases", [{"phase": "[one]", "tokens": 5}, {"phase": ":smile:", "tokens": None}])
        title, *sheet = lines(capsys)
        assert title.strip() == "Phases"
        cells = [
            [cell.strip() for cell in line.strip("┃│").replace("┃", "│").split("│")] for line in sheet[1:-1]
        ]
        assert cells[0] == ["phase", "tokens"]
        assert cells[2:] == [["[one]", "5"], [":smile:", "None"]]

    def test_may_be_empty(self, capsys: Captured) -> None:
        telemetry.table("Phases", [])
        assert all(not line.strip() or "Phases" in line for line in lines(capsys))


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (7, "7"),
        (0.5, "0.5"),
        (0.123456, "0.123"),
        (999, "999"),
        (999.4, "999"),
        (999.6, "1k"),
        (1000, "1k"),
        (1234, "1.23k"),
        (999_499, "999k"),
        (999_999, "1M"),
        (149_655_232, "150M"),
        (1.719e12, "1.72T"),
        (5e9, "5G"),
        (-25_000, "-25k"),
    ],
)
def test_numbers_for_people(number: float, text: str) -> None:
    assert telemetry.human(number) == text


class TestJsonLines:
    def test_appends_and_writes_through(self, tmp_path: Path) -> None:
        path = tmp_path / "deep" / "metrics.jsonl"
        records = [{"step": 1, "loss": 0.5}, {"text": "größer\nline", "none": None}]
        for number, record in enumerate(records, start=1):
            telemetry.JsonLines(path).write(record)
            written = path.read_text(encoding="utf-8").splitlines()
            assert [json.loads(line) for line in written] == records[:number]
        assert "größer" in path.read_text(encoding="utf-8")

    def test_a_full_disk_is_told(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(*_: object, **__: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(Path, "open", full)
        with pytest.raises(StorageError, match=r"metrics\.jsonl`: the disk is full; free space"):
            telemetry.JsonLines(tmp_path / "metrics.jsonl").write({"step": 1})


def test_of_several_processes_the_first_speaks(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def speak() -> None:
        telemetry.result("a result")
        telemetry.note("a remark")

    monkeypatch.setenv("RANK", "1")
    speak()
    assert capfd.readouterr() == ("", "")
    monkeypatch.setenv("RANK", "0")
    speak()
    assert capfd.readouterr() == ("a result\n", "a remark\n")
