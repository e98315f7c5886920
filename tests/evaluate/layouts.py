"""Tiny folders of benchmarks in the layouts in which they are handed round."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any


def tabs(path: Path, *rows: Iterable[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join("\t".join(row) + "\n" for row in rows), encoding="utf-8")


def jsonl(path: Path, *rows: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def both(folder: Path, *rows: Iterable[str], names: tuple[str, ...] = ("train", "dev")) -> None:
    rows = tuple([*row] for row in rows)
    for name in names:
        tabs(folder / f"{name}.tsv", *rows)


def write_original(root: Path) -> Path:
    """All nine of GLUE, as its zip has them."""
    both(root / "CoLA", ("gj04", "1", "", 'He said "yes.'), ("gj04", "0", "*", "Him yes said."))
    both(root / "SST-2", ("sentence", "label"), ("so good ", "1"), ("so bad ", "0"))
    mrpc = (("\ufeffQuality", "#1 ID", "#2 ID", "#1 String", "#2 String"),)
    pairs = (("1", "11", "12", 'He said "a .', "He said a ."), ("0", "13", "14", "One .", '"Two .'))
    both(root / "MRPC", *mrpc, *pairs)
    stsb = ("index", "genre", "filename", "year", "old_index", "source1", "source2")
    fill = ("0", "main", "MSR", "2012", "1", "none", "none")
    both(
        root / "STS-B",
        (*stsb, "sentence1", "sentence2", "score"),
        (*fill, "A plane.", "An air plane.", "5.000"),
        (*fill, "A plane.", "A dog.", "0.400"),
    )
    both(
        root / "QQP",
        ("id", "qid1", "qid2", "question1", "question2", "is_duplicate"),
        ("0", "1", "2", "What is it?", "What's it?", "1"),
        ("1", "3", "4", "What is it?", "Who is it?", "0"),
    )
    parses = ("index", "promptID", "sentence1_parse")
    both(
        root / "MNLI",
        (*parses, "sentence1", "sentence2", "label1", "gold_label"),
        ("0", "1", "( a )", "It rains.", "It is wet.", "neutral", "entailment"),
        ("1", "2", "( a )", "It rains.", "It is dry.", "neutral", "contradiction"),
        names=("train", "dev_matched", "dev_mismatched"),
    )
    both(
        root / "QNLI",
        ("index", "question", "sentence", "label"),
        ("0", "Who?", "He did.", "entailment"),
        ("1", "When?", "He did.", "not_entailment"),
    )
    for name, first, second in (("RTE", "entailment", "not_entailment"), ("WNLI", "1", "0")):
        both(
            root / name,
            ("index", "sentence1", "sentence2", "label"),
            ("0", "It rains.", "It is wet.", first),
            ("1", "It rains.", "It is dry.", second),
        )
    return root


def write_superglue(root: Path) -> Path:
    """Five of SuperGLUE, as its zip has them."""
    answers = [{"text": "Ann", "idx": 0, "label": 1}, {"text": "Bob", "idx": 1, "label": 0}]
    passage = {
        "text": "<b>Sent 1: </b>Ann came.<br>",
        "questions": [{"question": "Who came?", "answers": answers, "idx": 7}],
    }
    rows: Mapping[str, list[dict[str, Any]]] = {
        "BoolQ": [
            {"question": "is it so", "passage": "It is.", "idx": 0, "label": True},
            {"question": "is it not", "passage": "It is.", "idx": 1, "label": False},
        ],
        "CB": [{"premise": "He said so.", "hypothesis": "So.", "label": "contradiction", "idx": 0}],
        "COPA": [
            {"premise": "It broke.", "choice1": "It fell.", "choice2": "It flew.", "question": "cause"}
            | {"label": 0, "idx": 0}
        ],
        "MultiRC": [{"idx": 3, "version": 1.1, "passage": passage}],
        "WiC": [
            {"word": "bank", "sentence1": "A bank.", "sentence2": "The bank.", "idx": 0, "label": False}
            | {"start1": 2, "end1": 6}
        ],
    }
    for name, found in rows.items():
        for split in ("train", "val"):
            jsonl(root / name / f"{split}.jsonl", *found)
    return root


def write_ner(root: Path) -> Path:
    """The three sets of entities, as JSON lines, one with numbers for tags as the hub has them."""
    words = ["Ann", "is", "in", "New", "York"]
    for name, kinds in (("conll2003", ("PER", "LOC")), ("wnut17", ("person", "location"))):
        tags = [f"B-{kinds[0]}", "O", "O", f"B-{kinds[1]}", f"I-{kinds[1]}"]
        for split in ("train", "dev", "test"):
            jsonl(root / name / f"{split}.jsonl", {"tokens": words, "tags": tags})
    for split in ("train", "validation", "test"):
        jsonl(root / "wikiann_en" / f"{split}.jsonl", {"tokens": words, "ner_tags": [1, 0, 0, 5, 6]})
    return root
