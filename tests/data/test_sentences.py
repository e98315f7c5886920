"""Sentences found: where they begin in texts of several kinds, and in no time in texts of no kind."""

from __future__ import annotations

import time

import hypothesis
import pytest
from hypothesis import strategies as st

from modernbert.data.sentences import sentence_starts


@pytest.mark.parametrize(
    "sentences",
    [
        ["One. ", "Two! ", "Three?  ", "Four"],
        ["He said “Go.” ", "(She went.) ", '"No!" ', "*Yes.* ", "End."],
        ["It costs 3.14 at example.org, e.g. here. ", "Next."],
        ["Dr. Smith and J. R. Jones vs. Mr. Brown, Fig. 3, came in Jan. 2020. ", "So."],
        ["It was ... odd, approx. five, etc. and more. ", "Wait… ", "What?! ", "Yes."],
        ["A title\n", "A line that goes\non in lower case. ", "Next\n\n", "lower after an empty line"],
        ["- one\r\n", "- two\r\n\r\n", "three"],
        ["これは文です。", "「はい。」", "次の文！ ", "end"],
        ["Это так. ", "Вот."],
        ["  \n Space first. ", "Then."],
        ["no end at all"],
        ["... "],
        [],
    ],
    ids=lambda sentences: "".join(sentences)[:12],
)
def test_by_hand(sentences: list[str]) -> None:
    text = "".join(sentences)
    starts = sentence_starts(text)
    if text.startswith("  \n"):  # space alone is a sentence of its own here: it has no other to belong to
        assert starts.pop(1) == 4
    assert [text[a:b] for a, b in zip(starts, [*starts[1:], len(text)])] == sentences


@hypothesis.given(st.text(alphabet='ab. \n!"Z。'))
def test_starts_ascend_from_the_first_character(text: str) -> None:
    starts = sentence_starts(text)
    assert starts == sorted(set(starts))
    assert starts[:1] == ([0] if text else [])
    assert all(start < len(text) for start in starts)


@pytest.mark.parametrize("unit", [".", "\n", " ", '"', '."', ". ", "a", ".\n", "a.a ", "。"])
def test_takes_linear_time(unit: str) -> None:
    began = time.process_time()
    sentence_starts(unit * 100_000)
    assert time.process_time() - began < 5
