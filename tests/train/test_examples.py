"""Examples as packed rows: none lost, none twice, the same whoever takes them, and on from any step."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from modernbert.layout import SequenceLayout
from modernbert.train.examples import Example, ExampleStep, batch, cut_rows, example_steps, steps_in
from modernbert.train.objective import Objective
from modernbert.train.ranks import Ranks


class Named(Objective):
    """Targets are numbers that name the examples."""

    def collate(self, targets: Sequence[Any], lengths: Sequence[int]) -> Tensor:
        return torch.tensor(targets)

    def weight(self, targets: Tensor) -> float:
        return float(len(targets))

    def loss(
        self, model: Any, input_ids: Tensor, layout: SequenceLayout, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        return targets.sum().float(), torch.tensor(len(targets))


OBJECTIVE = Named()


def made(lengths: Sequence[int]) -> list[Example]:
    return [Example(([number] * length,), number, f"line {number}") for number, length in enumerate(lengths)]


def steps(lengths: Sequence[int], rank: int = 0, size: int = 1, **options: int) -> list[ExampleStep]:
    settings: dict[str, Any] = {"batch_size": 4, "row_tokens": 10, "seed": 1, **options}
    settings.setdefault("num_steps", steps_in(len(lengths), settings["batch_size"], 1))
    return list(example_steps(made(lengths), OBJECTIVE, ranks=Ranks(rank, size), **settings))


def names(found: Sequence[ExampleStep]) -> list[list[int]]:
    return [[name for row in step.rows if row.counts for name in row.targets.tolist()] for step in found]


class TestRows:
    @given(st.lists(st.integers(1, 30), min_size=1, max_size=40), st.integers(1, 40))
    def test_hold_each_example_once_in_order_and_no_more_than_fits(
        self, lengths: list[int], row_tokens: int
    ) -> None:
        rows = [batch(row, OBJECTIVE) for row in cut_rows(made(lengths), row_tokens)]
        assert [name for row in rows for name in row.targets.tolist()] == list(range(len(lengths)))
        assert all(row.layout.num_tokens <= row_tokens or row.layout.num_sequences == 1 for row in rows)
        assert [length for row in rows for length in row.layout.lengths] == lengths

    def test_an_example_of_several_sequences_stays_together(self) -> None:
        example = Example(([1, 2], [3, 4, 5]), 0)
        assert example.num_tokens == 5
        row = batch([example, example], OBJECTIVE)
        assert row.layout.lengths == (2, 3, 2, 3)
        assert row.input_ids.tolist() == [1, 2, 3, 4, 5] * 2
        assert row.weight == 2

    def test_one_that_does_not_count(self) -> None:
        row = batch(made([3]), OBJECTIVE)
        row = type(row)(row.input_ids, row.layout, torch.tensor([5]), OBJECTIVE, 0.0, counts=False)
        assert [value.item() for value in row.loss(None)] == [0, 0]


class TestSteps:
    def test_each_epoch_has_every_example_once_in_another_order(self) -> None:
        lengths = [3] * 10
        found = names(steps(lengths, num_steps=6))
        assert [len(step) for step in found] == [4, 4, 2, 4, 4, 2]
        first, second = ([*chain(*found[start : start + 3])] for start in (0, 3))
        assert sorted(first) == sorted(second) == list(range(10))
        assert first != second != list(range(10))

    def test_another_seed_another_order(self) -> None:
        assert names(steps([3] * 10)) == names(steps([3] * 10))
        assert names(steps([3] * 10)) != names(steps([3] * 10, seed=2))

    @pytest.mark.parametrize("done", range(7))
    def test_on_from_any_step(self, done: int) -> None:
        whole = steps([3] * 10, num_steps=6)
        rest = steps([3] * 10, num_steps=6, done=done)
        assert names(rest) == names(whole)[done:]
        assert [step.number for step in rest] == list(range(done + 1, 7))

    @given(st.lists(st.integers(1, 12), min_size=1, max_size=12), st.integers(1, 5), st.integers(1, 6))
    def test_ranks_share_what_one_would_have(self, lengths: list[int], size: int, batch_size: int) -> None:
        alone = steps(lengths, batch_size=batch_size)
        shares = [steps(lengths, rank, size, batch_size=batch_size) for rank in range(size)]
        for number, step in enumerate(alone):
            parts = [share[number] for share in shares]
            assert [*chain(*names(parts))] == names([step])[0]
            assert len({len(part.rows) for part in parts}) == 1  # so that they keep in step
            assert sum(row.weight for part in parts for row in part.rows) == step.num_examples
            assert {(part.num_examples, part.num_tokens) for part in parts} == {
                (step.num_examples, step.num_tokens)
            }

    @pytest.mark.parametrize(
        ("count", "epochs", "expected"), [(10, 1, 3), (10, 3, 9), (10, 0.5, 2), (8, 2, 4), (1, 0.1, 1)]
    )
    def test_number(self, count: int, epochs: float, expected: int) -> None:
        assert steps_in(count, 4, epochs) == expected

    def test_names_itself(self) -> None:
        first = steps([3] * 10)[0]
        assert first.identity == f"epoch 1, 4 examples from line {names([first])[0][0]}"
