from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest

from modernbert.errors import ConfigError
from modernbert.model.config import EncoderConfig
from modernbert.train.memory import StepSetup, training_memory
from modernbert.train.planner import Machines, fitting_row, plan_phase, training_flops
from tests.train.phases import BILLION, phase
from tests.train.phases import PRETRAINING as PRETRAIN

LONG = phase(
    name="extend",
    tokens=250 * BILLION,
    sequence_length=8192,
    batch_tokens=576 * 8192,
    learning_rate=3e-4,
    decay="one_minus_sqrt",
)
BASE = StepSetup(shape=EncoderConfig())
LARGE = StepSetup(shape=EncoderConfig.preset("large"))


@pytest.mark.parametrize(
    ("setup", "products", "attention", "attention_when_long"),
    [(BASE, 732e6, 92e6, 621e6), (LARGE, 2154e6, 154e6, 1035e6)],
)
def test_operations_a_token_are_those_derived_by_hand(
    setup: StepSetup, products: float, attention: float, attention_when_long: float
) -> None:
    assert training_flops(PRETRAIN, setup.shape) == pytest.approx(products + attention, rel=2e-3)
    assert training_flops(LONG, setup.shape) == pytest.approx(products + attention_when_long, rel=2e-3)


def test_a_phase_is_planned() -> None:
    found = plan_phase(PRETRAIN, BASE, Machines(num_gpus=8, mfu=0.26), row_tokens=98_304)
    assert found.steps == sum(batch.steps for batch in found.batches) == PRETRAIN.num_steps()
    assert [batch.rows for batch in found.batches] == [8, 16, 24, 32, 40, 48]
    assert [batch.rows_a_gpu for batch in found.batches] == [1, 2, 3, 4, 5, 6]
    assert found.batches[1].from_tokens == 3_333_333_333
    assert found.learning_rates == (pytest.approx(8e-14), 8e-4, 8e-4)
    assert found.flops == pytest.approx(found.flops_a_token * 1719e9)
    assert found.keeping.memory == training_memory(BASE, row_tokens=98_304, mask_rate=0.3)
    assert found.recomputing.memory == training_memory(
        replace(BASE, recomputes_layers=True), row_tokens=98_304, mask_rate=0.3
    )
    assert found.keeping.memory.peak > found.recomputing.memory.peak
    assert 98_304 < found.keeping.largest_row < found.recomputing.largest_row


def test_hours_are_those_of_the_published_speed() -> None:
    """191.1 hours of training at 2.5 million tokens a second, which was 26% of what 8 H100 do at most."""
    measured = plan_phase(PRETRAIN, BASE, Machines(num_gpus=8, tokens_per_second=2.499e6), row_tokens=98_304)
    assert measured.hours == pytest.approx(191.1, abs=0.1)
    assumed = plan_phase(PRETRAIN, BASE, Machines(num_gpus=8, mfu=0.26), row_tokens=98_304)
    assert assumed.hours == pytest.approx(191.1, rel=0.02)
    alone = plan_phase(PRETRAIN, BASE, Machines(num_gpus=1, mfu=0.26), row_tokens=98_304)
    assert alone.hours == pytest.approx(8 * assumed.hours)
    assert plan_phase(LONG, BASE, Machines(), row_tokens=98_304).learning_rates[2] == pytest.approx(3e-7)


def test_the_busiest_gpu_has_a_row_more() -> None:
    (batch,) = plan_phase(LONG, BASE, Machines(num_gpus=5), row_tokens=98_304).batches
    assert (batch.rows, batch.rows_a_gpu) == (48, 10)


def test_masks_of_the_phase_count() -> None:
    few = plan_phase(replace(PRETRAIN, mask_rate=0.05), BASE, Machines(), row_tokens=8192)
    many = plan_phase(replace(PRETRAIN, mask_rate=0.5), BASE, Machines(), row_tokens=8192)
    assert few.keeping.memory.peak < many.keeping.memory.peak
    assert few.flops_a_token < many.flops_a_token


@pytest.mark.parametrize(
    ("largest", "row"),
    [(111_616, 98_304), (98_304, 98_304), (98_303, 65_536), (10_000, 8_192), (8_191, None)],
)
def test_a_row_that_fits_divides_all_batches(largest: int, row: int | None) -> None:
    """The batches have 768 x 1,024 as their common divisor, the longest sequence 8,192 tokens."""
    assert fitting_row([PRETRAIN, LONG], largest) == row
    if row is not None:
        assert all(size % row == 0 for it in (PRETRAIN, LONG) for _, size in it.batch_sizes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_gpus": 0}, "`num_gpus` is 0; it must be at least 1"),
        ({"memory_bytes": 0}, "`memory_bytes` is 0; it must be above 0"),
        ({"peak_tflops": -1}, "`peak_tflops` is -1; it must be above 0"),
        ({"mfu": 1.5}, "`mfu` is 1.5; it must be above 0 and at most 1"),
        ({"tokens_per_second": 0}, "`tokens_per_second` is 0; it must be above 0"),
    ],
)
def test_machines_that_cannot_be_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        Machines(**changes)
