"""Facts to be asked for, with wordings; and how often a text names those that they are about.

A file of facts is JSON lines of two kinds:

    {"relation": "capital", "template": "The capital of {subject} is {answer}."}
    {"relation": "capital", "subject": "Gambia", "written": "the Gambia", "answer": "Banjul"}

`written`: the subject as it stands in a sentence, if not as it is called; `answer`: a text, or a list of
texts that are all right. A line that says again what another has said counts once.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from modernbert import telemetry
from modernbert.data.corpus import read_objects
from modernbert.errors import InputError

FACTS = Path(__file__).with_name("cloze_facts.jsonl")
"""Our own: countries, and some other relations."""

_WORD = re.compile(r"\w+")
_FIELDS = ("{subject}", "{answer}")


@dataclass(frozen=True, kw_only=True)
class Fact:
    """What is true of a subject.

    Attributes:
        subject: What it is called.
        written: What it is called in a sentence.
        answers: Each of them is right.
    """

    subject: str
    written: str
    answers: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Relation:
    """Facts of one kind, and the wordings to ask for them."""

    name: str
    templates: tuple[str, ...]
    facts: tuple[Fact, ...]


def read_facts(path: Path = FACTS) -> list[Relation]:
    """Read a file of facts; several lines on one subject of a relation are one fact with all their answers.

    It is written as in the first of them.

    Raises:
        InputError: The file or a line of it cannot be used. The message names file and line.
    """
    templates: dict[str, dict[str, None]] = {}
    facts: dict[str, dict[str, Fact]] = {}
    for origin, record in read_objects(path, "relation"):
        relation = _text(record, "relation", origin)
        if "template" in record:
            templates.setdefault(relation, {})[_template(record, origin)] = None
        else:
            fact, own = _fact(record, origin), facts.setdefault(relation, {})
            before = own.setdefault(fact.subject, fact)
            answers = tuple(dict.fromkeys((*before.answers, *fact.answers)))
            own[fact.subject] = replace(before, answers=answers)
    if not facts or set(facts) != set(templates):
        odd = next(iter(set(facts) ^ set(templates)), None)
        what = "there is none" if odd is None else f"`{odd}` lacks one of the two"
        raise InputError(f"`{path}`: {what}; a relation must have facts and templates; add what is missing")
    return [
        Relation(name=name, templates=tuple(templates[name]), facts=tuple(own.values()))
        for name, own in facts.items()
    ]


def count_named(texts: Iterable[str], subjects: Iterable[str]) -> Counter[str]:
    """Count how often each subject is named, as whole words in its own spelling.

    One in lower case is also meant by its capitalised form. Where several begin at a word the longest is
    meant: `Papua New Guinea` does not name Guinea.
    """
    forms: dict[tuple[str, ...], str] = {}
    for subject in subjects:
        for spelled in (subject, subject[:1].upper() + subject[1:]):
            forms.setdefault(tuple(_WORD.findall(spelled)), subject)
    lengths: dict[str, list[int]] = {}
    for form in sorted(forms, key=len, reverse=True):
        lengths.setdefault(form[0], []).append(len(form))
    counts: Counter[str] = Counter()
    with telemetry.progress("count subjects", None, "characters") as meter:
        for text in texts:
            counts.update(_named(_WORD.findall(text), forms, lengths))
            meter.advance(len(text))
    return counts


def _named(
    words: Sequence[str], forms: Mapping[tuple[str, ...], str], lengths: Mapping[str, Sequence[int]]
) -> Iterator[str]:
    """Yield the subjects that words name; `lengths`: of the forms that begin with a word, longest first."""
    free = 0
    for place, word in enumerate(words):
        if word not in lengths or place < free:
            continue
        for length in lengths[word]:
            if (subject := forms.get(tuple(words[place : place + length]))) is not None:
                yield subject
                free = place + length
                break


def _template(record: dict[str, Any], origin: str) -> str:
    template = _text(record, "template", origin)
    if any(template.count(field) != 1 for field in _FIELDS):
        raise InputError(
            f"`{origin}`: the template is {template!r}; it must have {{subject}} and {{answer}}, each "
            "once; mend it"
        )
    return template


def _fact(record: dict[str, Any], origin: str) -> Fact:
    subject = _text(record, "subject", origin)
    written = _text(record, "written", origin) if "written" in record else subject
    answers = record.get("answer")
    several = answers if isinstance(answers, list) and answers else [answers]
    return Fact(
        subject=subject,
        written=written,
        answers=tuple(_text({"answer": answer}, "answer", origin) for answer in several),
    )


def _text(record: dict[str, Any], key: str, origin: str) -> str:
    value = record.get(key)
    if not isinstance(value, str) or not _WORD.search(value):
        raise InputError(f"`{origin}`: `{key}` is {value!r}; it must be text; mend or remove the line")
    return value
