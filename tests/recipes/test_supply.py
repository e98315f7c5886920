from __future__ import annotations

import logging
from pathlib import Path

import pytest

from modernbert.data.shards import TokenShards
from modernbert.data.tokenizer import Tokenizer
from modernbert.errors import ConfigError
from modernbert.recipes.prepare import find_shards, prepare_shards
from modernbert.recipes.settings import PretrainRun, read_run
from modernbert.recipes.supply import check_supply, open_sources, supplies


@pytest.fixture
def run(run_file: Path) -> PretrainRun:
    return read_run(run_file)


@pytest.fixture
def shards(run: PretrainRun, tokenizer: Path) -> dict[str, TokenShards]:
    return prepare_shards(run, Path(run.folder), Tokenizer.from_pretrained(tokenizer))


def test_says_what_each_phase_wants_and_what_is_there(
    run: PretrainRun, shards: dict[str, TokenShards], tokenizer: Path
) -> None:
    found = {(it.phase, it.source): it for it in supplies(run, shards)}
    assert list(found) == [(phase, name) for phase in ("short", "long", "decay") for name in ("a", "b")]
    assert [round(it.share, 3) for it in found.values()] == [0.333, 0.667, 0.333, 0.667, 0.75, 0.25]
    assert found["decay", "a"].wanted == (1_000 + 512) * 3 // 4, "the last batch may go beyond the end"
    words = Tokenizer.from_pretrained(tokenizer)
    for phase in run.phases:
        for source in open_sources(run, shards, words, phase)[0]:
            assert found[phase.name, source.name].available == source.num_tokens < shards["a"].num_tokens * 2
    assert found["short", "a"].epochs == found["short", "a"].wanted / (found["short", "a"].available or 0)


def test_says_what_is_not_tokenised_yet(run: PretrainRun) -> None:
    missing = {source.name: find_shards(Path(run.folder), source) for source in run.data.sources}
    found = list(supplies(run, missing))
    assert [it.available for it in found] == [it.epochs for it in found] == [None] * 6
    assert all(it.wanted > 0 for it in found)


def test_finds_the_shards_that_a_run_has_made(run: PretrainRun, shards: dict[str, TokenShards]) -> None:
    for source in run.data.sources:
        found = find_shards(Path(run.folder), source)
        assert found is not None
        assert found.num_tokens == shards[source.name].num_tokens


def test_a_phase_that_asks_for_more_than_there_is(
    run_file: Path, shards: dict[str, TokenShards], caplog: pytest.LogCaptureFixture
) -> None:
    once, more = "data.repeat=false", "phases.long.tokens=30000"
    check_supply(read_run(run_file, [once]), shards)
    with pytest.raises(ConfigError) as caught:
        check_supply(read_run(run_file, [once, more]), shards)
    assert str(caught.value).startswith(
        "phase `long` asks source `a` for 10.2k tokens, its last batch included; there are 4."
    )
    assert str(caught.value).endswith("add text, or set `data.repeat` to true")
    with caplog.at_level(logging.INFO):
        check_supply(read_run(run_file, [more]), shards)
    assert caplog.messages[0].startswith("phase `long` goes through source `a` 2.")
    assert len(caplog.messages) == 2
