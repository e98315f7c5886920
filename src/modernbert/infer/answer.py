"""Find answers in a text, with the scores of transformers' former `question-answering` pipeline."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypedDict

import torch
from torch import Tensor
from torch.nn import functional

from modernbert.errors import InputError
from modernbert.infer.arguments import check_count, two_texts
from modernbert.infer.outputs import Array, per_token
from modernbert.infer.runner import Runner
from modernbert.infer.task import Prepared, Task
from modernbert.infer.texts import Pieces, Texts
from modernbert.infer.windows import Span, windows

AnswerInput = tuple[str, str] | Mapping[str, str]
"""A question and the text to search, as `(question, context)` or as a dict with these keys."""

NO_ANSWER = {"score": 0.0, "start": 0, "end": 0, "answer": ""}


@dataclass(frozen=True)
class Search:
    """A question's search while it is computed.

    Attributes:
        text: The context.
        pieces: Its tokens.
        spans: Its windows, one a sequence.
        before: Tokens of each sequence that stand before the context's.
    """

    text: str
    pieces: Pieces
    spans: list[Span]
    before: int


class AnswerOptions(TypedDict, total=False):
    """The options of `Answer`, which says what they mean."""

    top_k: int
    max_answer_len: int
    handle_impossible_answer: bool
    align_to_words: bool
    doc_stride: int
    max_seq_len: int | None


class Answer(Task[AnswerInput, Array, dict[str, Any] | list[dict[str, Any]]]):
    """Extracts answers by a question-answering model.

    An answer is `{"score", "start", "end", "answer"}` with `context[start:end] == answer`. Its score is the
    probability of its first token as the start, times that of its last as the end, among the context's tokens
    and `[CLS]`. In one window, equal answers (case aside) add their scores up; between windows the largest
    counts. The result of an input is the best answer if `top_k` is 1, else a list, the best first. In a
    context without a word the answer is "" with the score 0, or the list is empty.

    Args:
        runner: Runs a question-answering model.
        texts: The door for text.
        top_k: How many answers to return; fewer if there are not as many.
        max_answer_len: Tokens that an answer may have.
        handle_impossible_answer: Let "" compete as an answer, with the score of `[CLS]` as start and end in
            the window where that is least.
        align_to_words: Widen answers to whole words, as the tokenizer cuts words.
        doc_stride: Tokens of the context that windows share where it is too long for one; at most half of
            what a window has room for.
        max_seq_len: Tokens of a window with the question; None: all that the model takes.

    Raises:
        InputError: A number out of range.
    """

    def __init__(
        self,
        runner: Runner,
        texts: Texts,
        *,
        top_k: int = 1,
        max_answer_len: int = 15,
        handle_impossible_answer: bool = False,
        align_to_words: bool = True,
        doc_stride: int = 128,
        max_seq_len: int | None = None,
    ) -> None:
        check_count("top_k", top_k)
        check_count("max_answer_len", max_answer_len)
        check_count("doc_stride", doc_stride)
        if max_seq_len is not None:
            check_count("max_seq_len", max_seq_len, texts.max_length)
        self.runner = runner
        self.texts = texts
        self.top_k = top_k
        self.max_answer_len = max_answer_len
        self.handle_impossible_answer = handle_impossible_answer
        self.align_to_words = align_to_words
        self.doc_stride = doc_stride
        self.max_length = max_seq_len or texts.max_length

    def prepare(self, inputs: list[AnswerInput], first: int) -> list[Prepared]:
        pairs = [
            two_texts(value, index, "question", "context") for index, value in enumerate(inputs, start=first)
        ]
        questions = self.texts.pieces([question for question, _ in pairs], first=first, limit=self.max_length)
        contexts = self.texts.pieces([context for _, context in pairs], first=first)
        return [
            self._cut(question.ids, pair[1], pieces, index)
            for index, (question, pair, pieces) in enumerate(zip(questions, pairs, contexts), start=first)
        ]

    def compute(self, sequences: list[list[int]]) -> list[Array]:
        return per_token(self.runner, sequences)

    def finish(self, prepared: Prepared, outputs: list[Array]) -> dict[str, Any] | list[dict[str, Any]]:
        search: Search = prepared.context
        answers: dict[str, dict[str, Any]] = {}
        impossible = float("inf")
        for span, logits in zip(search.spans, outputs):
            probabilities = _log_probabilities(torch.from_numpy(logits), search.before, span)
            impossible = min(impossible, math.exp(probabilities[0].sum()))
            for key, answer in self._of_window(search, span[0], probabilities[1:]).items():
                if key not in answers or answer["score"] > answers[key]["score"]:
                    answers[key] = answer
        found = list(answers.values())
        if self.handle_impossible_answer:
            found.append({**NO_ANSWER, "score": impossible})
        best = sorted(found, key=lambda answer: -answer["score"])[: self.top_k]
        if self.top_k > 1:
            return best
        return best[0] if best else dict(NO_ANSWER)

    def _cut(self, question: list[int], context: str, pieces: Pieces, index: int) -> Prepared:
        room = self.max_length - self.texts.num_special_in_pair - len(question)
        if room < 1:
            raise InputError(
                f"the question of input {index} leaves no room for its context: both must fit in "
                f"{self.max_length:,} tokens; shorten the question"
            )
        spans = windows(len(pieces.ids), room, min(self.doc_stride, room // 2))
        sequences = [self.texts.surround(question, pieces.ids[start:end]) for start, end in spans]
        before = self.texts.surround(question, [-1]).index(-1)
        return Prepared(sequences, Search(context, pieces, spans, before))

    def _of_window(self, search: Search, first: int, log_probabilities: Tensor) -> dict[str, dict[str, Any]]:
        """Return the best answers in a window that begins at token `first`, by their text in lower case."""
        # Different tokens may widen to the same words: as in the pipeline, which then takes this many more.
        wanted = 2 * self.top_k + 10 if self.align_to_words else self.top_k
        answers: dict[str, dict[str, Any]] = {}
        for token, last, score in _best_spans(log_probabilities, wanted, self.max_answer_len):
            start, end = self._characters(search, first + token, first + last)
            text = search.text[start:end]
            if text.lower() in answers:
                answers[text.lower()]["score"] += score
            elif text:
                answers[text.lower()] = {"score": score, "start": start, "end": end, "answer": text}
        return answers

    def _characters(self, search: Search, first: int, last: int) -> Span:
        """Return the characters of the tokens `first` to `last`, or of their words; no space around them."""
        words, offsets = search.pieces.words, search.pieces.offsets
        if self.align_to_words:
            while first > 0 and words[first] is not None and words[first - 1] == words[first]:
                first -= 1
            while last + 1 < len(words) and words[last] is not None and words[last + 1] == words[last]:
                last += 1
        start, end = offsets[first][0], offsets[last][1]
        text = search.text[start:end]
        return end - len(text.lstrip()), start + len(text.rstrip())


def _log_probabilities(logits: Tensor, before: int, span: Span) -> Tensor:
    """Return log probabilities `[1 + n, 2]` of `[CLS]` and the context's tokens, as start and as end."""
    own = logits[before : before + span[1] - span[0]]
    return torch.cat([logits[:1], own]).log_softmax(dim=0)


def _best_spans(log_probabilities: Tensor, wanted: int, longest: int) -> Iterator[tuple[int, int, float]]:
    """Yield first token, last token and probability of the best spans of at most `longest` tokens."""
    starts, ends = log_probabilities.unbind(dim=1)
    longest = min(longest, len(starts))
    if not longest:
        return
    padded = functional.pad(ends, (0, longest - 1), value=-torch.inf)
    spans = starts[:, None] + padded.unfold(0, longest, 1)  # [first token, tokens after it]
    scores, places = spans.flatten().topk(min(wanted, spans.numel()))
    # Of equal ones the first.
    for score, place in sorted(zip(scores.tolist(), places.tolist()), key=lambda span: (-span[0], span[1])):
        if score > -torch.inf:
            yield place // longest, place // longest + place % longest, math.exp(score)
