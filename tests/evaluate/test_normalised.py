"""Every layout gives the same examples; what cannot be used is told."""

from __future__ import annotations

import csv
import gzip
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from modernbert.errors import InputError
from modernbert.evaluate import normalised
from modernbert.evaluate.finetuned import SUITES
from modernbert.evaluate.glue import TASKS
from modernbert.evaluate.normalised import Prepared, missing, prepare, read_examples
from modernbert.evaluate.suites import SuiteTask
from tests.evaluate.layouts import jsonl, tabs, write_ner, write_original, write_superglue

RAINS = {"text": "It rains.", "text_pair": "It is wet.", "label": "entailment"}
IS_DRY = {"text": "It rains.", "text_pair": "It is dry.", "label": "not_entailment"}

ORIGINAL: dict[str, list[dict[str, Any]]] = {
    "cola": [
        {"text": 'He said "yes.', "label": "acceptable"},
        {"text": "Him yes said.", "label": "unacceptable"},
    ],
    "sst2": [{"text": "so good", "label": "positive"}, {"text": "so bad", "label": "negative"}],
    "mrpc": [
        {"text": 'He said "a .', "text_pair": "He said a .", "label": "equivalent"},
        {"text": "One .", "text_pair": '"Two .', "label": "not_equivalent"},
    ],
    "stsb": [
        {"text": "A plane.", "text_pair": "An air plane.", "label": 5.0},
        {"text": "A plane.", "text_pair": "A dog.", "label": 0.4},
    ],
    "qqp": [
        {"text": "What is it?", "text_pair": "What's it?", "label": "duplicate"},
        {"text": "What is it?", "text_pair": "Who is it?", "label": "not_duplicate"},
    ],
    "mnli": [RAINS, {**IS_DRY, "label": "contradiction"}],
    "qnli": [
        {"text": "Who?", "text_pair": "He did.", "label": "entailment"},
        {"text": "When?", "text_pair": "He did.", "label": "not_entailment"},
    ],
    "rte": [RAINS, IS_DRY],
    "wnli": [RAINS, IS_DRY],
}


def examples(found: Prepared, split: str = "dev") -> list[dict[str, Any]]:
    return read_examples(found.files[split])


def prepared(root: Path, task: SuiteTask, out: Path, **options: Any) -> Prepared:
    assert missing(str(root), task) is None
    return prepare(str(root), task, out, **options)


@pytest.mark.parametrize("name", TASKS)
def test_the_original_layout(name: str, tmp_path: Path) -> None:
    found = prepared(write_original(tmp_path / "glue"), TASKS[name], tmp_path / "out")
    assert {split: examples(found, split) for split in found.files} == dict.fromkeys(
        TASKS[name].splits, ORIGINAL[name]
    )
    assert found.counts == dict.fromkeys(TASKS[name].splits, 2)
    assert found.notes == ()


@pytest.mark.parametrize("name", TASKS)
def test_columns_of_the_hub_as_json_csv_and_parquet_whatever_the_folder_is_called(
    name: str, tmp_path: Path
) -> None:
    """As `nyu-mll/glue` has them: labels are numbers, and names too."""
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    task = TASKS[name]
    columns = {"mnli": ("premise", "hypothesis"), "qqp": ("question1", "question2")} | {
        "qnli": ("question", "sentence"),
        "cola": ("sentence",),
        "sst2": ("sentence",),
    }
    rows = []
    for idx, example in enumerate(ORIGINAL[name]):
        texts = (example["text"], example.get("text_pair"))
        label = task.labels.index(example["label"]) if task.labels else example["label"]
        found = dict(zip(columns.get(name, ("sentence1", "sentence2")), texts))
        rows.append({**found, "label": label, "idx": idx})
    for split in ("train", "validation"):
        jsonl(tmp_path / "a" / f"glue_{name}_7k" / f"{split}.jsonl", *rows)
        shard = tmp_path / "b" / name / f"{split}-00000-of-00001.parquet"
        shard.parent.mkdir(parents=True, exist_ok=True)
        parquet.write_table(pyarrow.Table.from_pylist(rows), shard)
        table = tmp_path / "c" / name.upper() / f"{split}.csv"
        table.parent.mkdir(parents=True, exist_ok=True)
        with table.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    for root in "abc":
        found = prepared(tmp_path / root, task, tmp_path / "out" / root)
        assert examples(found) == ORIGINAL[name]
    (tmp_path / "a" / name).mkdir()  # an exact name goes before
    assert "no file for its train split" in str(missing(str(tmp_path / "a"), task))


def test_superglue_in_its_own_layout(tmp_path: Path) -> None:
    root = write_superglue(tmp_path / "super")
    tasks = SUITES["superglue"].tasks
    found = {name: examples(prepared(root, task, tmp_path / name)) for name, task in tasks.items()}
    assert found["boolq"][0] == {"text": "is it so", "text_pair": "It is.", "label": "true"}
    assert found["cb"] == [{"text": "He said so.", "text_pair": "So.", "label": "contradiction"}]
    assert found["copa"] == [
        {"prompt": "It broke. What was the cause?", "choices": ["It fell.", "It flew."], "label": 0}
    ]
    assert found["multirc"] == [
        {"text": f"Who came? {who}", "text_pair": "Sent 1: Ann came.", "label": label, "group": "[3, 7]"}
        for who, label in (("Ann", "true"), ("Bob", "false"))
    ]
    assert found["wic"] == [{"text": "bank: A bank.", "text_pair": "The bank.", "label": "false"}]


def test_multirc_as_the_hub_has_it(tmp_path: Path) -> None:
    place = {"paragraph": 3, "question": 7, "answer": 0}
    row = {"paragraph": "Ann came.", "question": "Who came?", "answer": "Ann", "idx": place, "label": 1}
    for split in ("train", "validation"):
        jsonl(tmp_path / "multirc" / f"{split}.jsonl", row)
    (found,) = examples(prepared(tmp_path, SUITES["superglue"].tasks["multirc"], tmp_path / "out"))
    assert found == {"text": "Who came? Ann", "text_pair": "Ann came.", "label": "true", "group": "[3, 7]"}


@pytest.mark.parametrize("name", SUITES["ner"].tasks)
def test_entities(name: str, tmp_path: Path) -> None:
    task = SUITES["ner"].tasks[name]
    found = prepared(write_ner(tmp_path / "ner"), task, tmp_path / "out")
    assert set(found.files) == {"train", "dev", "test"}
    person, place = ("person", "location") if name == "wnut17" else ("PER", "LOC")
    tags = [f"B-{person}", "O", "O", f"B-{place}", f"I-{place}"]
    assert examples(found, "test") == [{"tokens": ["Ann", "is", "in", "New", "York"], "tags": tags}]


def test_entities_in_columns(tmp_path: Path) -> None:
    for name in ("eng.train", "eng.testa", "eng.testb"):
        path = tmp_path / "CoNLL-2003" / name
        path.parent.mkdir(exist_ok=True)
        sentence = "Ann NNP I-NP I-PER\ncame\tVBD I-VP O\n \n"
        path.write_text("-DOCSTART- -X- O O\n\n" + sentence * 30)
    found = prepared(tmp_path, SUITES["ner"].tasks["conll2003"], tmp_path / "out")
    assert examples(found) == [{"tokens": ["Ann", "came"], "tags": ["I-PER", "O"]}] * 30
    assert found.columns == {"words": "tokens", "tags": "tags"}
    with path.open("a") as file:
        file.write("Bob\nwent O")
    with pytest.raises(InputError, match=r"eng.testb, line 93` is 'Bob'; it must be a word and"):
        prepared(tmp_path, SUITES["ner"].tasks["conll2003"], tmp_path / "again")


def test_dev_pairs_of_mrpc_are_held_out_of_its_training_file(tmp_path: Path) -> None:
    folder = tmp_path / "MRPC"
    head = ("\ufeffQuality", "#1 ID", "#2 ID", "#1 String", "#2 String")
    rows = [("1", f"{n}", f"{n + 1}", f"Text {n} .", "Other .") for n in range(0, 40, 2)]
    tabs(folder / "msr_paraphrase_train.txt", head, *rows)
    tabs(folder / "msr_paraphrase_test.txt", head, *rows)
    assert "no file for its dev split" in str(missing(str(tmp_path), TASKS["mrpc"]))
    tabs(folder / "dev_ids.tsv", ("4", "5"), ("38", "39"))
    found = prepared(tmp_path, TASKS["mrpc"], tmp_path / "out")
    assert [example["text"] for example in examples(found)] == ["Text 4 .", "Text 38 ."]
    assert found.counts == {"train": 18, "dev": 2}


def test_rows_that_cannot_be_used_are_counted_and_named(tmp_path: Path) -> None:
    good = [("0", "It rains.", "It is wet.", "entailment")] * 100
    bad = [
        ("1", "It rains.", "entailment"),
        ("2", " ", "It is wet.", "entailment"),
        ("3", "a", "b", "maybe"),
        ("4", "a", "b", "-1"),
    ]
    head = ("index", "sentence1", "sentence2", "label")
    tabs(tmp_path / "RTE" / "train.tsv", head, *good, *bad)
    tabs(tmp_path / "RTE" / "dev.tsv", head, *good)
    found = prepared(tmp_path, TASKS["rte"], tmp_path / "out")
    assert found.counts == {"train": 100, "dev": 100}
    (note,) = found.notes
    file = tmp_path / "RTE" / "train.tsv"
    assert note == (
        f"RTE, train: 4 of 104 rows left out: `{file}, line 102`: it has 3 columns, not 4; "
        f"`{file}, line 103`: `sentence1` is ' '; it must be a text; "
        f"`{file}, line 104`: `label` is 'maybe'; it must be one of entailment, not_entailment; …"
    )


def test_many_such_rows_are_refused(tmp_path: Path) -> None:
    jsonl(tmp_path / "rte" / "dev.jsonl", RAINS)
    path = tmp_path / "rte" / "train.jsonl"
    jsonl(path, RAINS, {**RAINS, "label": "maybe"}, {**RAINS, "label": "no"})
    match = r"RTE, train: 2 rows cannot be used and 1 can; the first: `.*train.jsonl, line 2`: `label` is"
    with pytest.raises(InputError, match=match):
        prepare(str(tmp_path), TASKS["rte"], tmp_path / "out")
    path.write_text(json.dumps(RAINS) + "\n{broken\n")
    with pytest.raises(InputError, match=r"train.jsonl, line 2` is not valid JSON"):
        prepare(str(tmp_path), TASKS["rte"], tmp_path / "out")
    path.write_text("")
    with pytest.raises(InputError, match="is empty; it must hold examples"):
        prepare(str(tmp_path), TASKS["rte"], tmp_path / "out")


def test_a_column_that_is_missing_is_named(tmp_path: Path) -> None:
    for split in ("train", "dev"):
        jsonl(tmp_path / "rte" / f"{split}.jsonl", {"sentence1": "a", "sentence_2": "b", "label": 0})
    with pytest.raises(
        InputError, match=r"train.jsonl, line 1`: there is no column `sentence2`; did you mean `sen"
    ):
        prepare(str(tmp_path), TASKS["rte"], tmp_path / "out")


def test_a_limit_takes_the_first_rows_and_another_digest(tmp_path: Path) -> None:
    root = write_original(tmp_path / "glue")
    whole = prepared(root, TASKS["rte"], tmp_path / "out")
    assert prepared(root, TASKS["rte"], tmp_path / "again").digest == whole.digest
    cut = prepared(root, TASKS["rte"], tmp_path / "out", limit=1)
    assert cut.counts == {"train": 1, "dev": 1}
    assert examples(cut) == [RAINS]
    assert cut.digest != whole.digest


def test_compressed_files_and_damaged_ones(tmp_path: Path) -> None:
    root = write_original(tmp_path / "glue")
    for path in (root / "RTE").iterdir():
        path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    assert examples(prepared(root, TASKS["rte"], tmp_path / "out")) == ORIGINAL["rte"]
    (root / "QNLI" / "dev.tsv").write_bytes(b"index\tquestion\tsentence\tlabel\n0\t\xff\tb\tentailment\n")
    with pytest.raises(InputError, match=r"dev.tsv:2`: byte 3 of the line \(0xff\) is not UTF-8"):
        prepare(str(root), TASKS["qnli"], tmp_path / "out")


def test_what_is_missing_and_what_is_double(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere` is no folder; it must be one with a folder a task"):
        missing(str(tmp_path / "nowhere"), TASKS["rte"])
    assert missing(str(tmp_path), TASKS["rte"]) == f"`{tmp_path}` has no folder for it"
    jsonl(tmp_path / "RTE" / "train.jsonl", RAINS)
    assert missing(str(tmp_path), TASKS["rte"]) == f"`{tmp_path / 'RTE'}` has no file for its dev split"
    jsonl(tmp_path / "RTE" / "train.tsv", RAINS)
    with pytest.raises(InputError, match=r"has `train.jsonl`, `train.tsv` for one split"):
        missing(str(tmp_path), TASKS["rte"])
    (tmp_path / "glue_rte").mkdir()
    with pytest.raises(InputError, match=r"has `RTE`, `glue_rte` for RTE; it must have one"):
        missing(str(tmp_path), TASKS["rte"])


def test_the_hub_needs_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=r"`nyu-mll/glue rte train` needs `datasets`.*modernbert\[hub\]"):
        prepare(normalised.HUB, TASKS["rte"], tmp_path / "out")


def test_what_the_hub_converted_from_a_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    datasets = pytest.importorskip("datasets")
    rows = [{"premise": "He said so.", "hypothesis": "So.", "label": 1, "idx": 0}]
    for split in ("train", "validation"):
        path = tmp_path / "set" / "cb" / split / "0000.parquet"
        path.parent.mkdir(parents=True)
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    task = SUITES["superglue"].tasks["cb"]
    task = replace(task, hub=(str(tmp_path / "set"), "cb", task.hub[2]))
    found = prepare(normalised.HUB, task, tmp_path / "out")
    assert examples(found) == [{"text": "He said so.", "text_pair": "So.", "label": "contradiction"}]


def test_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A data set of the hub, which may lie in a folder too."""
    datasets = pytest.importorskip("datasets")
    rows = [{"sentence1": "It rains.", "sentence2": "It is wet.", "label": 0}]
    for split in ("train", "validation"):
        jsonl(tmp_path / "set" / f"{split}.jsonl", *rows)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    task = replace(TASKS["rte"], hub=(str(tmp_path / "set"), None, None))
    found = prepared(Path(normalised.HUB), task, tmp_path / "out")
    assert examples(found) == [RAINS]
    assert found.source == str(tmp_path / "set")
    lost = replace(task, hub=(str(tmp_path / "lost"), None, None))
    with pytest.raises(InputError, match=r"lost.* could not be read from the hub .* or give a folder"):
        prepare(normalised.HUB, lost, tmp_path / "out")
