"""What a run learns from: held out by what it says, as many in each epoch, the same when read again."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from modernbert import config
from modernbert.errors import ConfigError, InputError
from modernbert.recipes.retriever.data import Pairs
from modernbert.recipes.retriever.settings import PairData, RetrieverRun

from .conftest import Made

Plan = Callable[..., RetrieverRun]


@pytest.fixture
def corpus(made: Made, plan: Plan) -> PairData:
    return replace(plan().data, pairs=(), corpus=(str(made.corpus),))


def test_files_are_split_by_their_queries(plan: Plan) -> None:
    pairs, again = Pairs(plan().data, 1, 8), Pairs(plan().data, 2, 8)
    held_out = {pair.query for pair in pairs.validation}
    assert pairs.validation == again.validation
    assert 2 <= len(pairs.validation) < 40
    assert held_out.isdisjoint(pair.query for pair in pairs.epoch(0))
    assert len(pairs.epoch(0)) + len(pairs.validation) == 96
    assert pairs.epoch(1) == pairs.epoch(0)


def test_a_corpus_gives_others_in_each_epoch_and_the_same_again(corpus: PairData) -> None:
    pairs = Pairs(corpus, 1, 8)
    epochs = [list(pairs.epoch(number)) for number in (0, 1, 0)]
    assert epochs[0] == epochs[2] != epochs[1]
    assert len(epochs[0]) == len(epochs[1])
    again, other = Pairs(corpus, 1, 8), Pairs(corpus, 2, 8)
    assert (again.epoch(0), again.digest) == (epochs[0], pairs.digest)
    assert other.epoch(0) != epochs[0]
    assert other.validation == pairs.validation


def test_no_held_out_document_is_learned(corpus: PairData) -> None:
    pairs = Pairs(corpus, 1, 8)
    places = {pair.place for pair in pairs.validation}
    learned = {pair.place for number in range(3) for pair in pairs.epoch(number)}
    assert places
    assert places.isdisjoint(learned)
    assert len(places) + len(learned) == 60


def test_a_part_of_a_large_corpus_is_drawn(corpus: PairData) -> None:
    few, all_ = Pairs(replace(corpus, max_corpus_pairs=20), 1, 8), Pairs(corpus, 1, 8)
    assert [len(few.epoch(number)) for number in (0, 1)] == [20, 20]
    assert set(few.epoch(0)) < set(all_.epoch(0))
    assert {pair.place for pair in few.epoch(0)} != {pair.place for pair in few.epoch(1)}
    assert few.validation == all_.validation


def test_both_are_taken_together(made: Made, plan: Plan, corpus: PairData) -> None:
    both = Pairs(replace(plan().data, corpus=corpus.corpus), 1, 8)
    assert len(both.epoch(0)) == len(Pairs(plan().data, 1, 8).epoch(0)) + len(Pairs(corpus, 1, 8).epoch(0))


def test_a_file_for_the_validation(made: Made, plan: Plan, tmp_path: Path) -> None:
    path = tmp_path / "dev.jsonl"
    path.write_text('{"anchor": "a", "positive": "b"}\n{"anchor": "c", "positive": "d"}\n')
    pairs = Pairs(replace(plan().data, validation=str(path), held_out=0), 1, 8)
    assert [pair.query for pair in pairs.validation] == ["a", "c"]
    assert len(pairs.epoch(0)) == 96


@pytest.mark.parametrize(
    ("overrides", "batch_size", "message"),
    [
        ([], 97, r"there are \d\d pairs to learn from; .*`tuning.batch_size`, 97; lower that"),
        (["data.held_out=1e-6"], 8, r"0 pairs are held out; there must be at least 2.*raise `data.held_out`"),
    ],
)
def test_too_little(overrides: list[str], batch_size: int, message: str, plan: Plan) -> None:
    with pytest.raises(InputError, match=message):
        Pairs(plan(*overrides).data, 1, batch_size)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.pairs=[]"], r"`pairs` is \[\]; it must be a file, where no `corpus` is given"),
        (["data.query_length=4"], "`query_length` is 4; it must be at least 8"),
        (["data.validation=dev.csv"], "`held_out` is 0.2; it must be left out beside a `validation`"),
        (["data.held_out=0", "selection.patience=2"], "`selection.patience` is 2; it must be null where"),
        (["temperature=0"], "`temperature` is 0.0; it must be above 0"),
        (["tuning.batch_size=1"], "`tuning.batch_size` is 1; it must be at least 2"),
        (
            ["data.drawn.neighbors=2"],
            "unknown key `data.drawn.neighbors`; did you mean `data.drawn.neighbours`",
        ),
    ],
)
def test_settings_that_do_not_fit(overrides: list[str], message: str, plan: Plan) -> None:
    with pytest.raises(ConfigError, match=message):
        plan(*overrides)


def test_settings_come_back_as_they_were_written(plan: Plan) -> None:
    run = plan("data.columns.query=query", "symmetric=true")
    assert config.build(RetrieverRun, json.loads(json.dumps(config.to_tree(run)))) == run
