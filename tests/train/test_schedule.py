from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from modernbert import config
from modernbert.errors import ConfigError
from modernbert.train.schedule import Clock, Phase, Schedule
from tests.train.phases import BILLION, phase
from tests.train.phases import PRETRAINING as BASE

LARGE = replace(
    BASE,
    batch_tokens=4928 * 1024,
    learning_rate=5e-4,
    warmup_tokens=2 * BILLION,
    batch_warmup_start=448 * 1024,
    batch_warmup_tokens=10 * BILLION,
)
EXTENSION = phase(
    name="extension",
    tokens=250 * BILLION,
    sequence_length=8192,
    batch_tokens=576 * 8192,
    learning_rate=3e-4,
    global_rope_theta=160_000.0,
)
DECAY = replace(EXTENSION, name="decay", tokens=50 * BILLION, decay="one_minus_sqrt")


@pytest.mark.parametrize(
    ("published", "borders", "sequences"),
    [
        (BASE, [0, 3.33, 10, 20, 33.3, 50], [768, 1536, 2304, 3072, 3840, 4608]),
        (
            LARGE,
            [0, 0.182, 0.545, 1.091, 1.818, 2.727, 3.818, 5.091, 6.545, 8.182, 10],
            [*range(448, 4481, 448), 4928],
        ),
        (EXTENSION, [0], [4608 // 8]),
    ],
)
def test_batch_sizes_change_where_published(
    published: Phase, borders: list[float], sequences: list[int]
) -> None:
    found = published.batch_sizes
    assert [border / BILLION for border, _ in found] == pytest.approx(borders, rel=2e-3)
    assert [size // published.sequence_length for _, size in found] == sequences


@pytest.mark.parametrize(("published", "steps"), [(BASE, 4239), (LARGE, 396)])
def test_each_smaller_batch_size_gets_the_published_number_of_steps(published: Phase, steps: int) -> None:
    ends = [border for border, _ in published.batch_sizes[1:]]
    for (start, size), end in zip(published.batch_sizes, ends, strict=False):
        assert (end - start) / size == pytest.approx(steps, abs=1)


@pytest.mark.parametrize(
    ("published", "steps"),
    [
        (EXTENSION, 52_982),
        (DECAY, 10_597),
        (replace(EXTENSION, batch_tokens=616 * 8192), 49_542),
        (replace(DECAY, batch_tokens=624 * 8192), 9_782),
    ],
)
def test_steps_of_full_batches_are_those_published(published: Phase, steps: int) -> None:
    assert published.num_steps() == steps


@pytest.mark.parametrize(
    ("published", "tokens", "learning_rate"),
    [
        (BASE, 0, 8e-14),
        (BASE, 1.5 * BILLION, 4e-4),
        (BASE, 3 * BILLION, 8e-4),
        (BASE, 1719 * BILLION, 8e-4),
        (LARGE, 0, 5e-14),
        (LARGE, 2 * BILLION, 5e-4),
        (EXTENSION, 0, 3e-4),
        (EXTENSION, 250 * BILLION, 3e-4),
        (DECAY, 0, 3e-4),
        (DECAY, 12.5 * BILLION, 3e-4 * (0.001 + 0.999 * 0.5)),
        (DECAY, 50 * BILLION, 3e-7),
        (replace(DECAY, decay_floor=0.5), 50 * BILLION, 1.5e-4),
        (replace(DECAY, decay_tokens=20 * BILLION), 30 * BILLION, 3e-4),
        (replace(DECAY, decay_tokens=20 * BILLION), 35 * BILLION, 3e-4 * (0.001 + 0.999 * 0.5)),
        (replace(DECAY, warmup_tokens=10 * BILLION), 10 * BILLION, 3e-4),
        (replace(DECAY, warmup_tokens=10 * BILLION), 20 * BILLION, 3e-4 * (0.001 + 0.999 * 0.5)),
    ],
)
def test_learning_rate_is_that_published(published: Phase, tokens: float, learning_rate: float) -> None:
    assert published.learning_rate_after(int(tokens)) == pytest.approx(learning_rate, rel=1e-9)


def test_learning_rate_never_jumps_within_a_phase() -> None:
    whole = phase(tokens=10_000, warmup_tokens=3_000, decay="one_minus_sqrt", decay_tokens=4_000)
    rates = [whole.learning_rate_after(seen) for seen in range(10_001)]
    assert all(left < right for left, right in pairwise(rates[:3001]))
    assert set(rates[3000:6001]) == {whole.learning_rate}
    assert all(left > right for left, right in pairwise(rates[6000:]))
    assert max(abs(left - right) for left, right in pairwise(rates)) < 2e-5


def walk(schedule: Schedule, clock: Clock = Clock()) -> list[tuple[int, int]]:  # noqa: B008
    """Run full batches to the end; return the phase and batch size of each step."""
    steps = []
    while (setting := schedule.setting(clock)) is not None:
        steps.append((setting.phase_index, setting.batch_tokens))
        clock = schedule.advance(clock, setting.batch_tokens)
    return steps


@pytest.mark.parametrize(
    "warmed",
    [
        phase(tokens=5000, batch_warmup_start=8, batch_warmup_tokens=1000),
        phase(tokens=5000, batch_warmup_start=32, batch_warmup_tokens=1),
        phase(tokens=999, batch_warmup_start=16, batch_warmup_tokens=999),
        phase(tokens=1),
        phase(tokens=64),
        phase(tokens=65),
    ],
)
def test_the_count_of_steps_is_that_of_a_walk(warmed: Phase) -> None:
    assert len(walk(Schedule([warmed]))) == warmed.num_steps()


def test_each_size_of_a_batch_warm_up_gets_as_many_steps() -> None:
    sizes = [
        size
        for _, size in walk(Schedule([phase(tokens=9600, batch_warmup_start=16, batch_warmup_tokens=960)]))
    ]
    assert [sizes.count(size) for size in (16, 32, 48)] == [10, 10, 10]
    assert sizes == sorted(sizes)


def test_phases_follow_one_another() -> None:
    schedule = Schedule([phase(tokens=100), phase(name="two", tokens=64, learning_rate=5e-4)])
    clock = Clock()
    for tokens, expected in [
        (60, Clock(phase=0, phase_tokens=60, tokens=60, step=1)),
        (60, Clock(phase=1, phase_tokens=0, tokens=120, step=2)),
        (63, Clock(phase=1, phase_tokens=63, tokens=183, step=3)),
        (63, Clock(phase=2, phase_tokens=0, tokens=246, step=4)),
    ]:
        clock = schedule.advance(clock, tokens)
        assert clock == expected
    assert schedule.setting(clock) is None
    assert schedule.total_tokens == 164


def test_a_setting_says_what_a_step_needs() -> None:
    schedule = Schedule([phase(tokens=100), phase(name="two", tokens=64, learning_rate=5e-4)])
    setting = schedule.setting(Clock(phase=1, phase_tokens=10, tokens=120, step=9))
    assert setting is not None
    assert (setting.phase_index, setting.phase.name) == (1, "two")
    assert (setting.learning_rate, setting.batch_tokens) == (5e-4, 64)


def test_a_resumed_run_whose_phase_was_made_shorter_moves_on() -> None:
    schedule = Schedule([phase(tokens=100), phase(name="two", tokens=64)])
    clock = Clock(phase=0, phase_tokens=500, tokens=500, step=5)
    setting = schedule.setting(clock)
    assert setting is not None
    assert setting.phase.name == "two"
    assert schedule.advance(clock, 10) == Clock(phase=1, phase_tokens=10, tokens=510, step=6)


def test_the_table_describes_the_published_run() -> None:
    rows = Schedule([BASE, EXTENSION, DECAY]).table()
    assert [row["phase"] for row in rows] == ["pretrain", "extension", "decay"]
    assert [row["steps"] for row in rows[1:]] == [52_982, 10_597]
    assert rows[0]["batch_sizes"][:2] == [(0, 768 * 1024), (3_333_333_333, 1536 * 1024)]
    assert [row["learning_rate_at_end"] for row in rows] == pytest.approx([8e-4, 3e-4, 3e-7])
    assert [row["global_rope_theta"] for row in rows] == [1e4, 160_000, 160_000]
    assert {row["mask_rate"] for row in rows} == {0.3}


def test_what_is_dumped_builds_the_same_phase() -> None:
    original = replace(DECAY, mixture={"web": 0.7, "code": 0.3})
    assert config.build(Phase, config.to_tree(original)) == original


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": ""}, "empty `name`"),
        ({"tokens": 0}, "`tokens` is 0; it must be above 0"),
        ({"batch_tokens": -8}, "`batch_tokens` is -8; it must be above 0"),
        ({"learning_rate": 0.0}, "`learning_rate` is 0.0; it must be above 0"),
        ({"learning_rate": math.nan}, "`learning_rate` is nan"),
        ({"learning_rate": math.inf}, "`learning_rate` is inf"),
        ({"global_rope_theta": 0.0}, "`global_rope_theta` is 0.0"),
        ({"local_rope_theta": -1.0}, "`local_rope_theta` is -1.0"),
        ({"sequence_length": 7}, "`sequence_length` is 7; it must be at least 8"),
        (
            {"sequence_length": 65},
            "`sequence_length` is 65; it must be at most 64, the tokens of the smallest batch",
        ),
        ({"mask_rate": 1.0}, "`mask_rate` is 1.0; it must be above 0 and below 1"),
        ({"weight_decay": -0.1}, "`weight_decay` is -0.1; it must be at least 0 and below 1"),
        ({"warmup_tokens": 1001}, "`warmup_tokens` is 1001; it must be from 0 to 1000"),
        (
            {"warmup_tokens": 1000, "decay": "one_minus_sqrt"},
            "`warmup_tokens` is 1000; it must be from 0 to 999",
        ),
        ({"decay_floor": 1.0}, "`decay_floor` is 1.0; it must be at least 0 and below 1"),
        ({"decay_tokens": 10}, '`decay_tokens` is 10; it must be absent while `decay` is "none"'),
        (
            {"decay": "one_minus_sqrt", "warmup_tokens": 600, "decay_tokens": 500},
            "`decay_tokens` is 500; it must be from 1 to 400, the tokens after the warm-up",
        ),
        (
            {"batch_warmup_tokens": 10},
            "`batch_warmup_tokens` is 10; it must be 0 without `batch_warmup_start`",
        ),
        (
            {"batch_warmup_start": 24, "batch_warmup_tokens": 10},
            "`batch_warmup_start` is 24; it must be a proper divisor of `batch_tokens`, 64",
        ),
        ({"batch_warmup_start": 64, "batch_warmup_tokens": 10}, "`batch_warmup_start` is 64"),
        ({"batch_warmup_start": 16}, "`batch_warmup_tokens` is 0; it must be from 1 to `tokens`, 1000"),
        ({"batch_warmup_start": 16, "batch_warmup_tokens": 2000}, "`batch_warmup_tokens` is 2000"),
        ({"mixture": {}}, "`mixture` is {}; it must be a weight for at least one source"),
        ({"mixture": {"web": 0.0}}, "`mixture.web` is 0.0; it must be above 0"),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        phase(**changes)
    assert message in str(caught.value)
    assert not changes.get("name", "one") or "phase `one`" in str(caught.value)


def test_a_schedule_needs_phases_of_different_names() -> None:
    with pytest.raises(ConfigError, match="`phases` is empty"):
        Schedule([])
    with pytest.raises(ConfigError, match="two phases are named `one`"):
        Schedule([phase(), phase()])
