from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modernbert import config
from modernbert.data import source as source_module
from modernbert.data.shards import TokenShards, write_shards
from modernbert.data.source import SequenceRef, Source, SourceSettings
from modernbert.errors import ConfigError, InputError

CLS, SEP = 900, 901


class Numbers:
    """A tokenizer of numbers: `3 7` becomes 3 tokens of 7."""

    fingerprint, vocab_size = "numbers", 1000

    def encode_batch(self, texts: list[str], *, special: bool, literal: bool) -> list[list[int]]:
        return [[int(word) for word in text.split()] for text in texts]


def shards_of(folder: Path, lengths: list[int]) -> TokenShards:
    """One document of each length, its tokens 0, 1, 2 …"""
    folder.mkdir()
    lines = [" ".join(str(number % 900) for number in range(length)) for length in lengths]
    (folder / "text.txt").write_text("\n".join(lines))
    return write_shards(folder / "text.txt", Numbers(), folder / "shards", shard_tokens=300)


def source(shards: TokenShards, **options: Any) -> Source:
    settings = {"sequence_length": 12, "cls_id": CLS, "sep_id": SEP, "seed": 1, **options}
    return Source(settings.pop("name", "wiki"), shards, **settings)


def epoch(of: Source, number: int = 0) -> list[SequenceRef]:
    draws = range(number * of.num_sequences, (number + 1) * of.num_sequences)
    return [of.sequence(draw) for draw in draws]


def tokens_of(of: Source, sequence: SequenceRef) -> list[int]:
    row = np.full(sequence.length, -1)
    of.read_into(row, sequence)
    return row.tolist()


LENGTHS = [1, 9, 10, 11, 20, 21, 95, 3, 30]


@pytest.fixture
def shards(tmp_path: Path) -> TokenShards:
    return shards_of(tmp_path / "corpus", LENGTHS)


@pytest.mark.parametrize("number", [0, 1, 1000])
def test_an_epoch_has_every_token_once(shards: TokenShards, number: int) -> None:
    wiki = source(shards)
    sequences = epoch(wiki, number)
    assert len(sequences) == wiki.num_sequences == 1 + 1 + 1 + 2 + 2 + 3 + 10 + 1 + 3
    assert (
        sum(sequence.length for sequence in sequences) == wiki.num_tokens == sum(LENGTHS) + 2 * len(sequences)
    )
    assert max(sequence.length for sequence in sequences) == 12
    found = Counter((s.document, s.start + i) for s in sequences for i in range(s.length - 2))
    assert found == Counter((document, i) for document, length in enumerate(LENGTHS) for i in range(length))
    assert all(s.start % 10 == 0 for s in sequences)


def test_a_sequence_reads_its_chunk_between_its_special_tokens(shards: TokenShards) -> None:
    wiki = source(shards)
    for sequence in epoch(wiki):
        content = [number % 900 for number in range(sequence.start, sequence.start + sequence.length - 2)]
        assert tokens_of(wiki, sequence) == [CLS, *content, SEP]


def test_truncating_keeps_the_first_chunk_only(shards: TokenShards) -> None:
    wiki = source(shards, overflow="truncate")
    sequences = epoch(wiki)
    assert sorted(sequence.document for sequence in sequences) == list(range(len(LENGTHS)))
    assert all(s.start == 0 and s.length == min(LENGTHS[s.document], 10) + 2 for s in sequences)
    assert wiki.num_tokens == sum(s.length for s in sequences)


def test_each_epoch_seed_name_and_phase_has_its_own_order(tmp_path: Path) -> None:
    shards = shards_of(tmp_path / "corpus", [5] * 200)
    orders = [epoch(source(shards), number) for number in (0, 1, 2)]
    orders += [epoch(source(shards, **own)) for own in ({"seed": 2}, {"name": "books"}, {"order": "decay"})]
    assert len({tuple(s.document for s in order) for order in orders}) == 6
    assert [s.document for s in orders[0]] != list(range(200))
    again = [(s.document, s.start) for s in epoch(source(shards))]
    assert again == [(s.document, s.start) for s in orders[0]]


def test_any_draw_can_be_looked_up_in_any_order(shards: TokenShards) -> None:
    wiki, other = source(shards), source(shards)
    draws = [0, 5000, 3, 1023, 1024, 10**12, 5000]
    assert [wiki.sequence(draw) for draw in draws] == [other.sequence(draw) for draw in reversed(draws)][::-1]
    assert [wiki.sequence(draw).draw for draw in draws] == draws


def test_the_splits_share_no_document_and_leave_out_none(tmp_path: Path) -> None:
    shards = shards_of(tmp_path / "corpus", [5] * 1000)
    splits = [
        {s.document for s in epoch(source(shards, split=split, validation_fraction=0.1, name=name))}
        for split, name in [("train", "a"), ("validation", "a"), ("validation", "b")]
    ]
    assert not splits[0] & splits[1]
    assert splits[0] | splits[1] == set(range(1000))
    assert 70 < len(splits[1]) < 130
    assert splits[1] == splits[2], "the same documents under another name are held out too"
    other_seed = source(shards, split="validation", validation_fraction=0.1, seed=2)
    assert {s.document for s in epoch(other_seed)} != splits[1]


@pytest.mark.parametrize("fraction", [0.001, 0.999])
@pytest.mark.parametrize("num_documents", [2, 3, 10])
def test_each_split_has_a_document(tmp_path: Path, num_documents: int, fraction: float) -> None:
    shards = shards_of(tmp_path / "corpus", [5] * num_documents)
    train, validation = (
        source(shards, split=split, validation_fraction=fraction) for split in ("train", "validation")
    )
    assert train.num_sequences >= 1
    assert validation.num_sequences >= 1
    assert train.num_sequences + validation.num_sequences == num_documents


@pytest.mark.parametrize("overflow", ["chunk", "truncate"])
@pytest.mark.parametrize("split", ["train", "validation"])
def test_counting_in_pieces_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, split: str, overflow: str
) -> None:
    shards = shards_of(tmp_path / "corpus", [1 + (7 * number) % 40 for number in range(100)])
    options = {"split": split, "overflow": overflow, "validation_fraction": 0.3}
    whole = source(shards, **options)
    monkeypatch.setattr(source_module, "_PIECE", 7)
    pieces = source(shards, **options)
    assert pieces.num_tokens == whole.num_tokens == sum(s.length for s in epoch(whole))
    assert epoch(pieces) == epoch(whole)


def test_a_source_that_does_not_repeat_has_one_epoch(shards: TokenShards) -> None:
    once, ever = source(shards, repeats=False), source(shards)
    assert [once.has(draw) for draw in (0, once.num_sequences - 1, once.num_sequences)] == [True, True, False]
    assert ever.has(10**12)


def test_a_single_document_can_be_trained_on_but_not_split(tmp_path: Path) -> None:
    shards = shards_of(tmp_path / "corpus", [5])
    wiki = source(shards)
    assert [wiki.sequence(draw).document for draw in range(3000)] == [0] * 3000
    message = (
        "source `wiki` has 1 document; to hold one out for validation it must have at least 2; add documents"
    )
    with pytest.raises(InputError, match=message):
        source(shards, validation_fraction=0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"sequence_length": 2},
            r"`sequence_length` is 2; it must be at least 3: \[CLS\], one token of text",
        ),
        ({"overflow": "chunks"}, "`overflow` is 'chunks'; did you mean `chunk`"),
        ({"split": "valid"}, "`split` is 'valid'; did you mean `validation`"),
        ({"validation_fraction": 1.0}, "`validation_fraction` is 1.0; it must be at least 0 and below 1"),
        (
            {"split": "validation"},
            "`validation_fraction` is 0, so source `wiki` has no validation split; raise it",
        ),
    ],
)
def test_refuses_options_that_cannot_be(shards: TokenShards, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        source(shards, **options)


def test_settings_come_from_plain_values() -> None:
    settings = config.build(SourceSettings, {"name": "wiki", "path": "data/wiki", "weight": 2})
    assert settings == SourceSettings(name="wiki", path="data/wiki", weight=2.0)
    assert config.build(SourceSettings, config.to_tree(settings)) == settings
    for weight in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match=rf"`weight` of source `wiki` is {weight}; it must be"):
            SourceSettings(name="wiki", path="x", weight=weight)
    with pytest.raises(ConfigError, match="the source with path `x` has an empty `name`; name it"):
        SourceSettings(name="", path="x")
