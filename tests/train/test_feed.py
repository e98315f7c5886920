"""What each step consumes follows the schedule, and a run goes on from any step as if never stopped."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from modernbert.data.masking import MaskedBatch, Masker, MaskingSettings
from modernbert.data.shards import TokenShards, write_shards
from modernbert.data.source import Source
from modernbert.errors import CheckpointError, ConfigError
from modernbert.train.feed import Mixture, StepBatch, step_batches
from modernbert.train.ranks import ALONE, Ranks
from modernbert.train.schedule import Clock, Phase, Schedule

CLS, SEP, MASK = 900, 901, 902
ROW_TOKENS = 64


class Vocabulary:
    """A tokenizer that turns `100*5` into the tokens 100, 101, 102, 103, 104."""

    fingerprint, vocab_size, mask_id = "numbers", 1000, MASK
    special_ids = frozenset({CLS, SEP, MASK})
    ordinary_ids = np.arange(900)

    def encode_batch(self, texts: list[str], *, special: bool, literal: bool) -> list[list[int]]:
        return [[int(first) + i for i in range(int(count))] for first, count in (t.split("*") for t in texts)]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TokenShards]:
    """Two corpora that share no token: `low` is below 400, `high` from 400 on."""
    folder, random = tmp_path_factory.mktemp("corpora"), np.random.default_rng(0)
    for name, base in (("low", 0), ("high", 400)):
        documents = [f"{base + random.integers(300)}*{random.integers(1, 60)}" for _ in range(80)]
        (folder / f"{name}.txt").write_text("\n".join(documents))
    return {
        name: write_shards(folder / f"{name}.txt", Vocabulary(), folder / name) for name in ("low", "high")
    }


SHORT = Phase(
    name="short",
    tokens=4000,
    sequence_length=16,
    batch_tokens=256,
    learning_rate=1e-3,
    global_rope_theta=1e4,
    local_rope_theta=1e4,
    batch_warmup_start=64,
    batch_warmup_tokens=1000,
    mask_rate=0.5,
    mixture={"low": 3.0, "high": 1.0},
)
CHANGES: dict[str, Any] = {"batch_warmup_start": None, "batch_warmup_tokens": 0}
LONG = replace(
    SHORT, name="long", tokens=2000, sequence_length=40, mask_rate=0.2, mixture={"high": 1.0}, **CHANGES
)
DECAY = replace(SHORT, name="decay", tokens=2000, mask_rate=0.3, mixture=None, **CHANGES)
SCHEDULE = Schedule([SHORT, LONG, DECAY])


class Feed:
    """The batches of a run over both corpora, as the pretraining recipe sets them up."""

    def __init__(self, shards: dict[str, TokenShards]) -> None:
        self.shards = shards
        self.opened: list[str] = []
        self.has_own_orders = True
        self.own_weights = {"low": 1.0, "high": 1.0}

    def open_sources(self, phase: Phase) -> Mixture:
        self.opened.append(phase.name)
        weights = phase.mixture or self.own_weights
        order = phase.name if self.has_own_orders else ""
        options: dict[str, Any] = {"cls_id": CLS, "sep_id": SEP, "seed": 1, "order": order}
        sources = [
            Source(name, self.shards[name], sequence_length=phase.sequence_length, **options)
            for name in weights
        ]
        return sources, list(weights.values())

    def batches(
        self,
        clock: Clock = Clock(),  # noqa: B008
        loader_state: dict[str, Any] | None = None,
        schedule: Schedule = SCHEDULE,
        row_tokens: int = ROW_TOKENS,
        ranks: Ranks = ALONE,
    ) -> Iterator[StepBatch]:
        masker = Masker(Vocabulary(), MaskingSettings(), seed=1)
        return step_batches(
            schedule,
            self.open_sources,
            masker,
            row_tokens=row_tokens,
            clock=clock,
            loader_state=loader_state,
            ranks=ranks,
        )


@pytest.fixture
def feed(shards: dict[str, TokenShards]) -> Feed:
    return Feed(shards)


@pytest.fixture(scope="module")
def whole(shards: dict[str, TokenShards]) -> list[StepBatch]:
    """All batches of a run that nothing interrupts."""
    return list(Feed(shards).batches())


def of_phase(batches: Sequence[StepBatch], phase: Phase) -> list[StepBatch]:
    return [batch for batch in batches if batch.setting.phase is phase]


def tokens_of(row: MaskedBatch) -> torch.Tensor:
    """The row as it was before it was masked."""
    tokens = row.input_ids.clone()
    tokens[row.masked_positions] = row.labels
    return tokens


def sequences_of(batches: Sequence[StepBatch]) -> list[tuple[int, ...]]:
    rows = [row for batch in batches for row in batch.rows]
    return [tuple(part.tolist()) for row in rows for part in row.layout.split(tokens_of(row))]


def same_rows(one: StepBatch, other: StepBatch) -> bool:
    def plain(batch: StepBatch) -> list[Any]:
        tensors = [(row.input_ids, row.masked_positions, row.labels) for row in batch.rows]
        return [row.layout.lengths for row in batch.rows] + [[t.tolist() for t in row] for row in tensors]

    return plain(one) == plain(other)


def same(one: StepBatch, other: StepBatch) -> bool:
    names = ("setting", "num_tokens", "capacity", "identity", "clock", "loader_state")
    return all(getattr(one, name) == getattr(other, name) for name in names) and same_rows(one, other)


def test_the_clock_counts_the_tokens_of_the_rows(whole: list[StepBatch]) -> None:
    clock = Clock()
    for batch in whole:
        assert batch.num_tokens == sum(row.num_tokens for row in batch.rows)
        assert batch.setting == SCHEDULE.setting(clock)
        clock = SCHEDULE.advance(clock, batch.num_tokens)
        assert batch.clock == clock
    assert SCHEDULE.setting(clock) is None
    assert clock.step == len(whole)
    assert clock.tokens == sum(batch.num_tokens for batch in whole)


@pytest.mark.parametrize("phase", SCHEDULE.phases, ids=lambda phase: phase.name)
def test_a_phase_ends_with_the_batch_that_completes_it(phase: Phase, whole: list[StepBatch]) -> None:
    sizes = [batch.num_tokens for batch in of_phase(whole, phase)]
    assert sum(sizes[:-1]) < phase.tokens <= sum(sizes)


def test_batches_grow_with_the_warm_up(whole: list[StepBatch]) -> None:
    seen = 0
    for batch in of_phase(whole, SHORT):
        assert batch.capacity == SHORT.batch_tokens_after(seen) == ROW_TOKENS * len(batch.rows)
        seen += batch.num_tokens
    sizes = Counter(batch.capacity for batch in of_phase(whole, SHORT))
    assert list(sizes) == [64, 128, 192, 256]
    assert {batch.capacity for phase in (LONG, DECAY) for batch in of_phase(whole, phase)} == {256}


def test_rows_are_nearly_full(whole: list[StepBatch]) -> None:
    assert all(row.num_tokens <= ROW_TOKENS for batch in whole for row in batch.rows)
    assert sum(batch.num_tokens for batch in whole) > 0.99 * sum(batch.capacity for batch in whole)


@pytest.mark.parametrize("phase", SCHEDULE.phases, ids=lambda phase: phase.name)
def test_each_phase_has_its_mask_rate(phase: Phase, whole: list[StepBatch]) -> None:
    rows = [row for batch in of_phase(whole, phase) for row in batch.rows]
    content = sum(row.num_tokens - 2 * row.layout.num_sequences for row in rows)
    assert sum(row.num_masked for row in rows) / content == pytest.approx(phase.mask_rate, abs=0.05)


@pytest.mark.parametrize(
    ("phase", "share"), [(SHORT, 0.75), (LONG, 0.0), (DECAY, 0.5)], ids=lambda it: str(it)[:6]
)
def test_each_phase_has_its_mixture(phase: Phase, share: float, whole: list[StepBatch]) -> None:
    sequences = sequences_of(of_phase(whole, phase))
    low = sum(len(sequence) for sequence in sequences if sequence[1] < 400)
    assert low / sum(map(len, sequences)) == pytest.approx(share, abs=0.05)


def test_each_phase_has_its_length(whole: list[StepBatch]) -> None:
    for phase in SCHEDULE.phases:
        sequences = sequences_of(of_phase(whole, phase))
        assert max(map(len, sequences)) == phase.sequence_length
        assert all(sequence[0] == CLS and sequence[-1] == SEP for sequence in sequences)


def test_a_run_goes_on_from_any_step_as_if_never_stopped(feed: Feed, whole: list[StepBatch]) -> None:
    for number, batch in enumerate(whole, start=1):
        state = json.loads(json.dumps(batch.loader_state))
        rest = list(feed.batches(batch.clock, state))
        assert len(rest) == len(whole) - number
        assert all(same(*pair) for pair in zip(rest, whole[number:], strict=True)), f"after step {number}"


def test_a_batch_made_ahead_changes_no_state(feed: Feed, whole: list[StepBatch]) -> None:
    batches = feed.batches()
    first = next(batches)
    before = json.dumps(first.loader_state)
    next(batches)
    assert json.dumps(first.loader_state) == before
    assert same(first, whole[0])


def test_each_phase_is_opened_once_and_when_it_begins(feed: Feed, whole: list[StepBatch]) -> None:
    assert feed.opened == []
    for batch in feed.batches():
        assert feed.opened[-1] == batch.setting.phase.name
    assert feed.opened == ["short", "long", "decay"]
    feed.opened.clear()
    last_of_short = of_phase(whole, SHORT)[-1]
    next(feed.batches(last_of_short.clock, last_of_short.loader_state))
    assert feed.opened == ["long"]


def test_a_phase_begins_anew_whatever_came_before(feed: Feed, whole: list[StepBatch]) -> None:
    for one, other in zip(feed.batches(Clock(phase=1)), of_phase(whole, LONG), strict=False):
        assert same_rows(one, other)
        assert one.identity == other.identity
    assert [batch.loader_state["phase"] for batch in whole] == [batch.setting.phase_index for batch in whole]


def test_a_phase_made_shorter_gives_way_to_the_next(feed: Feed, whole: list[StepBatch]) -> None:
    shorter = Schedule([replace(SHORT, tokens=1000), LONG, DECAY])
    stopped = of_phase(whole, SHORT)[-2]
    batch = next(feed.batches(stopped.clock, stopped.loader_state, shorter))
    assert same_rows(batch, of_phase(whole, LONG)[0])
    assert batch.clock.step == stopped.clock.step + 1


def test_two_phases_over_one_source_have_their_own_orders(feed: Feed) -> None:
    schedule = Schedule([LONG, replace(LONG, name="again")])
    one, other = (
        sequences_of(of_phase(list(feed.batches(schedule=schedule)), phase)) for phase in schedule.phases
    )
    assert len(set(one) & set(other)) > 0.5 * len(set(one)), "the text is the same"
    assert len(set(pairwise(one)) & set(pairwise(other))) < 0.2 * len(one), "but not what follows what"

    feed.has_own_orders = False
    batches = list(feed.batches(schedule=schedule))
    one, other = (sequences_of(of_phase(batches, phase)) for phase in schedule.phases)
    assert one == other
    first, again = (of_phase(batches, phase)[0] for phase in schedule.phases)
    assert not same_rows(first, again), "masked anew all the same"


def test_the_identity_names_phase_rows_and_sequences(whole: list[StepBatch]) -> None:
    first, second = of_phase(whole, LONG)[:2]
    assert re.fullmatch(r"phase `long`, 4 rows from row 0: (high#\d+\+\d+, )*high#\d+\+\d+", first.identity)
    assert second.identity.startswith("phase `long`, 4 rows from row 4: high#")


def test_refuses_batches_that_are_not_whole_rows(feed: Feed) -> None:
    with pytest.raises(
        ConfigError, match="phase `short` has a batch of 64 tokens; it must be a multiple of `row_tokens`, 48"
    ):
        next(feed.batches(row_tokens=48))
    with pytest.raises(ConfigError, match="it must be a multiple of `row_tokens`, 128"):
        next(feed.batches(row_tokens=128))


def test_refuses_the_state_of_another_mixture(feed: Feed, whole: list[StepBatch]) -> None:
    stopped = of_phase(whole, DECAY)[0]
    feed.own_weights = {"low": 1.0, "high": 2.0}
    with pytest.raises(CheckpointError, match=r"`sources\.high\.weight`: 1\.0 → 2\.0"):
        next(feed.batches(stopped.clock, stopped.loader_state))


def test_a_finished_run_has_no_batch(feed: Feed, whole: list[StepBatch]) -> None:
    assert list(feed.batches(whole[-1].clock, whole[-1].loader_state)) == []
    assert feed.opened == []


@pytest.mark.parametrize("size", [2, 3, 5])
def test_ranks_share_each_batch_and_keep_step(size: int, feed: Feed, whole: list[StepBatch]) -> None:
    """Each row is one rank's; who has one less takes a row of one token, for all have as many."""
    group = [list(feed.batches(ranks=Ranks(rank=rank, size=size))) for rank in range(size)]
    for batch, *parts in zip(whole, *group, strict=True):
        found: dict[int, MaskedBatch] = {}
        for part in parts:
            assert len(part.rows) == -(-len(batch.rows) // size)
            assert (part.clock, part.loader_state) == (batch.clock, batch.loader_state)
            assert (part.num_tokens, part.capacity) == (batch.num_tokens, batch.capacity)
            for row, number in zip(part.rows, part.row_numbers, strict=True):
                if number is None:
                    assert (row.num_tokens, row.num_masked) == (1, 0)
                else:
                    assert found.setdefault(number, row) is row
        assert sorted(found) == list(batch.row_numbers)
        for number, row in found.items():
            assert torch.equal(row.input_ids, batch.rows[number].input_ids)
            assert torch.equal(row.masked_positions, batch.rows[number].masked_positions)
