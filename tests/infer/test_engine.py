"""The engine: order, budget, laziness, errors in their place, and the same bits whatever the neighbours."""

from __future__ import annotations

import gc
import logging
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from modernbert.errors import BackendError, InputError
from modernbert.infer import engine as module
from modernbert.infer.engine import Engine
from modernbert.infer.fused import FusedEncoder
from modernbert.infer.runner import TorchRunner
from modernbert.infer.task import Prepared, Task
from modernbert.model.config import EncoderConfig
from modernbert.model.encoder import ModernBertModel
from modernbert.model.init import initialise


class Sums(Task[Any, int, tuple[Any, list[int]]]):
    """Makes sequences of the lengths that an input says, and sums each."""

    def __init__(self, *, capacity: int | None = None) -> None:
        self.capacity = capacity  # tokens beyond which there is no memory
        self.batches: list[list[int]] = []
        self.prepared: list[int] = []
        self.threads: set[str] = set()

    def prepare(self, inputs: list[Any], first: int) -> list[Prepared]:
        self.threads.add(threading.current_thread().name)
        self.prepared.append(len(inputs))
        for index, value in enumerate(inputs, start=first):
            if value is None:
                raise InputError(f"input {index} is None")
        lengths = [[value] if isinstance(value, int) else value for value in inputs]
        return [Prepared([[1] * n for n in ns], value) for ns, value in zip(lengths, inputs)]

    def compute(self, sequences: list[list[int]]) -> list[int]:
        if self.capacity is not None and sum(map(len, sequences)) > self.capacity:
            raise torch.OutOfMemoryError("no memory")
        self.batches.append([len(sequence) for sequence in sequences])
        return [sum(sequence) for sequence in sequences]

    def finish(self, prepared: Prepared, outputs: list[int]) -> tuple[Any, list[int]]:
        return prepared.context, outputs


LENGTHS = st.integers(1, 30) | st.lists(st.integers(1, 30), max_size=4)


@given(st.lists(LENGTHS, max_size=150), st.integers(1, 100), st.booleans())
def test_each_result_is_its_inputs_own_and_in_order(
    inputs: list[Any], budget: int, deterministic: bool
) -> None:
    task = Sums()
    results = list(Engine(budget, deterministic=deterministic).run(task, inputs))
    assert results == [(value, [value] if isinstance(value, int) else value) for value in inputs]
    for batch in task.batches:
        assert len(batch) == 1 or (sum(batch) <= budget and not deterministic)


def test_like_lengths_share_a_batch_and_batches_are_as_even_as_their_number_allows() -> None:
    task = Sums()
    list(Engine(12).run(task, [2, 9, 3, 1, 9, 3, 4]))
    assert task.batches == [[9], [9], [4, 3], [3, 2, 1]]


def test_a_sequence_beyond_the_budget_goes_alone() -> None:
    task = Sums()
    assert len(list(Engine(5).run(task, [20, 1, 1]))) == 3
    assert task.batches == [[20], [1, 1]]


def test_an_input_of_no_sequence_has_a_result_too() -> None:
    assert list(Engine(5).run(Sums(), [[], 1, []])) == [([], []), (1, [1]), ([], [])]


def test_no_input() -> None:
    assert list(Engine(5).run(Sums(), [])) == []


class TestWindows:
    def test_they_grow_to_a_limit(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "LARGEST_WINDOW", 300)
        task = Sums()
        list(Engine(1000).run(task, [1] * 1000))
        assert task.prepared == [64, 128, 256, 300, 252]

    def test_they_hold_no_more_tokens_than_some_batches(self) -> None:
        task = Sums()
        list(Engine(10).run(task, [5] * 400))
        assert task.prepared[:4] == [64, 32, 32, 32], "16 batches of 10 tokens are 32 inputs of 5"

    def test_one_huge_input_makes_the_next_window_small_for_a_while(self) -> None:
        task = Sums()
        list(Engine(10).run(task, [[100] * 1000, *[1] * 200]))
        assert task.prepared == [64, 1, 2, 4, 8, 16, 32, 64, 10]

    def test_they_are_tokenised_in_the_background(self) -> None:
        task = Sums()
        list(Engine(10).run(task, [1] * 100))
        (name,) = task.threads
        assert name != threading.current_thread().name


class TestLazily:
    def test_little_is_read_ahead(self) -> None:
        read = 0

        def source() -> Iterator[int]:
            nonlocal read
            while True:
                read += 1
                yield 1

        results = Engine(100).run(Sums(), source())
        assert read == 0
        next(results)
        # Waits for the background thread, which is at the second window at most.
        results.close()  # type: ignore[attr-defined]
        assert read <= 64 + 128

    def test_results_of_past_windows_are_let_go(self) -> None:
        class Text:
            pass

        seen: list[weakref.ref[Text]] = []

        class Keep(Sums):
            def prepare(self, inputs: list[Any], first: int) -> list[Prepared]:
                return [Prepared([[1]], value) for value in inputs]

        def source() -> Iterator[Text]:
            for _ in range(3000):
                text = Text()
                seen.append(weakref.ref(text))
                yield text

        most = 0
        for count, _ in enumerate(Engine(8).run(Keep(), source())):
            if count % 500 == 499:
                gc.collect()
                most = max(most, sum(one() is not None for one in seen))
        assert most <= 3 * 128, "the window in hand, the next, and one in between; 16 * 8 inputs each"

    def test_threads_end(self) -> None:
        before = threading.active_count()
        results = Engine(100).run(Sums(), iter([1] * 1000))
        next(results)
        del results
        gc.collect()
        assert threading.active_count() == before


class TestErrors:
    @pytest.mark.parametrize(("bad", "before"), [(0, 0), (63, 0), (64, 64), (100, 64), (700, 448)])
    def test_of_an_input_come_before_the_results_of_its_window(self, bad: int, before: int) -> None:
        inputs = [1] * bad + [None] + [1] * 500
        for some in (inputs, iter(inputs)):
            found: list[Any] = []
            with pytest.raises(InputError, match=rf"^input {bad} is None$"):
                found.extend(Engine(100).run(Sums(), some))
            assert len(found) == before

    def test_of_the_iterator_come_out(self) -> None:
        def source() -> Iterator[int]:
            yield from [1] * 100
            raise OSError("the disk is gone")

        found: list[Any] = []
        with pytest.raises(OSError, match="the disk is gone"):
            found.extend(Engine(100).run(Sums(), source()))
        assert len(found) == 64, "the windows before"

    def test_of_the_model_come_out(self) -> None:
        class Broken(Sums):
            def compute(self, sequences: list[list[int]]) -> list[int]:
                raise RuntimeError("broken")

        with pytest.raises(RuntimeError, match="broken"):
            next(Engine(100).run(Broken(), [1, 2]))


class TestMemory:
    def test_a_batch_that_does_not_fit_is_halved(self, caplog: pytest.LogCaptureFixture) -> None:
        task, engine = Sums(capacity=12), Engine(40)
        with caplog.at_level(logging.WARNING):
            assert list(engine.run(task, [4] * 20)) == [(4, [4])] * 20
        assert engine.batch_tokens == 10
        assert max(map(sum, task.batches)) <= 12
        assert "no memory for 40 tokens at once; going on with 20" in caplog.text
        before = len(caplog.records)
        assert list(engine.run(task, [5] * 20)) == [(5, [5])] * 20
        assert len(caplog.records) == before, "it has learned"

    def test_a_sequence_that_does_not_fit_is_refused(self) -> None:
        with pytest.raises(BackendError) as caught:
            list(Engine(40).run(Sums(capacity=10), [3, 11, 3]))
        assert str(caught.value) == (
            "the device's memory cannot hold a sequence of 11 tokens; it must be shorter, or the device "
            "larger; lower `max_length`, or free memory"
        )


class Hidden(Task[list[int], Any, Any]):
    """The hidden states of token ids."""

    def __init__(self, runner: TorchRunner) -> None:
        self.runner = runner

    def prepare(self, inputs: list[list[int]], first: int) -> list[Prepared]:
        return [Prepared([ids]) for ids in inputs]

    def compute(self, sequences: list[list[int]]) -> list[Any]:
        hidden, layout = self.runner(sequences)
        return [part.numpy() for part in layout.split(hidden)]

    def finish(self, prepared: Prepared, outputs: list[Any]) -> Any:
        return outputs[0]


def spread(model: ModernBertModel) -> ModernBertModel:
    """Give a model random weights whose norms are not all one."""
    initialise(model, seed=1)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval()


@pytest.fixture(scope="module", params=["tiny", "base"])
def encoder(request: pytest.FixtureRequest) -> ModernBertModel:
    layers = 4 if request.param == "tiny" else 2
    ids = {"vocab_size": 512, "cls_token_id": 1, "sep_token_id": 2, "pad_token_id": 3}
    return spread(ModernBertModel(EncoderConfig.preset(request.param, num_hidden_layers=layers, **ids)))


@pytest.mark.parametrize("backend", ["fused", "portable"])
def test_deterministic_gives_the_same_bits_whatever_the_neighbours(
    backend: str, encoder: ModernBertModel
) -> None:
    model: Any = FusedEncoder(encoder) if backend == "fused" else encoder
    task = Hidden(TorchRunner(model, "fp32"))
    rng = np.random.default_rng(0)
    given = [rng.integers(4, 512, size).tolist() for size in (1, 2, 17, 64, 65, 130, 17)]
    alone = [next(Engine(1000).run(task, [ids])) for ids in given]
    for order in (range(7), range(6, -1, -1), rng.permutation(7).tolist()):
        for budget in (1, 10_000):
            found = list(Engine(budget, deterministic=True).run(task, [given[index] for index in order]))
            for index, hidden in zip(order, found, strict=True):
                assert np.array_equal(hidden, alone[index])


def test_without_it_results_are_the_same_up_to_rounding(encoder: ModernBertModel) -> None:
    task = Hidden(TorchRunner(encoder, "fp32"))
    given = [[5] * size for size in (1, 2, 17, 64, 65, 130)]
    alone = [next(Engine(1000).run(task, [ids])) for ids in given]
    for hidden, expected in zip(Engine(10_000).run(task, given), alone, strict=True):
        np.testing.assert_allclose(hidden, expected, atol=2e-5)
