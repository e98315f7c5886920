"""Pairs that a text gives: titles that are titles, passages that are sentences, as many in each epoch."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modernbert.data.corpus import Document
from modernbert.data.text_pairs import PairSettings, cut_passages, document_pairs, split_title
from modernbert.errors import ConfigError

BODY = " ".join(f"Sentence number {number} says little." for number in range(40))


def pairs(text: str, key: int = 0, **settings: object) -> list[tuple[str, str]]:
    made = PairSettings(**{"passage_characters": 120, **settings})  # type: ignore[arg-type]
    return [(it.query, it.positive) for it in document_pairs(Document(text, "a:1", 0), made, key)]


@pytest.mark.parametrize("title", ["Oslo", "The Art of War", "C (language)", "Wars: a list", "東京"])
def test_a_line_of_its_own_is_a_title(title: str) -> None:
    assert split_title(f"{title}\n\nText.") == (title, "Text.")


@pytest.mark.parametrize(
    "text",
    ["Oslo\nText.", "It is so.\n\nText.", "# note\n\nx", "import x, (\n\ny", "w" * 200 + "\n\nx", "Oslo"],
)
def test_other_first_lines_are_none(text: str) -> None:
    assert split_title(text) == ("", text)


def test_a_document_gives_its_title_and_its_neighbours() -> None:
    passages = cut_passages(BODY, 120)
    found = pairs(f"Numbers\n\n{BODY}", neighbours=3)
    assert len(found) == 4
    assert found[0][0] == "Numbers"
    assert found[0][1] in passages
    following = set(pairwise(passages))
    assert len(set(found[1:])) == 3
    assert set(found[1:]) <= following
    assert pairs(f"Numbers\n\n{BODY}", titles=False) == [pairs(BODY)[0]]


def test_another_key_draws_others_but_as_many() -> None:
    drawn = [pairs(f"Numbers\n\n{BODY}", key) for key in range(20)]
    assert {len(it) for it in drawn} == {2}
    assert len({it[0] for it in drawn}) > 3
    assert len({it[1] for it in drawn}) > 3
    assert drawn[7] == pairs(f"Numbers\n\n{BODY}", 7)


def test_short_texts_give_what_they_have() -> None:
    assert pairs("One sentence alone.") == []
    assert pairs("Title\n\nOne sentence alone.") == [("Title", "One sentence alone.")]
    assert pairs("Title\n\n ") == []


@given(st.text(alphabet="ab. \n", max_size=300), st.integers(1, 60))
def test_passages_hold_all_the_text_in_order(text: str, characters: int) -> None:
    joined = "".join("".join(passage.split()) for passage in cut_passages(text, characters))
    assert joined == "".join(text.split())


def test_passages_are_no_longer_than_wanted_unless_a_sentence_is() -> None:
    assert max(map(len, cut_passages(BODY, 120))) <= 120
    assert cut_passages("a" * 50 + ". Short. Short.", 20) == ["a" * 50 + ".", "Short. Short."]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"titles": False, "neighbours": 0}, "`neighbours` is 0; it must be at least 1 without `titles`"),
        ({"neighbours": -1}, "`neighbours` is -1; it must be at least 0"),
        ({"passage_characters": 0}, "`passage_characters` is 0; it must be at least 1"),
    ],
)
def test_settings_that_do_not_fit(settings: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PairSettings(**settings)  # type: ignore[arg-type]
