"""Tokenizers made anew: sizes, order of ids, and what is refused as ModernBERT's base."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import pre_tokenizers

from modernbert.data import tokenizer_training
from modernbert.data.tokenizer import Tokenizer
from modernbert.data.tokenizer_files import fingerprint, read_backend
from modernbert.errors import ConfigError, InputError

# Every two letters twice: as many merges as a test may ask for.
LETTERS = "abcdefghijklmnopqrstuvwxyz"
CORPUS = [" ".join(a + b for b in LETTERS for _ in range(2)) for a in LETTERS]
ROLES = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"]
OLMO = os.environ.get("MODERNBERT_OLMO_TOKENIZER")


@pytest.mark.parametrize(
    ("asked", "size"), [(320, 320), (321, 384), (384, 384), (400, 448), (500, 512), (512, 512)]
)
def test_size_is_rounded_up_to_a_multiple_of_64(asked: int, size: int) -> None:
    tokenizer = Tokenizer.train(CORPUS, vocab_size=asked)
    assert tokenizer.vocab_size == size
    first = asked - len(ROLES)
    expected = [*ROLES, *(f"[unused{i}]" for i in range(size - asked))]
    assert [tokenizer.token(id) for id in range(first, size)] == expected
    roles = [tokenizer.unk_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.pad_id, tokenizer.mask_id]
    assert roles == list(range(first, first + 5))
    assert tokenizer.ordinary_ids.tolist() == list(range(first))


def test_a_text_that_yields_fewer_merges_gives_a_smaller_vocabulary(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        tokenizer = Tokenizer.train(["one line of text, one line"], vocab_size=4096)
    assert tokenizer.vocab_size == 320
    (record,) = caplog.records
    assert record.name == "modernbert.data.tokenizer_training"
    assert "merges asked for; the vocabulary has 320 entries, not 4,096; give more text" in record.message
    assert tokenizer.decode(tokenizer.encode("any other line")) == "any other line"


def test_merges_need_their_frequency() -> None:
    few = Tokenizer.train(["ab ab ab cd cd"], vocab_size=320, min_frequency=3)
    assert few.token_id("ab") is not None
    assert few.token_id("cd") is None


def test_training_repeats_itself_and_reads_once() -> None:
    one = Tokenizer.train(iter(CORPUS), vocab_size=448)
    assert one.fingerprint == Tokenizer.train(CORPUS, vocab_size=448).fingerprint


def test_normalisation_is_that_of_the_published_tokenizer(tmp_path: Path) -> None:
    Tokenizer.train(CORPUS, vocab_size=320).save_pretrained(tmp_path)
    document = json.loads((tmp_path / "tokenizer.json").read_text())
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    assert document["normalizer"] == {"type": "NFC"}
    assert document["pre_tokenizer"] == byte_level
    assert document["decoder"]["type"] == "ByteLevel"
    flags = {token["content"]: (token["lstrip"], token["special"]) for token in document["added_tokens"]}
    assert flags == {**dict.fromkeys(ROLES, (False, True)), "[MASK]": (True, True)}


def test_progress_counts_characters() -> None:
    seen: list[int] = []
    Tokenizer.train(CORPUS, vocab_size=320, on_progress=seen.append)
    assert seen == [len(text) for text in CORPUS]


@pytest.mark.parametrize(
    "text", ["x" * 300_000, " " * 300_000, "ab " * 5 + "é" * 2001 + "\n" * 2001 + " cd" * 5]
)
def test_a_line_without_breaks_is_learned_from_in_pieces(text: str) -> None:
    """Learning takes time quadratic in the length of a word: uncut, the first two take minutes."""
    pieces = list(tokenizer_training._pieces(text))
    assert "".join(pieces) == text
    assert max(len(word) for piece in pieces for word in piece.split() or [piece]) <= 1000
    Tokenizer.train([text], vocab_size=320)


def test_a_text_of_words_is_not_cut() -> None:
    text = "word " * 10_000
    assert list(tokenizer_training._pieces(text)) == [text]


@pytest.mark.parametrize("texts", [[], [""], ["", ""]])
def test_no_text_is_refused(texts: list[str]) -> None:
    with pytest.raises(
        InputError, match="there is no text to learn from; there must be at least one character"
    ):
        Tokenizer.train(texts, vocab_size=320)


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigError, match="`vocab_size` is 319; it must be at least 320: 256 bytes and 5"):
        Tokenizer.train(CORPUS, vocab_size=319)
    with pytest.raises(ConfigError, match="`min_frequency` is 0; it must be at least 1"):
        Tokenizer.train(CORPUS, vocab_size=320, min_frequency=0)


def test_an_error_while_reading_texts_comes_through() -> None:
    def broken() -> Any:
        yield "a text"
        raise InputError("`corpus.txt` is cut short")

    with pytest.raises(InputError, match="cut short"):
        Tokenizer.train(broken(), vocab_size=320)


def base_document() -> dict[str, Any]:
    """What OLMo's file looks like, with made-up tokens instead of learned ones."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = ["|||IP_ADDRESS|||", "<|padding|>", *alphabet, "ab"]
    tokens += [f"filler{i}" for i in range(50_279 - len(tokens))] + ["<|endoftext|>"]
    added = {0: False, 1: True, 50_279: True}
    flags = {"single_word": False, "lstrip": False, "rstrip": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": id, "content": tokens[id], **flags, "normalized": not special, "special": special}
            for id, special in added.items()
        ],
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": byte_level,
        "post_processor": byte_level,
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": {text: id for id, text in enumerate(tokens)}, "merges": ["a b"]},
    }


def write(path: Path, document: dict[str, Any]) -> Path:
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A made-up base that is taken for the real one."""
    path = write(tmp_path / "base.json", base_document())
    found = fingerprint(read_backend(path), tokenizer_training._TEXT_TO_IDS)
    monkeypatch.setattr(tokenizer_training, "OLMO_FINGERPRINT", found)
    return path


def assert_modernbert(tokenizer: Tokenizer) -> None:
    assert tokenizer.vocab_size == 50_368 == 787 * 64
    ids = [tokenizer.unk_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.pad_id, tokenizer.mask_id]
    assert ids == [50_280, 50_281, 50_282, 50_283, 50_284]
    assert [tokenizer.token(id) for id in range(50_280, 50_368)] == [
        *ROLES,
        *(f"[unused{i}]" for i in range(83)),
    ]
    assert tokenizer.special_ids == {1, 50_279, *ids}
    assert len(tokenizer.ordinary_ids) == 50_278
    assert tokenizer.encode("", pair="") == [50_281, 50_282, 50_282]
    assert tokenizer.encode("a [MASK]")[-2:] == [50_284, 50_282]
    assert tokenizer.token(tokenizer.encode("a [MASK]")[1]) == "a"


def test_modernbert_is_built_and_saved(base: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.modernbert(base)
    assert_modernbert(tokenizer)
    assert tokenizer.encode("ab", special=False) == [tokenizer.token_id("ab")]
    tokenizer.save_pretrained(tmp_path / "saved")
    loaded = Tokenizer.from_pretrained(tmp_path / "saved")
    assert_modernbert(loaded)
    assert loaded.fingerprint == tokenizer.fingerprint


def drop_last(document: dict[str, Any]) -> None:
    del document["model"]["vocab"]["filler7"]


def add_one(document: dict[str, Any]) -> None:
    document["model"]["vocab"]["surplus"] = 50_280


def move(document: dict[str, Any]) -> None:
    """What an older OLMo file has: the same tokens in another place."""
    vocabulary = document["model"]["vocab"]
    vocabulary["|||IP_ADDRESS|||"], vocabulary["filler7"] = vocabulary["filler7"], 0
    document["added_tokens"][0]["id"] = vocabulary["|||IP_ADDRESS|||"]


def rename_end(document: dict[str, Any]) -> None:
    document["model"]["vocab"]["<|end|>"] = document["model"]["vocab"].pop("<|endoftext|>")
    document["added_tokens"].pop()


def word_level(document: dict[str, Any]) -> None:
    document["model"] = {"type": "WordLevel", "vocab": document["model"]["vocab"], "unk_token": "<|padding|>"}


def swap_fillers(document: dict[str, Any]) -> None:
    vocabulary = document["model"]["vocab"]
    vocabulary["filler7"], vocabulary["filler8"] = vocabulary["filler8"], vocabulary["filler7"]


def drop_merge(document: dict[str, Any]) -> None:
    document["model"]["merges"] = []


def drop_normalizer(document: dict[str, Any]) -> None:
    document["normalizer"] = None


def add_prefix_space(document: dict[str, Any]) -> None:
    document["pre_tokenizer"] = {**document["pre_tokenizer"], "add_prefix_space": True}


WRONG = "has the size of OLMo v1.5, but other tokens, merges or settings: its fingerprint is .*, unchanged"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            drop_last,
            "has 50,279 ids up to 50,279; ModernBERT's base must have exactly 50,280, up to 50,279; give",
        ),
        (
            add_one,
            "has 50,281 ids up to 50,280; ModernBERT's base must have exactly 50,280, up to 50,279; give",
        ),
        (move, r"has `filler7` as id 0; ModernBERT's base must have `\|\|\|IP_ADDRESS\|\|\|` there; give"),
        (
            rename_end,
            r"has `<\|end\|>` as id 50,279; ModernBERT's base must have `<\|endoftext\|>` there; give",
        ),
        (
            word_level,
            "is a WordLevel model; ModernBERT's base must be a BPE; give the `tokenizer.json` of OLMo",
        ),
        (swap_fillers, WRONG),
        (drop_merge, WRONG),
        (drop_normalizer, WRONG),
        (add_prefix_space, WRONG),
    ],
)
def test_any_other_base_is_refused(
    base: Path, tmp_path: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    document = base_document()
    change(document)
    with pytest.raises(InputError, match=message):
        Tokenizer.modernbert(write(tmp_path / "other.json", document))


def test_a_made_up_base_is_not_the_real_one(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=WRONG):
        Tokenizer.modernbert(write(tmp_path / "base.json", base_document()))


def test_modernbert_is_no_base_of_itself(base: Path, tmp_path: Path) -> None:
    Tokenizer.modernbert(base).save_pretrained(tmp_path / "saved")
    with pytest.raises(
        InputError, match="has 50,368 ids up to 50,367; ModernBERT's base must have exactly 50,280"
    ):
        Tokenizer.modernbert(tmp_path / "saved" / "tokenizer.json")


def test_a_missing_base_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere.json` is no file; it must be the `tokenizer.json`"):
        Tokenizer.modernbert(tmp_path / "nowhere.json")


@pytest.mark.skipif(OLMO is None, reason="MODERNBERT_OLMO_TOKENIZER does not name OLMo's tokenizer.json")
def test_modernbert_from_the_real_base() -> None:
    assert OLMO is not None
    tokenizer, base = Tokenizer.modernbert(OLMO), read_backend(Path(OLMO))
    assert_modernbert(tokenizer)
    texts = [
        "The capital of France is Paris.",
        "  def f(x):\n    return x ** 2",
        "cafe\u0301 東京 👩‍👩‍👧",
        "<|endoftext|>",
    ]
    for text in texts:
        ids = base.encode(text).ids
        assert tokenizer.encode(text) == [50_281, *ids, 50_282]
        assert tokenizer.encode(text, special=False) == ids
    assert tokenizer.encode("The capital is [MASK].") == [50_281, 510, 5347, 310, 50_284, 15, 50_282]
