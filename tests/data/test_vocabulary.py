"""One vocabulary in terms of another, and words in the place of unused tokens."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tokenizers
import transformers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models

from modernbert.data.tokenizer import Tokenizer
from modernbert.data.vocabulary import (
    bytes_per_token,
    origins,
    propose_words,
    tokens_per_character,
    with_new_words,
)
from modernbert.errors import ConfigError, InputError

ENGLISH = ["the patient was given water, and the other patient was given metformin " * 3, "words and letters"]
JAPANESE = ["吾輩は猫である。名前はまだ無い。吾輩は猫である。名前はまだ無い。"] * 4
ROLES = {"unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "pad": "[PAD]", "mask": "[MASK]"}


@pytest.fixture(scope="module")
def english() -> Tokenizer:
    return Tokenizer.train(ENGLISH, vocab_size=384)


@pytest.fixture(scope="module")
def japanese() -> Tokenizer:
    return Tokenizer.train(JAPANESE, vocab_size=320)


def made_up(model: models.Model, decoder: decoders.Decoder) -> Tokenizer:
    backend = tokenizers.Tokenizer(model)
    backend.decoder = decoder
    backend.add_special_tokens(list(ROLES.values()))
    return Tokenizer(backend, ROLES)


@pytest.fixture(scope="module")
def sentencepiece() -> Tokenizer:
    pieces = ["[UNK]", "▁the", "▁pa", "tient", "猫", "は", "<0xE5>", "<0xE7>", "▁", "w", "a", "s"]
    return made_up(models.Unigram([(piece, -1.0) for piece in pieces], 0, False), decoders.Metaspace())


@pytest.fixture(scope="module")
def wordpiece() -> Tokenizer:
    words = ["[UNK]", "the", "pa", "##tient", "was", "##s"]
    vocabulary = {word: id for id, word in enumerate(words)}
    return made_up(models.WordPiece(vocabulary, unk_token="[UNK]"), decoders.WordPiece())


def test_a_tokenizer_in_terms_of_itself_shares_everything(english: Tokenizer) -> None:
    assert origins(english, english) == tuple((id,) for id in range(english.vocab_size))


def test_shared_tokens_keep_their_meaning_whatever_their_ids(english: Tokenizer, japanese: Tokenizer) -> None:
    found = origins(japanese, english)
    assert len(found) == japanese.vocab_size
    for id in range(japanese.vocab_size):
        same = english.token_id(japanese.token(id))
        if same is not None:
            assert found[id] == (same,)
    assert english.mask_id != 0
    for role in ("unk_id", "cls_id", "sep_id", "pad_id", "mask_id"):
        assert found[getattr(japanese, role)] == (getattr(english, role),)


def test_other_tokens_come_from_the_pieces_that_they_were_cut_into(
    english: Tokenizer, japanese: Tokenizer
) -> None:
    """Also those that end within a character, which have no text of their own."""
    found = origins(japanese, english)
    others = [id for id in japanese.ordinary_ids.tolist() if english.token_id(japanese.token(id)) is None]
    assert any("�" in japanese.decode([id]) for id in others)
    for id in others:
        assert len(found[id]) > 1
        assert "".join(english.token(piece) for piece in found[id]) == japanese.token(id)


def test_tokens_of_no_text_come_from_nothing_unless_both_have_them(
    english: Tokenizer, japanese: Tokenizer
) -> None:
    for new, old in ((english, japanese), (japanese, english)):
        found = origins(new, old)
        for id in new.unused_ids.tolist():
            same = old.token_id(new.token(id))
            assert found[id] == (() if same is None else (same,))


def test_tokens_are_shared_between_sentencepiece_and_bytes(
    sentencepiece: Tokenizer, english: Tokenizer, japanese: Tokenizer
) -> None:
    found = origins(sentencepiece, english)
    the = sentencepiece.token_id("▁the")
    assert the is not None
    assert [english.token(id) for id in found[the]] == ["Ġthe"]
    byte = sentencepiece.token_id("<0xE5>")
    assert byte is not None
    assert [english.token(id) for id in found[byte]] == ["å"]
    assert found[sentencepiece.mask_id] == (english.mask_id,)

    back = origins(english, sentencepiece)
    patient = english.token_id("Ġpatient")
    assert patient is not None
    assert [sentencepiece.token(id) for id in back[patient]] == ["▁pa", "tient"]
    torn = next(id for id, token in enumerate(map(english.token, range(384))) if token == "å")
    assert [sentencepiece.token(id) for id in back[torn]] == ["<0xE5>"]
    particle = japanese.token_id("".join(japanese.token(id) for id in japanese.encode("は", special=False)))
    assert particle is not None
    assert [sentencepiece.token(id) for id in origins(japanese, sentencepiece)[particle]] == ["は"]


def test_tokens_are_shared_between_wordpiece_and_bytes(wordpiece: Tokenizer, english: Tokenizer) -> None:
    found, back = origins(wordpiece, english), origins(english, wordpiece)
    ends, whole = wordpiece.token_id("##s"), english.token_id("Ġpatient")
    assert ends is not None
    assert whole is not None
    assert [english.token(id) for id in found[ends]] == ["s"]
    assert [wordpiece.token(id) for id in back[whole]] == ["pa", "##tient"]
    water = english.token_id("w")
    assert water is not None
    assert back[water] == ()  # all of it is unknown there


def test_a_new_word_takes_an_unused_token_and_nothing_else_moves(english: Tokenizer) -> None:
    text = "the metformin was given, metformin and Metformin"
    before, first = english.encode(text), int(english.unused_ids[0])
    tokenizer = with_new_words(english, ["aspirin", "zebra"])
    assert tokenizer.encode(text) == before
    assert tokenizer.vocab_size == english.vocab_size
    ids = tokenizer.encode("the aspirin was", special=False)
    assert (tokenizer.token(first), ids[1]) == ("Ġaspirin", first)
    assert tokenizer.decode(ids) == "the aspirin was"
    assert tokenizer.unused_ids.tolist() == english.unused_ids.tolist()[2:]
    assert first in tokenizer.ordinary_ids
    assert tokenizer.fingerprint != english.fingerprint
    assert english.token(first) == "[unused0]"
    found = origins(tokenizer, english)
    assert "".join(english.token(id) for id in found[first]) == "Ġaspirin"
    assert [ids for id, ids in enumerate(found) if id not in (first, first + 1)] == [
        (id,) for id in range(english.vocab_size) if id not in (first, first + 1)
    ]


def test_a_word_that_is_a_token_needs_no_place(english: Tokenizer) -> None:
    assert english.token_id("Ġpatient") is not None
    tokenizer = with_new_words(english, ["patient", "aspirin", "aspirin"])
    assert len(tokenizer.unused_ids) == len(english.unused_ids) - 1


def test_a_tokenizer_with_new_words_is_saved_and_read_by_transformers(
    english: Tokenizer, tmp_path: Path
) -> None:
    tokenizer = with_new_words(english, ["aspirin"])
    tokenizer.save_pretrained(tmp_path)
    text = "given aspirin, [MASK] aspirin [unused1]"
    ids = tokenizer.encode(text)
    assert int(english.unused_ids[0]) in ids
    assert Tokenizer.from_pretrained(tmp_path).encode(text) == ids
    assert Tokenizer.from_pretrained(tmp_path).fingerprint == tokenizer.fingerprint
    assert transformers.AutoTokenizer.from_pretrained(tmp_path)(text)["input_ids"] == ids


@given(st.text())
def test_text_without_the_new_words_is_cut_as_before(text: str) -> None:
    assert WITH_WORD.encode(text) == LEARNED.encode(text)


LEARNED = Tokenizer.train(ENGLISH + JAPANESE, vocab_size=448)
WITH_WORD = with_new_words(LEARNED, ["xylophone"])


@pytest.mark.parametrize("word", ["two words", "covid-19", "", " "])
def test_a_word_that_is_cut_in_any_case_is_refused(word: str, english: Tokenizer) -> None:
    with pytest.raises(ConfigError, match=f"`{word}` cannot be a new word: .* letters only"):
        with_new_words(english, [word])


def test_more_words_than_places_are_refused(english: Tokenizer) -> None:
    places = len(english.unused_ids)
    words = ["q" * n for n in range(5, 6 + places)]
    with pytest.raises(ConfigError, match=f"{places + 1} new words; they must be at most {places}"):
        with_new_words(english, words)


def test_new_words_need_a_byte_level_bpe(sentencepiece: Tokenizer) -> None:
    with pytest.raises(ConfigError, match="is a Unigram model; new words need a byte-level BPE"):
        with_new_words(sentencepiece, ["word"])


def test_unused_tokens_in_the_models_own_vocabulary_serve_too(english: Tokenizer) -> None:
    document = json.loads(english.backend.to_str())
    document["model"]["vocab"] |= {token["content"]: token["id"] for token in document["added_tokens"]}
    twice = Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(document)), english.roles)
    tokenizer = with_new_words(twice, ["aspirin"])
    first = int(english.unused_ids[0])
    assert tokenizer.token(first) == "Ġaspirin"
    assert tokenizer.token_id("[unused0]") is None


def test_words_are_proposed_by_the_tokens_that_they_save(english: Tokenizer) -> None:
    texts = [
        "a xylophone and a xylophone, a zyx and patient",
        "no zyx at the xylophone",
        "patient zyx zyx zyx",
    ]
    assert propose_words(texts, english, 5, min_frequency=3) == ["xylophone", "zyx"]
    assert propose_words(texts, english, 1, min_frequency=3) == ["xylophone"]
    assert propose_words(texts, english, 5, min_frequency=6) == []
    with pytest.raises(InputError, match="no text to find words in"):
        propose_words([], english, 5)


def test_tokens_a_character(japanese: Tokenizer, english: Tokenizer) -> None:
    assert tokens_per_character(english, ["猫"]) == 3
    assert tokens_per_character(japanese, JAPANESE) < 1 < tokens_per_character(english, JAPANESE)
    assert tokens_per_character(english, []) == 0


def test_bytes_a_token(japanese: Tokenizer, english: Tokenizer) -> None:
    both = {"ja": japanese, "en": english}
    assert bytes_per_token({"en": english}, ["猫"], max_bytes=100) == {"en": 1}
    found = bytes_per_token(both, JAPANESE, max_bytes=100)
    assert found["ja"] > 3 > found["en"]
    read = iter(["ab", "cd", "never read"])
    bytes_per_token(both, read, max_bytes=4)
    assert next(read) == "never read"
    with pytest.raises(InputError, match="there is no text to measure"):
        bytes_per_token(both, [], max_bytes=4)
