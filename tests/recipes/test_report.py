"""The page needs nothing but itself, says what happened, and lets no text become markup."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from modernbert.errors import BackendError, InputError
from modernbert.recipes.history import read_history
from modernbert.recipes.report import render_page, write_report
from tests.recipes.pages import Page

WriteCourse = Callable[..., Path]
LENGTHS = [
    {"length": n, "loss": 2.0, "accuracy": 0.5, "pseudo_perplexity": 6.5, "stride": 8, "num_tokens": 9}
    for n in (64, 512)
]


def lines_of(page: Page) -> list[dict[str, object]]:
    """The data behind a page's charts."""
    return [json.loads(value) for key, value in page.attributes if key == "data-lines"]


def page_of(*folders: Path) -> tuple[str, Page]:
    html = render_page([read_history(folder) for folder in folders])
    return html, Page(html)


def test_a_page_and_a_picture_are_written_into_the_runs_folder(write_course: WriteCourse) -> None:
    folder = write_course()
    before = {path.name for path in folder.iterdir()}
    assert write_report([folder]) == (folder / "report.html", folder / "report.png")
    assert {path.name for path in folder.iterdir()} == before | {"report.html", "report.png"}
    assert (folder / "report.png").read_bytes().startswith(b"\x89PNG")
    Page((folder / "report.html").read_text(encoding="utf-8"))


def test_another_name_may_hold_a_dot(write_course: WriteCourse, tmp_path: Path) -> None:
    page, picture = write_report([write_course()], tmp_path / "new" / "v1.5")
    assert (page, picture) == (tmp_path / "new" / "v1.5.html", tmp_path / "new" / "v1.5.png")
    assert page.exists()
    assert picture.exists()
    assert write_report([tmp_path / "run"], tmp_path / "named.html") == (
        tmp_path / "named.html",
        tmp_path / "named.png",
    )


def test_the_page_asks_no_other_host(write_course: WriteCourse) -> None:
    html, page = page_of(write_course(by_length=LENGTHS))
    named = {value for key, value in page.attributes if "//" in value and not key.startswith("xmlns")}
    assert named == set()
    assert not re.search(r"<(link|img|iframe|script [^>]*src)|@import|url\((?!#)", html)


def test_the_page_shows_what_happened(write_course: WriteCourse) -> None:
    sources = [{"source": "web", "loss": 1.875, "accuracy": 0.5, "num_masked": 9}]
    folder = write_course(by_length=LENGTHS, by_source=sources)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"event": "skip", "step": 30, "tokens": 3000, "message": "a bad step"}) + "\n")
    _, page = page_of(folder)
    shown = {
        "75% of 4k tokens, 0:00:01 to go",
        "3k",
        "0:01:00",
        "1.500",
        "60.0%",
    }  # progress, tokens, time, held out
    shown |= {"Masked loss", "Learning rate", "Throughput", "Context", "long", "decay", "6.50", "a bad step"}
    shown |= {"Held-out text of each source", "web", "1.875"}
    assert shown <= {text.strip() for text in page.texts}
    assert "Model FLOPs utilisation" not in page.texts
    assert any("seed: 1" in text for text in page.texts)
    assert any("Abacus 9000" in text for text in page.texts)


def test_the_pointer_finds_the_values(write_course: WriteCourse) -> None:
    _, page = page_of(write_course("a"), write_course("b", loss=6.0))
    first = lines_of(page)[0]
    assert [line["name"] for line in first["lines"]] == ["a", "b"]  # type: ignore[attr-defined]
    for line in first["lines"]:  # type: ignore[attr-defined]
        assert len(line["tokens"]) == len(line["values"]) == 30
        assert line["tokens"][-1] == 3000
    assert first["lines"][1]["values"][-1].startswith("3.0")  # type: ignore[index]


def test_several_runs_say_what_differs(write_course: WriteCourse) -> None:
    _, page = page_of(write_course("a"), write_course("b", seed=2))
    assert {"What differs from a", "`seed`: 1 → 2"} <= set(page.texts)
    _, alike = page_of(write_course("c"), write_course("d"))
    assert not any("differs" in text for text in alike.texts)


def test_no_name_becomes_markup(write_course: WriteCourse) -> None:
    folder = write_course("<b>$title")
    with (folder / "metrics.jsonl").open("a") as file:
        event = {"event": "<i>skip</i>", "step": 30, "tokens": 3000, "message": '<script>alert("x")</script>'}
        file.write(json.dumps(event) + "\n")
    html, page = page_of(folder)
    assert "Pretraining: <b>$title" in page.texts
    assert '<script>alert("x")</script>' in page.texts
    assert html.count("<script>") == 1


def test_what_cannot_be_drawn_leaves_nothing_behind(
    write_course: WriteCourse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match="could not be read"):
        write_report([write_course("a"), tmp_path / "none"])
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(BackendError, match="needs matplotlib"):
        write_report([tmp_path / "a"])
    assert not list((tmp_path / "a").glob("report*"))
