"""Answers in a text: by hand, like the definition of the former pipeline, exact characters, any length."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modernbert.errors import InputError
from modernbert.infer.answer import Answer
from modernbert.infer.texts import Texts

QUESTION = "is a town"
# "P" "a" "r" "is" " is" " the" " capital" " of" " France" "."
PARIS = "Paris is the capital of France."
LONG = " ".join(["the river runs through a small town in France."] * 40)
VARIED = " ".join(f"river {number} runs through town {number * number}." for number in range(40))
"""Long too, and no two places of it are alike: no two answers have the same score."""
EMPTY = {"score": 0.0, "start": 0, "end": 0, "answer": ""}


def speaking(
    texts: Texts, chosen: Any, starts: dict[int, float], ends: dict[int, float], question: str = QUESTION
) -> Any:
    """A model that gives these probabilities to tokens of the context; -1 is `[CLS]`."""
    before = len(texts.surround(texts.tokenizer.encode(question, special=False), [])) - 1

    def logits(ids: list[int]) -> Any:
        table = np.full((len(ids), 2), 1e-30)
        table[1:before] = table[-1] = 1e3  # what the question and `[SEP]` have does not matter
        for column, probabilities in enumerate((starts, ends)):
            for token, probability in probabilities.items():
                table[0 if token < 0 else before + token, column] = probability
        return np.log(table)

    return chosen(logits)


def answer(score: float, text: str, context: str = PARIS) -> dict[str, Any]:
    start = context.index(text) if text else 0
    return {"score": score, "start": start, "end": start + len(text), "answer": text}


def check_spans(found: list[dict[str, Any]], context: str) -> None:
    for result in found:
        assert context[result["start"] : result["end"]] == result["answer"]
        assert result["answer"] == result["answer"].strip()
        assert 0 <= result["score"] <= 1 + 1e-6


class TestByHand:
    STARTS = {-1: 0.3, 6: 0.5, 8: 0.2}  # noqa: RUF012
    ENDS = {-1: 0.5, 6: 0.1, 8: 0.4}  # noqa: RUF012

    def test_the_best_and_the_others(
        self, texts: Texts, chosen: Any, run: Callable[..., Any], same: Callable[..., None]
    ) -> None:
        model = speaking(texts, chosen, self.STARTS, self.ENDS)
        (best,) = run(Answer(model, texts), [(QUESTION, PARIS)])
        same(best, answer(0.2, "capital of France"))
        (found,) = run(Answer(model, texts, top_k=3), [{"question": QUESTION, "context": PARIS}])
        same(
            found,
            [answer(0.2, "capital of France"), answer(0.08, "France"), answer(0.05, "capital")],
        )

    def test_no_answer(
        self, texts: Texts, chosen: Any, run: Callable[..., Any], same: Callable[..., None]
    ) -> None:
        model = speaking(texts, chosen, self.STARTS, self.ENDS)
        (found,) = run(Answer(model, texts, top_k=2, handle_impossible_answer=True), [(QUESTION, PARIS)])
        same(found, [answer(0.2, "capital of France"), answer(0.15, "")])
        sure = speaking(texts, chosen, {-1: 0.9, 0: 0.1}, {-1: 0.9, 0: 0.1})
        same(run(Answer(sure, texts, handle_impossible_answer=True), [(QUESTION, PARIS)]), [answer(0.81, "")])
        same(run(Answer(sure, texts), [(QUESTION, PARIS)]), [answer(0.01, "Paris")])

    @pytest.mark.parametrize(
        ("longest", "text", "score"), [(3, "capital of France", 0.2), (2, "France", 0.08)]
    )
    def test_the_longest_answer(
        self,
        longest: int,
        text: str,
        score: float,
        texts: Texts,
        chosen: Any,
        run: Callable[..., Any],
        same: Callable[..., None],
    ) -> None:
        model = speaking(texts, chosen, self.STARTS, self.ENDS)
        found = run(Answer(model, texts, max_answer_len=longest), [(QUESTION, PARIS)])
        same(found, [answer(score, text)])

    def test_words_are_whole_unless_they_need_not_be(
        self, texts: Texts, chosen: Any, run: Callable[..., Any], same: Callable[..., None]
    ) -> None:
        model = speaking(texts, chosen, {1: 0.6, 2: 0.4}, {1: 0.1, 2: 0.9})
        # "ar", "r" and "a" all widen to "Paris": their scores add up
        same(run(Answer(model, texts), [(QUESTION, PARIS)]), [answer(0.6 * 0.9 + 0.4 * 0.9 + 0.06, "Paris")])
        (found,) = run(Answer(model, texts, align_to_words=False, top_k=3), [(QUESTION, PARIS)])
        same(found, [answer(0.54, "ar"), answer(0.36, "r"), answer(0.06, "a")])

    def test_equal_answers_add_up_case_aside(
        self, texts: Texts, chosen: Any, run: Callable[..., Any], same: Callable[..., None]
    ) -> None:
        context = "a river of A"
        model = speaking(texts, chosen, {0: 0.5, 4: 0.5}, {0: 0.5, 4: 0.5})
        (pieces,) = texts.pieces([context])
        assert [context[slice(*pieces.offsets[index])] for index in (0, 4)] == ["a", "A"]
        (found,) = run(Answer(model, texts, top_k=9, max_answer_len=1), [(QUESTION, context)])
        same(found[:1], [{"score": 0.5, "start": 0, "end": 1, "answer": "a"}])
        assert max(result["score"] for result in found[1:]) < 1e-20

    def test_an_answer_has_no_space_around_it(
        self, texts: Texts, chosen: Any, run: Callable[..., Any]
    ) -> None:
        for end in range(10):
            model = speaking(texts, chosen, {0: 1.0}, {end: 1.0})
            (found,) = run(Answer(model, texts, align_to_words=False), [(QUESTION, "  Ann \n Lee  ")])
            check_spans([found], "  Ann \n Lee  ")


def definition(
    texts: Texts, model: Any, context: str, top_k: int, longest: int, align: bool
) -> list[dict[str, Any]]:
    """The former pipeline's answers in one window, span by span."""
    (pieces,) = texts.pieces([context])
    sequence = texts.surround(texts.tokenizer.encode(QUESTION, special=False), pieces.ids)
    logits = model([sequence])[0].double().numpy()
    candidates = np.concatenate([logits[:1], logits[len(sequence) - 1 - len(pieces.ids) : -1]])
    powers = np.exp(candidates)
    starts, ends = (powers / powers.sum(axis=0)).T
    spans = [
        (starts[1 + first] * ends[1 + last], first, last)
        for first, last in itertools.product(range(len(pieces.ids)), repeat=2)
        if first <= last < first + longest
    ]
    answers: dict[str, dict[str, Any]] = {}
    for score, first, last in sorted(spans, reverse=True)[: 2 * top_k + 10 if align else top_k]:
        if align:
            same = [
                [i for i, word in enumerate(pieces.words) if word == pieces.words[t]] for t in (first, last)
            ]
            first, last = same[0][0], same[1][-1]
        start, end = pieces.offsets[first][0], pieces.offsets[last][1]
        start, end = end - len(context[start:end].lstrip()), start + len(context[start:end].rstrip())
        if start >= end:  # nothing but space
            continue
        text = context[start:end]
        if text.lower() in answers:
            answers[text.lower()]["score"] += score
        else:
            answers[text.lower()] = {"score": float(score), "start": start, "end": end, "answer": text}
    return sorted(answers.values(), key=lambda found: -found["score"])[:top_k]


@pytest.mark.parametrize("align", [True, False])
@pytest.mark.parametrize(("top_k", "longest"), [(1, 15), (5, 3), (4, 1000)])
@pytest.mark.parametrize("context", [PARIS, "the river runs, the river is a river in France." * 2])
def test_like_the_definition(
    context: str,
    top_k: int,
    longest: int,
    align: bool,
    texts: Texts,
    runner: Callable[..., Any],
    run: Callable[..., Any],
    same: Callable[..., None],
) -> None:
    model = runner("ForQuestionAnswering")
    task = Answer(model, texts, top_k=top_k, max_answer_len=longest, align_to_words=align)
    (found,) = run(task, [(QUESTION, context)])
    expected = definition(texts, model, context, top_k, longest, align)
    same(found, expected[0] if top_k == 1 else expected)


class TestLongContexts:
    def test_windows_cover_all_and_overlap(self, texts: Texts, chosen: Any, run: Callable[..., Any]) -> None:
        model = speaking(texts, chosen, {0: 1.0}, {0: 1.0})
        run(Answer(model, texts, doc_stride=20, max_seq_len=64), [(QUESTION, LONG)])
        question = texts.tokenizer.encode(QUESTION, special=False)
        (pieces,) = texts.pieces([LONG])
        assert all(len(ids) <= 64 for ids in model.seen)
        assert all(ids[1 : 1 + len(question)] == question for ids in model.seen)
        num_tokens = sum(len(ids) - len(question) - 3 for ids in model.seen)
        assert num_tokens == len(pieces.ids) + 20 * (len(model.seen) - 1)

    def test_the_answer_is_found_wherever_it_is(
        self, texts: Texts, chosen: Any, run: Callable[..., Any]
    ) -> None:
        before = LONG.split(".")
        for place in (0, 11, 25, len(before) - 1):
            context = ".".join([*before[:place], " café", *before[place:]])
            (pieces,) = texts.pieces([context])
            token = pieces.ids[pieces.offsets.index((context.index("café"), context.index("café") + 4))]

            def logits(ids: list[int], token: int = token) -> list[list[float]]:
                return [[10.0 * (id == token)] * 2 for id in ids]

            (found,) = run(Answer(chosen(logits), texts, doc_stride=10), [(QUESTION, context)])
            assert found["answer"] == "café"
            assert found["start"] == context.index("café")

    def test_a_span_in_two_windows_counts_once(
        self, texts: Texts, runner: Callable[..., Any], run: Callable[..., Any]
    ) -> None:
        task = Answer(runner("ForQuestionAnswering"), texts, top_k=20, doc_stride=100)
        (found,) = run(task, [(QUESTION, VARIED)])
        check_spans(found, VARIED)
        assert len({result["answer"].lower() for result in found}) == len(found)
        assert len(found) == 20
        assert [result["score"] for result in found] == sorted((r["score"] for r in found), reverse=True)

    def test_one_window_with_an_answer_is_enough(
        self, texts: Texts, chosen: Any, run: Callable[..., Any], same: Callable[..., None]
    ) -> None:
        context = f"{LONG} café"

        def logits(ids: list[int]) -> Any:
            """Nothing but `[CLS]`; in the last window as likely as its last token."""
            table = np.full((len(ids), 2), -100.0)
            table[0] = 0.0
            if ids[-2] == texts.pieces([context])[0].ids[-1]:
                table[-2] = 0.0
            return table

        task = Answer(chosen(logits), texts, top_k=2, handle_impossible_answer=True)
        (found,) = run(task, [(QUESTION, context)])
        same(found, [answer(0.25, "café", context), answer(0.25, "")])


class TestAnyText:
    @pytest.mark.parametrize("context", ["", " ", "\n\n "])
    def test_a_context_without_a_word(
        self, context: str, texts: Texts, chosen: Any, run: Callable[..., Any], same: Callable[..., None]
    ) -> None:
        model = speaking(texts, chosen, {-1: 0.5}, {-1: 0.5})
        assert run(Answer(model, texts), [(QUESTION, context)]) == [EMPTY]
        assert run(Answer(model, texts, top_k=3), [(QUESTION, context)]) == [[]]
        (found,) = run(Answer(model, texts, handle_impossible_answer=True), [(QUESTION, context)])
        same(found, {**EMPTY, "score": 1.0})

    def test_an_empty_question(
        self, texts: Texts, runner: Callable[..., Any], run: Callable[..., Any]
    ) -> None:
        (found,) = run(Answer(runner("ForQuestionAnswering"), texts), [("", PARIS)])
        check_spans([found], PARIS)

    @given(st.text(st.characters(codec=None), max_size=40), st.booleans())
    def test_spans_are_exact(
        self, texts: Texts, chosen: Any, run: Callable[..., Any], context: str, align: bool
    ) -> None:
        model = chosen(lambda ids: [[id % 7 / 7, id % 5 / 5] for id in ids])
        (found,) = run(Answer(model, texts, top_k=5, align_to_words=align), [("", context)])
        check_spans(found, context)
        assert bool(found) == bool(context.strip())

    @pytest.mark.parametrize("batch_tokens", [1, 200, 10_000])
    def test_order_and_splitting_change_nothing(
        self,
        batch_tokens: int,
        texts: Texts,
        runner: Callable[..., Any],
        run: Callable[..., Any],
        same: Callable[..., None],
    ) -> None:
        task = Answer(runner("ForQuestionAnswering"), texts, top_k=2, handle_impossible_answer=True)
        inputs = [(QUESTION, context) for context in (PARIS, VARIED, "", "France", " a")]
        order = random.Random(7).sample(range(len(inputs)), len(inputs))
        found = run(task, [inputs[index] for index in order], batch_tokens)
        same(found, [run(task, [inputs[index]])[0] for index in order])


class TestRefusals:
    @pytest.mark.parametrize(
        "value",
        [("a", None), (3, "a"), {"question": "a", "context": b"b"}, {"question": None, "context": "b"}],
    )
    def test_what_is_no_text(self, value: Any, texts: Texts, chosen: Any, run: Callable[..., Any]) -> None:
        with pytest.raises(InputError, match=r"^input 1 is .*; it must be a string"):
            run(Answer(chosen(None), texts), [("a", "b"), value])

    @pytest.mark.parametrize("value", ["text", ("a",), {"question": "a"}, None])
    def test_what_is_no_pair(self, value: Any, texts: Texts, chosen: Any, run: Callable[..., Any]) -> None:
        with pytest.raises(InputError, match=r"^input 1 is .*; it must be a pair \(question, context\)"):
            run(Answer(chosen(None), texts), [("a", "b"), value])

    def test_a_question_that_leaves_no_room(self, texts: Texts, chosen: Any, run: Callable[..., Any]) -> None:
        with pytest.raises(InputError) as caught:
            run(Answer(chosen(None), texts), [("a", "b"), ("is " * 125, "b")])
        assert str(caught.value) == (
            "the question of input 1 leaves no room for its context: both must fit in 128 tokens; shorten "
            "the question"
        )

    @pytest.mark.parametrize(
        "options",
        [{"top_k": 0}, {"max_answer_len": 0}, {"doc_stride": 0}, {"max_seq_len": 0}, {"max_seq_len": 129}],
    )
    def test_a_number_out_of_range(self, options: dict[str, int], texts: Texts, chosen: Any) -> None:
        ((name, value),) = options.items()
        with pytest.raises(InputError, match=f"^`{name}` is {value}; it must be "):
            Answer(chosen(None), texts, **options)
