"""The page and the JSON hold everything, need nothing but themselves, and let no text become markup."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modernbert.errors import BackendError, InputError
from modernbert.recipes.finetune import evaluated
from modernbert.recipes.finetune.about import About, DataPart, command, read_about
from modernbert.recipes.finetune.drawings import heat_map, readable
from modernbert.recipes.finetune.evaluated import Sampling, Shown
from modernbert.recipes.finetune.findings import Findings, HardExample, LabelRow
from modernbert.recipes.finetune.report import RunRecord, figure_of, read_record, render_page, write_report
from tests.recipes.pages import Page

WriteRun = Callable[..., Path]
HOSTILE = [
    "</td></table><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "&lt;b&gt;",
    '" onclick="x',
    "$body",
]


def found_classes(num_labels: int = 3, split: str = "validation") -> Findings:
    draw = np.random.default_rng(3)
    gold, logits = draw.integers(num_labels, size=60), draw.normal(size=(60, num_labels))
    labels = [f"label {index}" for index in range(num_labels)]
    shown = [Shown(text=f"a text {index}", place=f"dev.csv, line {index + 2}") for index in range(60)]
    few = Sampling(resamples=20)
    return evaluated.of_classes(split, gold, logits, labels, shown, temperature=1.25, sampling=few)


def test_a_report_is_written_into_the_runs_folder(write_run: WriteRun) -> None:
    folder = write_run()
    before = {path.name for path in folder.iterdir()}
    assert write_report(folder) == (folder / "report.json", folder / "report.html")
    assert {path.name for path in folder.iterdir()} == before | {"report.html", "report.json"}
    Page((folder / "report.html").read_text(encoding="utf-8"))
    tree = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    assert tree.keys() == {"about", "findings", "curves", "settings", "machine"}
    assert Findings.from_json(tree["findings"]["validation"]) == read_record(folder).findings[0]
    assert tree["curves"][0]["steps"]["loss"][0] == 2
    assert tree["machine"]["cpu"] == "Abacus 9000"


def test_the_page_has_every_section(write_run: WriteRun) -> None:
    folder = write_run(found_classes(), found_classes(split="test"))
    page = Page(render_page(read_record(folder)))
    sections = {"Fine-tuning: sorter", "Learning", "Loss", "Accuracy", "Learning rate", "Throughput"}
    for split in ("test", "validation"):
        sections |= {f"Figures on {split}", f"Labels of {split}", f"Hardest examples of {split}"}
        sections |= {f"What it confuses, and how sure it is, on {split}"}
    sections |= {
        "Confusion",
        "Reliability",
        "Calibration",
        "Data",
        "Remarks",
        "Use it",
        "settings",
        "machine",
    }
    assert sections <= page.said
    assert {"2 texts are empty, the first in train.csv, line 7", "train.csv", "0:01:01", "1.25"} <= page.said
    assert f'modernbert classify -m {folder} "…"' in page.said
    found = read_record(folder).findings[0]
    (lead,) = [text for text in page.texts if text.startswith("Accuracy on test; 95% interval ")]
    assert f"{found.intervals['accuracy'].low:.2%} to {found.intervals['accuracy'].high:.2%}" in lead
    assert any("learning_rate: 5.0e-05" in text for text in page.texts)


def test_several_seeds_are_drawn_and_their_spread_told(write_run: WriteRun) -> None:
    folder = write_run(seeds=3)
    page = Page(render_page(read_record(folder)))
    assert {"mean of seeds", "deviation", "seed 0", "seed 2", "Trained with seeds 0, 1, 2."} <= page.said
    assert any("over 3 seeds" in text for text in page.texts)
    lines = [json.loads(value) for key, value in page.attributes if key == "data-lines"]
    assert [line["name"] for line in lines[0]["lines"]][:3] == ["seed 0", "seed 1", "seed 2"]
    assert {chart["unit"] for chart in lines} == {"steps"}


def test_the_page_asks_no_other_host(write_run: WriteRun) -> None:
    html = render_page(read_record(write_run()))
    named = {value for key, value in Page(html).attributes if "//" in value and not key.startswith("xmlns")}
    assert named == set()
    assert not re.search(r"<(link|img|iframe|script [^>]*src)|@import|url\((?!#)", html)


def test_the_page_has_a_dark_side(write_run: WriteRun) -> None:
    html = render_page(read_record(write_run()))
    assert "prefers-color-scheme: dark" in html
    assert "fill: var(--ink, #1d1c1a)" in html


def test_a_run_without_curves_settings_and_facts_is_reported(write_run: WriteRun) -> None:
    folder = write_run(data=(), remarks=(), best_step=None)
    for name in ("metrics.jsonl", "run.yaml", "facts.json"):
        (folder / name).unlink()
    page = Page(render_page(read_record(folder)))
    assert not {"Learning", "Data", "settings", "machine"} & page.said


def test_no_examples_are_no_figures(about: About, tmp_path: Path) -> None:
    empty = Findings(problem="tags", split="test", num_examples=0, figures={})
    record = RunRecord(folder=tmp_path, about=about, findings=(empty,), curves=(), settings={}, facts={})
    assert "no example was evaluated" in Page(render_page(record)).said
    with pytest.raises(InputError, match="needs findings of at least one split"):
        render_page(replace(record, findings=()))


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"about\.json` does not exist"):
        write_report(tmp_path)
    (tmp_path / "about.json").write_text('{"task": "clasify"}')
    with pytest.raises(InputError, match=r"does not describe a fine-tuning run: .*did you mean `classify`"):
        read_about(tmp_path)


def test_without_matplotlib_nothing_is_left_behind(
    write_run: WriteRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_run()
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(BackendError, match="needs matplotlib"):
        write_report(folder)
    assert not list(folder.glob("report*"))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    text=st.one_of(st.sampled_from(HOSTILE), st.text(st.characters(exclude_categories=["Cs"]), min_size=1))
)
def test_no_text_becomes_markup(text: str, about: About, tmp_path: Path) -> None:
    """Whatever stands in texts, labels, places, remarks and names, the page has the same tags."""

    def page_of(text: str) -> Page:
        hard = HardExample(place=text, text=text, gold=text, predicted=text, loss=1.0)
        row = LabelRow(label=text, support=1, predicted=1, precision=1.0, recall=1.0, f1=1.0)
        found = Findings(
            problem="classes",
            split=text,
            num_examples=1,
            figures={"accuracy": 0.5},
            labels=(text, text),
            confusion=((1, 0), (2, 3)),
            per_label=(row,),
            hardest=(hard,),
        )
        part = DataPart(split=text, source=text, num_examples=1, num_tokens=1)
        hostile = replace(about, model=text, base_model=text, labels=(text,), remarks=(text,), data=(part,))
        facts = {"cpu": text, "torch": text}
        record = RunRecord(
            folder=tmp_path, about=hostile, findings=(found,), curves=(), settings={"a": text}, facts=facts
        )
        return Page(render_page(record))

    plain, hostile = page_of("plain"), page_of(text)
    assert hostile.tags == plain.tags
    assert [key for key, _ in hostile.attributes] == [key for key, _ in plain.attributes]


@pytest.mark.parametrize("num_labels", [2, 25, 50, 80])
def test_a_heat_map_holds_at_most_fifty_labels(num_labels: int) -> None:
    html = heat_map(found_classes(num_labels))
    shown = min(num_labels, 50)
    assert html.count("<tr>") == shown + 1
    assert html.count("<td") == shown**2
    assert ("of 80 labels" in html) == (num_labels == 80)
    assert ('class="matrix many"' in html) == (num_labels > 25)


def test_figures_are_written_as_people_read_them() -> None:
    assert figure_of("accuracy", 0.86234) == "86.23%"
    assert figure_of("accuracy", 1.0) == "100%"
    assert figure_of("mcc", 0.51234) == "0.5123"
    assert figure_of("log_loss", 1.23456) == "1.235"
    assert [readable(name) for name in ("macro_f1", "roc_auc", "r2", "f1/PER", "mcc")] == [
        "Macro F1",
        "ROC AUC",
        "R²",
        "F1 of PER",
        "MCC",
    ]


def test_each_task_has_its_command(about: About) -> None:
    verbs = {
        "classify": "classify",
        "tag": "tag",
        "answer": "answer",
        "choose": "choose",
        "prompt": "fill-mask",
    }
    for task, verb in verbs.items():
        assert command(replace(about, task=task), "m").startswith(f"modernbert {verb} -m m ")  # type: ignore[arg-type]
    assert command(replace(about, takes_pairs=True), "m").endswith('--pair "…"')
