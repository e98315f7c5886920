"""Text to ids and back: what a tokenizer promises, wherever it came from."""

from __future__ import annotations

import pickle
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from modernbert.data.tokenizer import Tokenizer
from modernbert.errors import ConfigError, InputError

WORDS = ["capital", "river", "the", "of", "France", "is", "runs", "through", "a", "small", "town", "café"]
CORPUS = [" ".join(WORDS[(i * step) % len(WORDS)] for i in range(60)) + "." for step in (1, 5, 7, 11)]
CORPUS += [f"{a}{b} " * 4 for a in "bcdfg" for b in "aeiouvwxyz"]  # more pairs than are asked for
TRAINED = Tokenizer.train(CORPUS, vocab_size=384)


@pytest.fixture
def tokenizer() -> Tokenizer:
    return TRAINED


@given(st.text(st.characters(exclude_categories=("Cs", "Cn")), max_size=80))
def test_any_text_survives_up_to_normalisation(text: str) -> None:
    assert TRAINED.decode(TRAINED.encode(text)) == unicodedata.normalize("NFC", text)


def test_strange_texts_are_tokenised(tokenizer: Tokenizer) -> None:
    for text in ("", "\0", "a\0b", "\u202eשלום", "👩‍👩‍👧", "x" * 100_000):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_template(tokenizer: Tokenizer) -> None:
    cls, sep = tokenizer.cls_id, tokenizer.sep_id
    a, b = tokenizer.encode("the river", special=False), tokenizer.encode("a town", special=False)
    assert cls not in a
    assert tokenizer.encode("the river") == [cls, *a, sep]
    assert tokenizer.encode("the river", pair="a town") == [cls, *a, sep, *b, sep]
    assert tokenizer.encode("the river", pair="a town", special=False) == [*a, *b]
    assert tokenizer.encode("") == [cls, sep]


def test_mask_takes_the_space_before_it(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("capital is [MASK].", special=False)
    tokens = [tokenizer.token(id) for id in ids]
    assert tokens[-2:] == ["[MASK]", "."]
    assert "Ġ" not in tokens
    assert ids.count(tokenizer.mask_id) == 1


def test_batch_equals_one_by_one(tokenizer: Tokenizer) -> None:
    texts = [*CORPUS, "", "the town"]
    assert tokenizer.encode_batch(texts) == [tokenizer.encode(text) for text in texts]
    pairs = list(reversed(texts))
    expected = [tokenizer.encode(a, pair=b) for a, b in zip(texts, pairs)]
    assert tokenizer.encode_batch(texts, pairs=pairs) == expected
    assert tokenizer.encode_batch([]) == []


def test_special_tokens_may_be_ordinary_text(tokenizer: Tokenizer) -> None:
    text = "the [MASK] of[CLS][SEP] [PAD] [UNK] [unused0]"
    usual = tokenizer.encode_batch([text], special=False)
    (ids,) = tokenizer.encode_batch([text], special=False, literal=True)
    assert tokenizer.special_ids.isdisjoint(ids)
    assert tokenizer.token_id("[unused0]") in ids
    assert tokenizer.decode(ids) == text
    around = [tokenizer.cls_id, *ids, tokenizer.sep_id]
    assert tokenizer.encode_batch([text], literal=True) == [around]
    assert tokenizer.encode_batch([text], special=False) == usual
    assert tokenizer.mask_id in usual[0]


def test_decode_takes_what_holds_ids(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("the river")
    assert tokenizer.decode(ids, skip_special=False) == "[CLS]the river[SEP]"
    assert tokenizer.decode(np.array(ids)) == tokenizer.decode(torch.tensor(ids)) == "the river"


def test_ids_and_tokens_are_inverse(tokenizer: Tokenizer) -> None:
    assert [tokenizer.token_id(tokenizer.token(id)) for id in range(384)] == list(range(384))
    assert tokenizer.token_id("no such token") is None
    for id in (-1, 384, 10**12):
        with pytest.raises(
            InputError, match=rf"{id:,} is the id of no token; it must be one of 0 to 383; use"
        ):
            tokenizer.decode([id])


def test_kinds_of_ids_share_out_the_vocabulary(tokenizer: Tokenizer) -> None:
    unused = {tokenizer.token_id(f"[unused{i}]") for i in range(64)} - {None}
    ordinary = set(tokenizer.ordinary_ids.tolist())
    roles = (tokenizer.unk_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.pad_id, tokenizer.mask_id)
    assert tokenizer.special_ids == set(roles)
    assert ordinary | tokenizer.special_ids | unused == set(range(tokenizer.vocab_size))
    assert len(ordinary) + len(tokenizer.special_ids) + len(unused) == tokenizer.vocab_size
    assert tokenizer.ordinary_ids.dtype == np.int64
    assert (np.diff(tokenizer.ordinary_ids) > 0).all()


@pytest.mark.parametrize(
    ("text", "shown"), [(None, "None"), (3, "3"), (b"bytes", "b'bytes'"), (["a"], r"\['a'\]")]
)
def test_what_is_not_text_is_named_with_its_index(tokenizer: Tokenizer, text: object, shown: str) -> None:
    kind = type(text).__name__
    with pytest.raises(InputError, match=rf"^text 1 is {shown} \({kind}\); it must be a string; convert it"):
        tokenizer.encode_batch(["fine", text])  # type: ignore[list-item]
    with pytest.raises(InputError, match=rf"^text 0 is {shown}"):
        tokenizer.encode(text)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=rf"^text 1 is {shown}"):
        Tokenizer.train(["fine", text], vocab_size=320)  # type: ignore[list-item]


def test_lone_surrogates_are_named_with_their_place(tokenizer: Tokenizer) -> None:
    message = r"^text 2 has the lone surrogate '\\ud83d' as character 3; it must be .* repairs it$"
    with pytest.raises(InputError, match=message):
        tokenizer.encode_batch(["fine", "fin\u00e9", "bad\ud83d"])
    with pytest.raises(InputError, match=message):
        Tokenizer.train(["fine", "fin\u00e9", "bad\ud83d"], vocab_size=320)
    with pytest.raises(InputError, match=r"^pair 0 has the lone surrogate"):
        tokenizer.encode("fine", pair="\udfff")
    assert tokenizer.encode("bad\ud83d".encode("utf-8", "replace").decode()) == tokenizer.encode("bad?")


def test_one_string_is_not_a_batch(tokenizer: Tokenizer) -> None:
    with pytest.raises(
        InputError, match=r"`texts` is 'the river'; it must be several texts; put it in a list"
    ):
        tokenizer.encode_batch("the river")
    with pytest.raises(InputError, match="`texts` is 'the river'"):
        Tokenizer.train("the river", vocab_size=320)


def test_pairs_must_be_as_many_as_texts(tokenizer: Tokenizer) -> None:
    with pytest.raises(InputError, match="there are 1 `pairs` for 2 `texts`; there must be one for each"):
        tokenizer.encode_batch(["a", "b"], pairs=["c"])


def test_check_fits(tokenizer: Tokenizer) -> None:
    tokenizer.check_fits(384)
    tokenizer.check_fits(50_368)
    message = (
        "ids up to 383, but the model's `vocab_size` is 320; it must be at least 384; raise it, or train"
    )
    with pytest.raises(ConfigError, match=message):
        tokenizer.check_fits(320)


def test_a_copy_in_another_process_is_the_same(tokenizer: Tokenizer) -> None:
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert copy.fingerprint == tokenizer.fingerprint
    assert copy.encode("the [MASK]") == tokenizer.encode("the [MASK]")
    literal = tokenizer.encode_batch(["the [MASK]"], literal=True)
    assert pickle.loads(pickle.dumps(tokenizer)).encode_batch(["the [MASK]"], literal=True) == literal


def test_fingerprint_survives_saving_and_tells_tokenizers_apart(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    assert Tokenizer.from_pretrained(tmp_path).fingerprint == tokenizer.fingerprint
    assert Tokenizer.train(CORPUS, vocab_size=384).fingerprint == tokenizer.fingerprint
    assert Tokenizer.train(CORPUS, vocab_size=320).fingerprint != tokenizer.fingerprint
    assert Tokenizer.train(CORPUS[1:], vocab_size=384).fingerprint != tokenizer.fingerprint


def test_fingerprint_is_what_it_always_was() -> None:
    """Shards carry fingerprints: one that changed would make every corpus on disk look foreign."""
    expected = "66b2d71718201561547fd250c43219c9e2185bac77179705425921667e425df2"
    assert Tokenizer.train(["hello world " * 5], vocab_size=320).fingerprint == expected
