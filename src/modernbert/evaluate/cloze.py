"""What a model knows: facts asked for with a mask, how often the right token comes first or among ten.

An answer counts if it is one token of the tokenizer where the mask stands, spelled as in the facts, capitals
and all; other questions are counted and left out. Its rank is that among the whole vocabulary, tokens of the
same score before it; if several answers are right, that of the best. Each question, a fact in a wording,
counts alike; asked in the same words twice, it counts once.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from modernbert.errors import InputError
from modernbert.evaluate.blanks import Blank, blank_out, rank_of, score_tokens
from modernbert.evaluate.cloze_facts import Fact, Relation
from modernbert.evaluate.measured import Measured, percent
from modernbert.infer.encoder import Encoder
from modernbert.infer.texts import Texts
from modernbert.runtime import machine_facts

MANY = 10
CARD = Relation(
    name="model card",
    templates=("The capital of {subject} is {answer}.",),
    facts=(Fact(subject="Japan", written="Japan", answers=("Tokyo",)),),
)
"""The sentence of the original model card."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """A fact in a wording.

    Attributes:
        relation: What is asked for.
        subject: Of what.
        template: The wording.
        ids: Of the sentence, the mask in its place, without special tokens around.
        place: Where the mask stands among them.
        right: Ids of the right answers of one token.
    """

    relation: str
    subject: str
    template: str
    ids: tuple[int, ...]
    place: int
    right: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """How a model answered a question.

    Attributes:
        question: What was asked.
        rank: Of the right answer among the whole vocabulary, 1 the first.
        rank_among: Of the right answer among all answers of its relation.
        guess: The token that came first.
    """

    question: Question
    rank: int
    rank_among: int
    guess: str


def measure_cloze(
    model: Encoder,
    relations: Sequence[Relation],
    *,
    named: Mapping[str, int] | None = None,
    least_named: int = 20,
) -> Measured:
    """Ask a model for all facts, and for the capital of Japan.

    Args:
        model: Fills masks.
        relations: What is asked.
        named: How often a text names each subject; None: nobody has counted.
        least_named: Those named at least so often are reported by themselves.

    Raises:
        InputError: Not one answer is one token.
    """
    questions = [it for relation in relations for it in ask(model.texts, relation)]
    if not questions:
        raise InputError(
            "not one answer is one token of the tokenizer; at least one must be; give other facts, or a "
            "model with a larger vocabulary"
        )
    found = answer(model, questions)
    card = answer(model, ask(model.texts, CARD))
    return _report(model, relations, found, card, named, least_named)


def ask(texts: Texts, relation: Relation) -> list[Question]:
    """Put each fact of a relation in each wording, those without an answer of one token left out."""
    found: dict[tuple[tuple[int, ...], int], Question] = {}
    for template in relation.templates:
        for fact in relation.facts:
            blanks = [_blank(texts, template, fact.written, answer) for answer in fact.answers]
            whole = [blank for blank in blanks if blank is not None]
            if not whole:
                continue
            ids, place = whole[0].ids, whole[0].place
            question = Question(
                relation=relation.name,
                subject=fact.subject,
                template=template,
                ids=ids,
                place=place,
                right=tuple(dict.fromkeys(it.token for it in whole if (it.ids, it.place) == (ids, place))),
            )
            found.setdefault((ids, place), question)
    return [*found.values()]


def answer(model: Encoder, questions: Sequence[Question]) -> list[Answer]:
    """Let a model answer."""
    rivals: dict[str, set[int]] = {}
    for question in questions:
        rivals.setdefault(question.relation, set()).update(question.right)
    blanks = [(question.ids, question.place) for question in questions]
    return [
        Answer(
            question=question,
            rank=rank_of(scores, question.right),
            rank_among=rank_of(scores, question.right, rivals[question.relation]),
            guess=_first(scores, model.texts),
        )
        for question, scores in zip(questions, score_tokens(model.runner, model.texts, blanks, "questions"))
    ]


def _blank(texts: Texts, template: str, subject: str, answer: str) -> Blank | None:
    """Write a sentence, its first letter a capital, and mask the answer."""
    before, after = (part.replace("{subject}", subject) for part in template.split("{answer}"))
    sentence = f"{before}{answer}{after}"
    return blank_out(texts, sentence[:1].upper() + sentence[1:], len(before), len(before) + len(answer))


def _first(scores: Tensor, texts: Texts) -> str:
    return texts.tokenizer.decode([int(scores.argmax())], skip_special=False)


def _report(
    model: Encoder,
    relations: Sequence[Relation],
    found: Sequence[Answer],
    card: Sequence[Answer],
    named: Mapping[str, int] | None,
    least_named: int,
) -> Measured:
    titles = {"all": "All facts", "named": f"Subjects that the text names at least {least_named} times"}
    groups = {"all": _by_relation(relations, found)}
    if named is not None:
        often = [_named_often(relation, named, least_named) for relation in relations]
        subjects = {fact.subject for relation in often for fact in relation.facts}
        groups["named"] = _by_relation(often, [it for it in found if it.question.subject in subjects])
    in_all = groups["all"]["all"]
    num_left_out = in_all["known_facts"] - in_all["facts"]
    return Measured(
        headline=f"cloze questions to {model.name}: {in_all['questions']:,} on {in_all['facts']:,} facts",
        tables={titles[group]: [_row(*it) for it in part.items()] for group, part in groups.items()},
        remarks=[
            _card_line(card),
            f"left out, as no answer is one token: {num_left_out:,} facts",
            "P@1, P@10: the right token is first, or among ten, of the whole vocabulary; of answers: first "
            "among all answers of the relation",
        ],
        figures={
            "model": model.name,
            "least_named": least_named if named is not None else None,
            "groups": groups,
            "card": _answer_json(card[0], named) if card else None,
            "answers": [_answer_json(it, named) for it in found],
        },
        machine=machine_facts(model.runner.device),
    )


def _named_often(relation: Relation, named: Mapping[str, int], least_named: int) -> Relation:
    facts = tuple(fact for fact in relation.facts if named.get(fact.subject, 0) >= least_named)
    return replace(relation, facts=facts)


def _by_relation(relations: Sequence[Relation], found: Sequence[Answer]) -> dict[str, dict[str, Any]]:
    """Return the figures of each relation, with those of its wordings, and of all."""
    by_relation = _grouped(found, lambda it: it.question.relation)
    figures = {}
    for relation in relations:
        own = by_relation.get(relation.name, [])
        by_template = _grouped(own, lambda it: it.question.template)
        figures[relation.name] = {
            "known_facts": len(relation.facts),
            **_figures(own),
            "templates": {template: _figures(those) for template, those in by_template.items()},
        }
    known_facts = sum(len(relation.facts) for relation in relations)
    return {**figures, "all": {"known_facts": known_facts, **_figures(found)}}


def _grouped(found: Sequence[Answer], key: Callable[[Answer], str]) -> dict[str, list[Answer]]:
    groups: dict[str, list[Answer]] = {}
    for it in found:
        groups.setdefault(key(it), []).append(it)
    return groups


def _figures(found: Sequence[Answer]) -> dict[str, Any]:
    """Return the numbers of questions and facts, and the precisions; None where nothing is asked."""
    hits = {
        "precision_at_1": [it.rank == 1 for it in found],
        "precision_at_10": [it.rank <= MANY for it in found],
        "precision_at_1_of_answers": [it.rank_among == 1 for it in found],
    }
    return {
        "facts": len({(it.question.relation, it.question.subject) for it in found}),
        "questions": len(found),
        **{name: statistics.mean(own) if own else None for name, own in hits.items()},
    }


def _row(relation: str, it: Mapping[str, Any]) -> dict[str, str]:
    best = max((own["precision_at_1"] for own in it.get("templates", {}).values()), default=None)
    return {
        "relation": relation,
        "facts asked": f"{it['facts']:,} of {it['known_facts']:,}",
        "questions": f"{it['questions']:,}",
        "P@1": percent(it["precision_at_1"]),
        "P@10": percent(it["precision_at_10"]),
        "P@1 of answers": percent(it["precision_at_1_of_answers"]),
        "P@1 of the best wording": percent(best),
    }


def _card_line(card: Sequence[Answer]) -> str:
    sentence = "The capital of Japan is [MASK]."
    if not card:
        return f"{sentence} Tokyo is not one token of this tokenizer"
    rank = card[0].rank
    return f"{sentence} Tokyo has rank {rank:,}" + ("" if rank == 1 else f"; first comes {card[0].guess!r}")


def _answer_json(it: Answer, named: Mapping[str, int] | None) -> dict[str, Any]:
    question = it.question
    return {
        "relation": question.relation,
        "subject": question.subject,
        "template": question.template,
        "rank": it.rank,
        "rank_of_answers": it.rank_among,
        "guess": it.guess,
        **({} if named is None else {"named": named.get(question.subject, 0)}),
    }
