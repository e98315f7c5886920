"""The needle test, of models that look where they are told to."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from torch import Tensor

from modernbert.data.corpus import Document
from modernbert.data.tokenizer import Tokenizer
from modernbert.errors import ConfigError, InputError
from modernbert.evaluate.needle import (
    NeedleSettings,
    code_words,
    draw_needle,
    measure_needles,
    put,
)
from modernbert.infer.texts import Texts
from tests.evaluate.fakes import fake_model

CODES = ["river", "copper", "window", "garden"]
FILLER = "An old man saw a dog. It ran to him! Was it so? "


@pytest.fixture(scope="module")
def words() -> Tokenizer:
    return Tokenizer.train([f"{FILLER} {' '.join(CODES)}"] * 3, vocab_size=384)


@pytest.fixture(scope="module")
def filler() -> list[Document]:
    return [Document(FILLER * 20, "file.txt:1", 0) for _ in range(10)]


def test_a_needle_is_found_where_the_model_looks(
    words: Tokenizer, filler: list[Document], tmp_path: Path
) -> None:
    """The model sees no more than the second half of a text."""
    codes = [words.encode(f" {code}", special=False)[0] for code in code_words(words)]
    asked: list[list[int]] = []

    def score(ids: list[int], place: int) -> Tensor:
        assert ids[place] == words.mask_id
        asked.append(ids)
        scores = torch.zeros(words.vocab_size)
        scores[[id for id in ids[len(ids) // 2 :] if id in codes]] = 1.0
        return scores

    settings = NeedleSettings(lengths=(200, 300), depths=(0.0, 0.2, 0.9, 1.0), trials=3)
    model = fake_model(words, score)
    found = measure_needles(model, filler, settings)
    cells = {(it["length"], it["depth"]): it["precision"] for it in found.figures["cells"]}
    for length in (200, 300):
        assert [cells[length, depth] for depth in (0.0, 0.2, 0.9, 1.0, None)] == [0, 0, 1, 1, 0]
    assert [len(ids) for ids in asked] == [200] * 15 + [300] * 15
    (rows,) = found.tables.values()
    assert rows[0] == {
        "tokens": "200",
        "0%": "0.0%",
        "20%": "0.0%",
        "90%": "100.0%",
        "100%": "100.0%",
        "without": "0.0%",
    }
    assert measure_needles(model, filler, settings).figures == found.figures
    pytest.importorskip("matplotlib")
    found.save(tmp_path)
    assert (tmp_path / "needle.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "results.json").is_file()


def test_a_needle_and_its_question(words: Tokenizer) -> None:
    texts, codes = Texts(words, 512), code_words(words)
    assert set(CODES) <= {*codes}
    drawn = [draw_needle(texts, codes, random.Random(seed)) for seed in range(8)]
    for needle in drawn:
        assert needle.asked.ids[needle.asked.place] == words.mask_id
        assert needle.asked.token in needle.told
        assert needle.asked.token not in needle.asked.ids
    assert len({needle.told for needle in drawn}) == 8


@pytest.mark.parametrize(
    ("depth", "place"), [(0.0, 0), (0.1, 0), (0.3, 3), (0.5, 3), (0.7, 8), (0.9, 8), (1.0, 10)]
)
def test_a_needle_stands_between_sentences(depth: float, place: int) -> None:
    filler = [1, 1, 9, 1, 1, 1, 1, 9, 1, 1]  # 9 ends a sentence
    assert put(filler, [5, 6], depth, frozenset([9])) == [*filler[:place], 5, 6, *filler[place:]]


def test_what_cannot_be_measured_is_refused(words: Tokenizer, filler: list[Document]) -> None:
    model = fake_model(words, lambda ids, place: torch.zeros(words.vocab_size), max_length=5000)
    with pytest.raises(ConfigError, match="there must be at least one of each"):
        NeedleSettings(lengths=())
    with pytest.raises(ConfigError, match="and none twice"):
        NeedleSettings(lengths=(64, 64))
    with pytest.raises(ConfigError, match=r"a depth is 1.5; it must be from 0"):
        NeedleSettings(lengths=(8,), depths=(1.5,))
    with pytest.raises(ConfigError, match="`length` is 9,000; `fake` takes 5,000 tokens at most"):
        measure_needles(model, filler, NeedleSettings(lengths=(9000,)))
    with pytest.raises(ConfigError, match="a length is 16; a needle and its question have"):
        measure_needles(model, filler, NeedleSettings(lengths=(16,)))
    with pytest.raises(InputError, match="it must fill 400; give more"):
        measure_needles(model, [Document(FILLER, "file.txt:1", 0)], NeedleSettings(lengths=(400,)))
    with pytest.raises(InputError, match="the tokenizer has no word of four letters or more"):
        code_words(Tokenizer.train(["a b"], vocab_size=320, min_frequency=1))
