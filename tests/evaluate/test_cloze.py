"""Cloze questions, of scores that are known; the facts that come with the package."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from modernbert.data.tokenizer import Tokenizer
from modernbert.errors import InputError
from modernbert.evaluate.blanks import blank_out, rank_of
from modernbert.evaluate.cloze import ask, measure_cloze
from modernbert.evaluate.cloze_facts import Fact, Relation, count_named, read_facts
from modernbert.infer.texts import Texts
from tests.evaluate.fakes import fake_model


@pytest.fixture(scope="module")
def words() -> Tokenizer:
    known = ["The capital of Japan is Tokyo. Paris Rome rome Italy the Netherlands"]
    return Tokenizer.train(known * 3, vocab_size=448, min_frequency=2)


def fact(subject: str, *answers: str, written: str = "") -> Fact:
    return Fact(subject=subject, written=written or subject, answers=answers)


def capitals(
    *facts: Fact, templates: tuple[str, ...] = ("The capital of {subject} is {answer}.",)
) -> Relation:
    return Relation(name="capital", templates=templates, facts=facts)


@pytest.mark.parametrize(
    ("right", "among", "rank"),
    [
        ([1], None, 1),
        ([2], None, 3),  # ties stand before it
        ([3], None, 3),
        ([2, 3], None, 2),  # no rival of one another
        ([0], None, 4),
        ([0, 1], None, 1),
        ([0], [0, 2], 2),
        ([2], [0, 2], 1),
        ([2], [0, 3], 2),
    ],
)
def test_rank(right: list[int], among: list[int] | None, rank: int) -> None:
    assert rank_of(torch.tensor([0.0, 5.0, 2.0, 2.0]), right, among) == rank


def test_a_model_that_says_nothing_is_last() -> None:
    assert rank_of(torch.zeros(7), [2]) == 7
    assert rank_of(torch.full((7,), float("nan")), [2]) == 7


def test_one_token_is_masked_where_it_stands(words: Tokenizer) -> None:
    texts = Texts(words, 64)
    sentence = "The capital of Japan is Tokyo."
    blank = blank_out(texts, sentence, 24, 29)
    assert blank is not None
    assert list(blank.ids) == words.encode("The capital of Japan is [MASK].", special=False)
    assert blank.ids[blank.place] == words.mask_id
    assert words.decode([blank.token]) == " Tokyo"
    assert blank_out(texts, sentence, 24, 28) is None
    assert blank_out(texts, sentence, 15, 29) is None


def test_precision_of_known_scores(words: Tokenizer) -> None:
    """Rome comes first always, Paris second, Tokyo eleventh after ten ties."""
    rome, lower, paris, tokyo = (
        words.encode(f" {it}", special=False)[0] for it in ("Rome", "rome", "Paris", "Tokyo")
    )

    def score(ids: list[int], place: int) -> Tensor:
        assert (ids[0], ids[-1], ids[place]) == (words.cls_id, words.sep_id, words.mask_id)
        scores = torch.zeros(words.vocab_size)
        scores[rome], scores[paris], scores[tokyo] = 9.0, 8.0, 3.0
        scores[:8] = 3.0
        return scores

    assert len({rome, lower, paris, tokyo} - set(range(8))) == 4
    relation = capitals(
        fact("Italy", "Rome"),
        fact("Japan", "Tokyo"),
        fact("the Netherlands", "Paris", "Tokyo", "Amsterdam"),
        fact("Peru", "rome"),
        fact("Chile", "Santiago"),
    )
    found = measure_cloze(fake_model(words, score), [relation], named={"Italy": 3, "Japan": 2}, least_named=2)
    figures = found.figures["groups"]["all"]["capital"]
    assert (figures["known_facts"], figures["facts"], figures["questions"]) == (5, 4, 4)
    assert [it["rank"] for it in found.figures["answers"]] == [1, 11, 2, words.vocab_size]
    assert [it["rank_of_answers"] for it in found.figures["answers"]] == [1, 3, 2, 4]
    assert [it["guess"] for it in found.figures["answers"]] == [" Rome"] * 4
    assert figures["precision_at_1"] == figures["precision_at_1_of_answers"] == 0.25
    assert figures["precision_at_10"] == 0.5
    named = found.figures["groups"]["named"]["all"]
    assert (named["known_facts"], named["facts"], named["precision_at_1"]) == (2, 2, 0.5)
    assert found.figures["card"]["rank"] == 11
    assert found.remarks[0] == "The capital of Japan is [MASK]. Tokyo has rank 11; first comes ' Rome'"
    assert found.remarks[1].endswith(": 1 facts")
    assert found.tables["All facts"][0]["facts asked"] == "4 of 5"


def test_what_is_asked_twice_counts_once(words: Tokenizer) -> None:
    texts = Texts(words, 64)
    twice = ("the capital of {subject} is {answer}.", "The capital of {subject} is {answer}.")
    (question,) = ask(
        texts, capitals(fact("Netherlands", "Paris", written="the Netherlands"), templates=twice)
    )
    assert words.decode(question.ids, skip_special=False) == "The capital of the Netherlands is[MASK]."
    begins = capitals(
        fact("Netherlands", "Paris", written="the Netherlands"), templates=("{subject}: {answer}",)
    )
    assert words.decode(ask(texts, begins)[0].ids, skip_special=False) == "The Netherlands:[MASK]"


def test_nothing_to_ask_is_refused(words: Tokenizer) -> None:
    model = fake_model(words, lambda ids, place: torch.zeros(words.vocab_size))
    with pytest.raises(InputError, match="not one answer is one token of the tokenizer"):
        measure_cloze(model, [capitals(fact("Chile", "Santiago"))])


def test_subjects_are_counted_as_whole_names() -> None:
    texts = [
        "Guinea, Papua New Guinea and Guinea-Bissau; not Guineas. Papua",
        "A cow saw cows. Cow! COW. Niger is not Nigeria: Niger's.",
    ]
    subjects = ["Guinea", "Papua New Guinea", "Guinea-Bissau", "cow", "Niger", "Peru"]
    assert count_named(texts, subjects) == Counter(
        {"Guinea": 1, "Papua New Guinea": 1, "Guinea-Bissau": 1, "cow": 2, "Niger": 2}
    )


def test_facts_of_a_file(tmp_path: Path) -> None:
    lines: list[dict[str, Any]] = [
        {"relation": "a", "template": "{subject} {answer}"},
        {"relation": "a", "subject": "x", "answer": "1", "written": "the x"},
        {"relation": "a", "subject": "x", "answer": ["2", "1"]},
        {"relation": "a", "template": "{subject} {answer}"},
    ]
    path = tmp_path / "facts.jsonl"
    path.write_text("\n\n".join(map(json.dumps, lines)))
    (relation,) = read_facts(path)
    assert relation.templates == ("{subject} {answer}",)
    assert relation.facts == (Fact(subject="x", written="the x", answers=("1", "2")),)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[1]", r"facts.jsonl:1` holds \[1\]; each line must be a JSON object"),
        ('{"subject": "x"}', "facts.jsonl:1`: `relation` is None; it must be text"),
        ('{"relation": "a", "subject": "x"}', "`answer` is None; it must be text"),
        ('{"relation": "a", "subject": "x", "answer": ["1", 2]}', "`answer` is 2; it must be text"),
        ('{"relation": "a", "template": "{answer}"}', "it must have {subject} and {answer}, each once"),
        ('{"relation": "a", "subject": "x", "answer": "1"}', "`a` lacks one of the two"),
        ("", "there is none; a relation must have facts and templates"),
    ],
)
def test_facts_that_cannot_be_used_are_refused(line: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "facts.jsonl"
    path.write_text(line)
    with pytest.raises(InputError, match=message):
        read_facts(path)
    with pytest.raises(InputError, match=r"none\.jsonl` could not be opened"):
        read_facts(tmp_path / "none.jsonl")


def test_the_facts_of_the_package() -> None:
    relations = {relation.name: relation for relation in read_facts()}
    assert [*relations][:4] == ["capital", "currency", "continent", "language"]
    assert len(relations) == 10
    # The members of the United Nations but Australia, which many call a continent of its own.
    assert len(relations["continent"].facts) == 192
    assert all(len(relation.templates) >= 3 for relation in relations.values())
    for relation in relations.values():
        for it in relation.facts:
            assert not {*it.answers} & {it.subject, it.written}, it
    facts = {it.subject: it for it in relations["capital"].facts}
    assert facts["Japan"].answers == ("Tokyo",)
    assert facts["Gambia"].written == "the Gambia"
