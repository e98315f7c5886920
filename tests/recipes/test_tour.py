from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from modernbert import cli
from modernbert.errors import BackendError, ConfigError
from modernbert.recipes import pretrain as recipe
from modernbert.recipes import tour_text
from modernbert.recipes.tour import TEXTS, tour
from modernbert.train.loop import StepReport, train

SMALL = (
    "device=cpu",
    *("model.vocab_size=384", "tokenizer.vocab_size=384", "micro_batch_tokens=512"),
    *("model.hidden_size=32", "model.num_attention_heads=2", "model.intermediate_size=48"),
    *(f"phases.{phase}.batch_tokens=512" for phase in range(3)),
    *("phases.0.tokens=2000", "phases.0.warmup_tokens=1000", "phases.1.tokens=1500", "phases.2.tokens=1500"),
    *("validation.every_tokens=2000", "validation.max_tokens=2000", "validation.fraction=0.1"),
)


@pytest.fixture
def few_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    """The topics of `help()` are enough for a tour of a few steps."""
    topics = list(islice(tour_text.documents(), 60))
    monkeypatch.setattr(tour_text, "documents", lambda: iter(topics))


def test_python_brings_enough_text() -> None:
    all_documents = list(tour_text.documents())
    assert len(all_documents) > 300
    assert sum(map(len, all_documents)) > 1_000_000
    assert all(text.strip() for text in all_documents)
    whole = "\n".join(all_documents)
    whole.encode("utf-8")  # no half characters
    assert "Dictionary that remembers insertion order" in whole
    assert len(set(all_documents)) > 0.9 * len(all_documents)


def test_the_library_may_lie_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only below it do names of folders matter."""
    library = tmp_path / "test" / "config" / "lib"
    for name in ("used.py", "inner/also.py", "test/not.py", "site-packages/x/not.py"):
        (library / name).parent.mkdir(parents=True, exist_ok=True)
        (library / name).write_text(f'"""Docstring of {name}."""\n', encoding="utf-8")
    monkeypatch.setattr(tour_text.sysconfig, "get_path", lambda _: str(library))
    found = [text for text in tour_text.documents() if text.startswith("Docstring")]
    assert found == ["Docstring of inner/also.py.", "Docstring of used.py."]


def test_docstrings_of_a_module_are_joined_in_order(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text(
        '"""First."""\nx = 1\n\n\nclass A:\n    """Second.\n\n    Indented.\n    """\n\n'
        '    def f(self):\n        "Third."\n\n    async def g(self):\n        return 1\n',
        encoding="utf-8",
    )
    assert tour_text._docstrings(path) == "First.\n\nSecond.\n\nIndented.\n\nThird."
    path.write_text("def broken(:\n", encoding="utf-8")
    assert tour_text._docstrings(path) == ""
    path.write_text('"""Half \\ud800 a character."""\n', encoding="utf-8")
    assert tour_text._docstrings(path) == "Half  a character."


@pytest.mark.usefixtures("few_documents")
def test_text_is_gathered_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tour_text.write_text(tmp_path / "text")
    lines = path.read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [{"text": text} for text in tour_text.documents()]
    monkeypatch.setattr(tour_text, "documents", lambda: iter(["other"]))
    assert tour_text.write_text(tmp_path / "text") == path
    assert path.read_text(encoding="utf-8").splitlines() == lines


@pytest.mark.usefixtures("few_documents")
def test_text_whose_gathering_failed_is_gathered_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted() -> Iterator[str]:
        yield "one"
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tour_text, "documents", interrupted)
        with pytest.raises(KeyboardInterrupt):
            tour_text.write_text(tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert len(tour_text.write_text(tmp_path).read_text(encoding="utf-8").splitlines()) == 60


@pytest.mark.usefixtures("few_documents")
def test_a_tour_of_ten_steps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "tour"
    result = tour(folder, SMALL)
    assert result.training.model == folder / "model"
    assert (folder / "report.png").read_bytes().startswith(b"\x89PNG\r\n")
    assert result.report == folder / "report.html"
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert 8 <= max(record["step"] for record in records) <= 14
    assert len({record["phase"] for record in records}) == 3
    assert [len(fills) for fills in result.fills] == [3] * len(TEXTS)
    summary = result.summary()
    assert all(text in summary for text in TEXTS)
    assert f"its curves are drawn in {folder}/report.html" in summary
    assert "held-out masked loss" in summary
    assert f'modernbert fill-mask "Return the [MASK] of the list." -m {folder}/model' in summary

    assert cli.main(["tour", "--folder", str(folder), *SMALL]) == 0  # again: all is there
    assert capsys.readouterr().out == summary + "\n"


@pytest.mark.usefixtures("few_documents")
def test_a_relative_folder_that_looks_like_a_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="`seed` is -1"):
        tour(Path("2024"), ["seed=-1"])


@pytest.mark.usefixtures("few_documents")
def test_an_override_may_name_another_folder(tmp_path: Path) -> None:
    result = tour(tmp_path / "tour", [*SMALL, f"folder={tmp_path}/elsewhere"])
    assert result.report == tmp_path / "elsewhere" / "report.html"
    assert result.report.exists()


@pytest.mark.usefixtures("few_documents")
def test_a_tour_that_is_stopped_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopping(*arguments: Any, **options: Any) -> Iterator[StepReport]:
        for report in train(*arguments, **options):
            if report.batch.clock.step == 3:
                signal.raise_signal(signal.SIGINT)
            yield report

    command = ["tour", "--folder", str(tmp_path / "tour"), *SMALL]
    with monkeypatch.context() as patch:
        patch.setattr(recipe, "train", stopping)
        assert cli.main(command) == 1
    assert "stopped by SIGINT, saved in" in capsys.readouterr().out
    assert not (tmp_path / "tour" / "report.html").exists()
    assert cli.main(command) == 0
    steps = [json.loads(line) for line in (tmp_path / "tour" / "metrics.jsonl").read_text().splitlines()]
    numbers = [record["step"] for record in steps if record["event"] == "step"]
    assert numbers == list(range(1, len(numbers) + 1))


def test_a_tour_without_matplotlib_ends_before_it_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(BackendError, match=r"needs matplotlib.*run `pip install 'modernbert\[train\]'`"):
        tour(tmp_path / "tour")
    assert not (tmp_path / "tour").exists()
