"""The rule for bad steps, as a table of losses and verdicts."""

from __future__ import annotations

import json
import math

import pytest

from modernbert.errors import ConfigError
from modernbert.train.guard import Guard, GuardSettings

NAN = math.nan


def verdicts(guard: Guard, *losses: float, phase: int = 0) -> list[bool]:
    """Whether each step's update is left out."""
    return [guard.judge(loss, 1.0, phase) is not None for loss in losses]


def test_what_is_not_finite_is_bad() -> None:
    guard = Guard(GuardSettings())
    assert guard.judge(2.0, 1.0, 0) is None
    assert guard.judge(NAN, 1.0, 0) == "its loss is nan, its gradient's norm 1.0; both must be finite"
    assert guard.judge(2.0, math.inf, 0) == "its loss is 2.0, its gradient's norm inf; both must be finite"


@pytest.mark.parametrize("skips", [0, 1, 3])
def test_only_so_many_bad_steps_in_a_row(skips: int) -> None:
    guard = Guard(GuardSettings(skips=skips))
    for _ in range(2):  # a good step lets them count anew
        for _ in range(skips):
            guard.judge(NAN, 1.0, 0)
            assert not guard.is_exhausted
        guard.judge(2.0, 1.0, 0)
    for place in range(skips + 1):
        guard.judge(NAN, 1.0, 0)
        assert guard.is_exhausted is (place == skips)


def test_a_leap_of_the_loss_is_bad_once_its_level_is_known() -> None:
    guard = Guard(GuardSettings(spike=4, spike_window=4))
    assert verdicts(guard, 9.0, 90.0) == [False, False]  # too early to say
    guard = Guard(GuardSettings(spike=4, spike_window=4))
    # Mean 3, deviation sqrt(1/2): the limit is 5.83.
    assert verdicts(guard, 2.0, 3.0, 3.0, 4.0, 5.9, 5.8, 2.0) == [False] * 4 + [True, False, False]
    fault = guard.judge(50.0, 1.0, 0)
    assert fault is not None
    assert fault.startswith("its loss is 50; it must be at most ")
    assert fault.endswith(", by `guard.spike`")


def test_a_bad_loss_does_not_move_the_level() -> None:
    one, other = (Guard(GuardSettings(spike=3, spike_window=3)) for _ in range(2))
    verdicts(one, 2.0, 3.0, 2.5, 99.0, NAN)
    verdicts(other, 2.0, 3.0, 2.5)
    assert {**one.state(), "bad_in_a_row": 0} == other.state()


def test_each_phase_has_a_level_of_its_own() -> None:
    guard = Guard(GuardSettings(spike=1, spike_window=2))
    assert verdicts(guard, 2.0, 2.1, 5.0) == [False, False, True]
    assert verdicts(guard, 5.0, 5.1, 9.0, phase=1) == [False, False, True]


def test_another_guard_judges_on_alike() -> None:
    settings = GuardSettings(spike=3, spike_window=3)
    guard, other = Guard(settings), Guard(settings)
    verdicts(guard, 2.0, 3.0, 2.5, 99.0)
    guard.rollbacks = 1
    other.restore(json.loads(json.dumps(guard.state())))
    assert other.state() == guard.state()
    losses = (2.6, 3.5, NAN, 2.4, 8.0)
    assert verdicts(other, *losses) == verdicts(guard, *losses)
    assert not other.may_roll_back


@pytest.mark.parametrize(
    ("key", "value", "rule"),
    [
        ("skips", -1, "at least 0"),
        ("rollbacks", -1, "at least 0"),
        ("spike_window", 1, "at least 2"),
        ("spike", 0.0, "above 0 and finite, or null"),
        ("spike", math.inf, "above 0 and finite, or null"),
    ],
)
def test_settings_out_of_range(key: str, value: float, rule: str) -> None:
    with pytest.raises(ConfigError, match=f"`{key}` is {value}; it must be {rule}"):
        GuardSettings(**{key: value})
