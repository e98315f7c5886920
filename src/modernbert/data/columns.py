"""Which column of a table is what: given by the user, else guessed from the names that the field uses."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

from modernbert.errors import InputError, nearest

_PAIRS = (
    ("sentence1", "sentence2"),
    ("sentence_1", "sentence_2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("text1", "text2"),
    ("text_1", "text_2"),
    ("text_a", "text_b"),
    ("sentence_a", "sentence_b"),
    ("question", "sentence"),
    ("question", "passage"),
    ("question", "answer"),
    ("query", "passage"),
    ("query", "document"),
    ("text", "text_pair"),
)
_TEXTS = (
    *("text", "sentence", "review", "review_text", "content", "document", "utterance", "tweet", "comment"),
    *("comment_text", "body", "message", "description", "passage", "question", "query", "title", "input"),
)
_LABELS = (
    *("label", "labels", "category", "categories", "class", "target", "score", "similarity"),
    *("similarity_score", "sentiment", "intent", "topic", "emotion", "rating", "stars", "gold_label"),
    *("is_duplicate", "relevance", "answer"),
)
_WORDS = ("tokens", "words", "token", "word")
_TAGS = ("tags", "ner_tags", "labels", "ner", "pos_tags", "label", "tag")
_SPANS = ("spans", "entities", "annotations", "labels", "label")
_QUESTIONS = ("question", "query")
_CONTEXTS = ("context", "passage", "paragraph", "document", "article", "text")
_ANSWERS = ("answers", "answer", "answer_text")
_PROMPTS = (
    *("question", "prompt", "question_stem", "query", "startphrase", "sent1", "ctx", "goal", "text"),
    *("sentence", "premise"),
)
_GROUNDS = ("context", "support", "passage", "paragraph", "article", "premise")
_CHOICES = ("choices", "options", "endings", "answers", "candidates")
_RIGHT_CHOICES = (
    *("label", "labels", "answerkey", "answer_key", "answer", "answer_idx", "answer_index", "gold"),
    *("gold_label", "target", "correct", "correct_answer"),
)
_RETRIEVED = (
    *(("query", "positive"), ("anchor", "positive"), ("query", "pos"), ("query", "passage")),
    *(("query", "document"), ("query", "text"), ("query", "answer"), ("question", "answer")),
    *(("question", "passage"), ("question", "context"), ("question", "positive"), ("title", "text")),
    *(("title", "body"), ("title", "abstract"), ("sentence1", "sentence2"), ("text1", "text2")),
    *(("text", "text_pair"), ("docstring", "code"), ("docstring", "function")),
)
_NEGATIVES = ("negatives", "negative", "neg", "hard_negatives")
_VERDICTS = ("label", "labels", "score", "relevance", "is_duplicate", "similarity")
_IDS = ("id", "qid", "question_id", "idx", "guid", "uid")

_RIGHT_ANSWER = "correct_answer"
_WRONG_ANSWER = re.compile(r"(distractor|incorrect_answer|wrong_answer)_?(\d+)")
_NUMBERED_NEGATIVE = re.compile(r"neg(ative)?_?(\d+)")
_NUMBERED_CHOICE = re.compile(r"(choice|ending|option|answer|alternative|sol|)_?(\d+|[a-h])")


class _Named:
    """Columns by what they are."""

    def summary(self) -> str:
        """Say which column is what: `text: sentence1, text_pair: sentence2, label: label`."""
        roles = {it.name: getattr(self, it.name) for it in fields(self)}  # type: ignore[arg-type]
        return ", ".join(f"{role}: {name}" for role, name in roles.items() if name is not None)


@dataclass(frozen=True, kw_only=True)
class Columns(_Named):
    """Which column is what. None: to be guessed, or there is none.

    Attributes:
        text: The text, or the first of a pair.
        text_pair: The second of a pair.
        label: What is to be predicted: a class, several or a number; of choices, which is right.
        words: Lists of words.
        tags: Lists of tags, one a word.
        spans: Lists of places in the text, each with its label.
        question: What is asked; of choices, what they follow.
        context: Where the answer stands; of choices, what stands before the question.
        answers: The answers and their places.
        choices: Lists of choices; or several columns, separated by commas, each with one.
        id: The name of an example.
    """

    text: str | None = None
    text_pair: str | None = None
    label: str | None = None
    words: str | None = None
    tags: str | None = None
    spans: str | None = None
    question: str | None = None
    context: str | None = None
    answers: str | None = None
    choices: str | None = None
    id: str | None = None


@dataclass(frozen=True, kw_only=True)
class PairColumns(_Named):
    """Which column is what, where queries and what they should find stand. None: to be guessed.

    Attributes:
        query: What is asked, or the first of two texts that belong together.
        positive: What it should find, or lists of that.
        negatives: What it should not find, or lists of that; or several columns, separated by commas.
    """

    query: str | None = None
    positive: str | None = None
    negatives: str | None = None


def text_columns(names: Sequence[str], given: Columns, *, origin: str, labelled: bool = True) -> Columns:
    """Find text, text pair and label.

    A pair is guessed only if neither text is given.

    Args:
        names: The columns that there are.
        given: Those that the user names; the others are guessed.
        origin: The file, for messages.
        labelled: Whether there must be a label.

    Raises:
        InputError: A given column is missing, or one that is needed cannot be guessed.
    """
    look = _Look(names, given, ("text", "text_pair", "label", "id"), origin)
    text, text_pair = given.text, given.text_pair
    if text is None and text_pair is None:
        text, text_pair = look.pair()
    if text is None:
        text = look.find("text", [a for a, b in _PAIRS if b == _form(text_pair or "")])
    text = text or look.find("text", _TEXTS)
    label = look.find("label", _LABELS)
    look.find("id", _IDS)
    text = text or look.only_one_left() or look.need("text", _TEXTS)
    if labelled:
        label = label or look.need("label", _LABELS)
    return Columns(text=text, text_pair=text_pair, label=label, id=look.columns["id"])


def tag_columns(names: Sequence[str], given: Columns, *, origin: str) -> Columns:
    """Find words and their tags, or, where there are no words, text and spans. See `text_columns`.

    Raises:
        InputError: A given column is missing, or one that is needed cannot be guessed.
    """
    look = _Look(names, given, ("words", "tags", "text", "spans"), origin)
    by_spans = given.spans is not None or given.text is not None
    words = None if by_spans else look.find("words", _WORDS)
    if words is not None:
        return Columns(words=words, tags=look.need("tags", _TAGS))
    text = look.find("text", _TEXTS)
    if text is None:
        look.need("words", _WORDS)
    return Columns(text=text, spans=look.need("spans", _SPANS))


def answer_columns(names: Sequence[str], given: Columns, *, origin: str, labelled: bool = True) -> Columns:
    """Find question, context, answers and id. See `text_columns`.

    Raises:
        InputError: A given column is missing, or one that is needed cannot be guessed.
    """
    look = _Look(names, given, ("question", "context", "answers", "id"), origin)
    return Columns(
        question=look.need("question", _QUESTIONS),
        context=look.need("context", _CONTEXTS),
        answers=look.need("answers", _ANSWERS) if labelled else look.find("answers", _ANSWERS),
        id=look.find("id", _IDS),
    )


def choice_columns(names: Sequence[str], given: Columns, *, origin: str, labelled: bool = True) -> Columns:
    """Find question, what stands before it, choices and which is right. See `text_columns`.

    Choices are one column with lists, or several with one each. If the label is one of these, the right
    choice stands there.

    Raises:
        InputError: A given column is missing, or one that is needed cannot be guessed.
    """
    look = _Look(names, given, ("question", "context", "label"), origin)
    label = given.label
    choices = given.choices
    if choices is None:
        choices, right = _guess_choices(names)
        label = label or right
    if choices is None:
        raise look.missing("choices", _CHOICES)
    for name in split_names(choices, names):
        look.check("choices", name)
        look.take(name)
    question = look.need("question", _PROMPTS)
    if label is None:
        label = look.need("label", _RIGHT_CHOICES) if labelled else look.find("label", _RIGHT_CHOICES)
    return Columns(question=question, context=look.find("context", _GROUNDS), choices=choices, label=label)


def pair_columns(names: Sequence[str], given: PairColumns, *, origin: str) -> PairColumns:
    """Find query, positive and, where there are some, negatives. See `text_columns`.

    Raises:
        InputError: A given column is missing, or one that is needed cannot be guessed; or all were guessed,
            and a column beside them may say that some pairs do not belong together.
    """
    forms = _forms(names)
    query, positive = given.query, given.positive
    if query is None and positive is None:
        found = next((pair for pair in _RETRIEVED if all(side in forms for side in pair)), None)
        query, positive = (forms[side] for side in found) if found else (None, None)
        verdict = next((forms[form] for form in _VERDICTS if form in forms), None)
        if verdict is not None and found:
            raise InputError(
                f"`{origin}` has a column `{verdict}`, which may say that a row's texts do not belong "
                "together; each row must be a query and what it should find; leave out the others, and "
                "name `columns.query` and `columns.positive`"
            )
    look = _Look(names, PairColumns(query=query, positive=positive), ("query", "positive"), origin)
    query = look.need("query", [first for first, _ in _RETRIEVED])
    positive = look.need("positive", [second for _, second in _RETRIEVED])
    negatives = given.negatives or next((forms[form] for form in _NEGATIVES if form in forms), None)
    if negatives is None:
        numbered = sorted(
            (int(it[2]), name) for form, name in forms.items() if (it := _NUMBERED_NEGATIVE.fullmatch(form))
        )
        negatives = ",".join(name for _, name in numbered) or None
    for name in split_names(negatives, names) if negatives else ():
        look.check("negatives", name)
    return PairColumns(query=query, positive=positive, negatives=negatives)


def split_names(listed: str, names: Iterable[str]) -> list[str]:
    """Return the columns that `Columns.choices` or `PairColumns.negatives` names."""
    return [listed] if listed in names else [name.strip() for name in listed.split(",")]


def find_column(names: Sequence[str], what: str, candidates: Sequence[str], *, origin: str) -> str:
    """Find the one column of a format that users do not set: the first candidate that is there.

    Raises:
        InputError: None is there.
    """
    forms = _forms(names)
    for candidate in candidates:
        if candidate in forms:
            return forms[candidate]
    raise InputError(
        f"`{origin}` has nothing whose name tells that it is {what}; it must have one of "
        f"{', '.join(candidates)}; it has {', '.join(names)}; rename one"
    )


def _guess_choices(names: Sequence[str]) -> tuple[str | None, str | None]:
    """Return the columns of choices, and the one in which the right choice stands if one does."""
    forms = {_form(name): name for name in names}
    wrong = [forms[form] for form in sorted(forms) if _WRONG_ANSWER.fullmatch(form)]
    if wrong and _RIGHT_ANSWER in forms:
        return ",".join([forms[_RIGHT_ANSWER], *wrong]), forms[_RIGHT_ANSWER]
    for form in _CHOICES:
        if form in forms:
            return forms[form], None
    stems: dict[str, list[tuple[int, str, str]]] = {}
    for form, name in forms.items():
        if match := _NUMBERED_CHOICE.fullmatch(form):
            number = int(match[2]) if match[2].isdecimal() else 0
            stems.setdefault(match[1], []).append((number, match[2], name))
    for found in stems.values():
        if len(found) > 1:
            return ",".join(name for *_, name in sorted(found)), None
    return None, None


class _Look:
    """Looks for columns; each is taken once."""

    def __init__(
        self, names: Sequence[str], given: Columns | PairColumns, roles: Sequence[str], origin: str
    ) -> None:
        self.names = names
        self.origin = origin
        self.columns: dict[str, str | None] = {role: getattr(given, role) for role in roles}
        self.forms = _forms(names)
        for role, name in self.columns.items():
            if name is not None:
                self.check(role, name)
                self.take(name)

    def find(self, role: str, candidates: Iterable[str]) -> str | None:
        """Return the column that is given, or the first candidate that is there and not taken."""
        if (name := self.columns[role]) is not None:
            return name
        for candidate in candidates:
            if candidate in self.forms:
                name = self.forms[candidate]
                self.take(name)
                self.columns[role] = name
                return name
        return None

    def need(self, role: str, candidates: Sequence[str]) -> str:
        if (name := self.find(role, candidates)) is None:
            raise self.missing(role, candidates)
        return name

    def pair(self) -> tuple[str | None, str | None]:
        """Return the first of `_PAIRS` that is there."""
        for first, second in _PAIRS:
            if first in self.forms and second in self.forms:
                return self.find("text", [first]), self.find("text_pair", [second])
        return None, None

    def only_one_left(self) -> str | None:
        left = [name for name in self.forms.values() if name]
        return left[0] if len(left) == 1 else None

    def take(self, name: str) -> None:
        self.forms.pop(_form(name), None)

    def check(self, role: str, name: str) -> None:
        if name not in self.names:
            near = nearest(name, self.names)
            hint = f"; did you mean `{near}`?" if near is not None else ""
            raise InputError(
                f"`{self.origin}` has no column `{name}`{hint}; it has {self._listed()}; set "
                f"`columns.{role}` to one of them"
            )

    def missing(self, role: str, candidates: Sequence[str]) -> InputError:
        return InputError(
            f"`{self.origin}` has no column whose name tells that it is `{role}` "
            f"({', '.join(candidates[:4])} …); it has {self._listed()}; set `columns.{role}` to one of "
            "them, or name the columns in the file's first line if it does not"
        )

    def _listed(self) -> str:
        return ", ".join(f"`{name}`" for name in self.names)


def _forms(names: Sequence[str]) -> dict[str, str]:
    """Return names by what the guesses have in their place; of several alike, the first counts."""
    return {_form(name): name for name in reversed(names)}


def _form(name: str) -> str:
    """Return a name as the guesses have it."""
    return re.sub(r"[\s-]+", "_", name.strip().lower())
