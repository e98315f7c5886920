"""A step is that of one big batch, with the settings of its phase; reports and evaluations are plain sums."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from modernbert.data.masking import MaskedBatch
from modernbert.errors import DivergenceError, InputError
from modernbert.layout import SequenceLayout, pack
from modernbert.model.config import EncoderConfig
from modernbert.model.heads import ModernBertForMaskedLM
from modernbert.model.init import initialise
from modernbert.train.feed import StepBatch
from modernbert.train.loop import StepReport, evaluate, train
from modernbert.train.optim import parameter_groups
from modernbert.train.schedule import Clock, Phase, Setting
from modernbert.train.stable_adamw import StableAdamW
from tests.train.phases import phase

CPU = torch.device("cpu")
VOCAB, MASK = 32, 31

PHASE = phase(tokens=10_000, sequence_length=16, learning_rate=0.5, weight_decay=0.0)


def build(dropout: float = 0.0) -> ModernBertForMaskedLM:
    config = EncoderConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=48,
        window=3,
        attn_out_dropout=dropout,
        pad_token_id=0,
    )
    model = ModernBertForMaskedLM(config)
    initialise(model, seed=1)
    return model


def mask_of(sequence: Sequence[int]) -> Tensor:
    """A third of the places, from one that depends on the length."""
    return torch.arange(len(sequence) % 3, len(sequence), 3)


def row(*sequences: Sequence[int]) -> MaskedBatch:
    """Pack sequences and mask a third of each, the same places whatever stands beside."""
    ids, layout = pack(sequences)
    places = torch.cat([start + mask_of(s) for start, s in zip(layout.starts, sequences)])
    return MaskedBatch(ids.index_fill(0, places, MASK), layout, places, ids[places])


def unmasked_row(*sequences: Sequence[int]) -> MaskedBatch:
    ids, layout = pack(sequences)
    nothing = torch.empty(0, dtype=torch.int64)
    return MaskedBatch(ids, layout, nothing, nothing)


def batch(*rows: MaskedBatch, step: int = 1, phase: Phase = PHASE, learning_rate: float = 0.5) -> StepBatch:
    num_tokens = sum(row.num_tokens for row in rows)
    return StepBatch(
        setting=Setting(0, phase, learning_rate, num_tokens),
        rows=rows,
        row_numbers=tuple(range(len(rows))),
        num_tokens=num_tokens,
        capacity=num_tokens,
        identity=f"phase `{phase.name}`, row {step}",
        clock=Clock(step=step),
        loader_state={},
    )


def sequences(count: int, seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(3, 17, (count,), generator=generator)
    return [torch.randint(0, MASK, (length,), generator=generator).tolist() for length in lengths.tolist()]


def descent(model: ModernBertForMaskedLM) -> torch.optim.SGD:
    """Plain descent: what a step takes from a weight is the gradient times the learning rate."""
    return torch.optim.SGD(parameter_groups(model, weight_decay=0.0), lr=1.0)


def steps(model: ModernBertForMaskedLM, *batches: StepBatch, **options: Any) -> list[StepReport]:
    return list(train(model, descent(model), batches, device=CPU, **options))


def plain_loss(model: ModernBertForMaskedLM, one: MaskedBatch) -> tuple[Tensor, float]:
    """Mean cross-entropy over the masked tokens and share guessed right, from all logits."""
    logits = model(one.input_ids, one.layout)[one.masked_positions]
    is_right = logits.argmax(dim=-1) == one.labels
    return functional.cross_entropy(logits, one.labels), is_right.double().mean().item()


class TestStep:
    def test_it_is_plain_descent_on_the_mean_over_all_masked_tokens(self) -> None:
        one, judge = row(*sequences(6)), build().double()
        loss, accuracy = plain_loss(judge, one)
        loss.backward()
        model = build().double()
        (report,) = steps(model, batch(one))
        assert report.loss == pytest.approx(loss.item(), rel=1e-6)
        assert report.accuracy == accuracy
        assert report.num_masked == one.num_masked
        for name, param in judge.named_parameters():
            assert param.grad is not None
            expected = param - 0.5 * param.grad
            torch.testing.assert_close(
                model.get_parameter(name), expected, rtol=0, atol=3e-6
            )  # logits are fp32

    @pytest.mark.parametrize("cuts", [(1,), (3, 4), (1, 2, 3, 4, 5)])
    def test_it_is_the_same_however_the_rows_are_cut(self, cuts: tuple[int, ...]) -> None:
        texts = sequences(6)
        parts = [texts[start:stop] for start, stop in zip((0, *cuts), (*cuts, 6))]
        whole, cut = build().double(), build().double()
        (expected,) = steps(whole, batch(row(*texts)))
        (report,) = steps(cut, batch(*(row(*part) for part in parts)))
        assert report.loss == pytest.approx(expected.loss, rel=1e-6)
        assert (report.accuracy, report.num_masked) == (expected.accuracy, expected.num_masked)
        for name, param in whole.named_parameters():
            torch.testing.assert_close(cut.get_parameter(name), param, rtol=0, atol=1e-7)

    def test_a_row_without_masks_has_no_part_in_it(self) -> None:
        model, judge = build().double(), build().double()
        (with_it,) = steps(model, batch(row(*sequences(3)), unmasked_row([1, 2, 3])))
        (without,) = steps(judge, batch(row(*sequences(3))))
        assert (with_it.loss, with_it.num_masked) == (without.loss, without.num_masked)
        for name, param in model.named_parameters():
            torch.testing.assert_close(param, judge.get_parameter(name), rtol=0, atol=1e-12)

    def test_a_step_without_any_mask_changes_nothing(self) -> None:
        model, judge = build(), build()
        (report,) = steps(model, batch(unmasked_row([1, 2, 3])))
        assert (report.loss, report.accuracy, report.num_masked) == (0.0, 0.0, 0)
        assert all(torch.equal(param, judge.get_parameter(name)) for name, param in model.named_parameters())

    def test_bf16_changes_the_products_not_the_weights(self) -> None:
        model, judge = build(), build()
        (rough,) = steps(model, batch(row(*sequences(6))), precision="bf16")
        (exact,) = steps(judge, batch(row(*sequences(6))), precision="fp32")
        assert {param.dtype for param in model.parameters()} == {torch.float32}
        assert rough.loss != exact.loss
        assert rough.loss == pytest.approx(exact.loss, rel=1e-2)

    def test_no_gradient_is_left(self) -> None:
        model = build()
        steps(model, batch(row(*sequences(2))))
        assert all(param.grad is None for param in model.parameters())

    def test_dropout_is_on_whatever_the_caller_did(self) -> None:
        losses = []
        for seed in (1, 1, 2):
            model = build(dropout=0.5).eval()
            torch.manual_seed(seed)
            losses.append(steps(model, batch(row(*sequences(6))))[0].loss)
        assert losses[0] == losses[1] != losses[2]


class TestPhases:
    TWO = replace(PHASE, name="two", learning_rate=0.25, weight_decay=0.125, global_rope_theta=160_000.0)

    def test_the_optimizer_has_the_values_of_the_phase(self) -> None:
        model = build()
        optimizer = StableAdamW(parameter_groups(model, weight_decay=0.9), lr=9.0)
        batches = [
            batch(row(*sequences(2)), phase=PHASE, learning_rate=0.1),
            batch(row(*sequences(2)), phase=PHASE, learning_rate=0.2),
            batch(row(*sequences(2)), phase=self.TWO, learning_rate=0.05),
        ]
        found = []
        for _ in train(model, optimizer, batches, device=CPU):
            values = [(g["name"], g["lr"], g["max_lr"], g["weight_decay"]) for g in optimizer.param_groups]
            found.append(values)
        assert found == [
            [("decay", 0.1, 0.5, 0.0), ("no_decay", 0.1, 0.5, 0.0)],
            [("decay", 0.2, 0.5, 0.0), ("no_decay", 0.2, 0.5, 0.0)],
            [("decay", 0.05, 0.25, 0.125), ("no_decay", 0.05, 0.25, 0.0)],
        ]

    def test_the_weights_move_at_the_steps_learning_rate(self) -> None:
        slow, fast, start = build(), build(), build()
        steps(slow, batch(row(*sequences(2)), learning_rate=1e-3))
        steps(fast, batch(row(*sequences(2)), learning_rate=2e-3))
        moved = [model.decoder.bias - start.decoder.bias for model in (slow, fast)]
        torch.testing.assert_close(moved[1], 2 * moved[0])

    def test_the_model_turns_by_the_bases_of_the_phase(self) -> None:
        model, judge = build(), build()
        for each in (model, judge):  # attention must be far from even, or its angles hardly matter
            for block in each.model.layers:
                block.attn.Wqkv.weight.data.mul_(30)
        one = row(list(range(16)), list(range(5, 20)))
        local = replace(PHASE, local_rope_theta=50.0)
        reports = steps(
            model,
            *(batch(one, phase=phase, learning_rate=1e-30) for phase in (PHASE, self.TWO, local, PHASE)),
        )
        losses = [report.loss for report in reports]
        assert losses[0] == losses[3]
        assert len(set(losses)) == 3
        judge.model.set_rope_thetas(global_rope_theta=160_000.0, local_rope_theta=1e4)
        assert losses[1] == pytest.approx(plain_loss(judge, one)[0].item(), abs=1e-5)
        assert (model.config.global_rope_theta, model.config.local_rope_theta) == (1e4, 1e4)


class TestReport:
    def test_it_is_of_the_weights_before_the_update(self) -> None:
        model = build()
        first, second = steps(model, *[batch(row(*sequences(4)))] * 2)
        loss, accuracy = plain_loss(build(), row(*sequences(4)))
        assert first.loss == pytest.approx(loss.item(), abs=1e-5)
        assert first.accuracy == accuracy
        assert second.loss < first.loss

    def test_the_batch_is_handed_on(self) -> None:
        batches = [batch(row(*sequences(2)), step=step) for step in (1, 2)]
        assert [report.batch for report in steps(build(), *batches)] == batches

    def test_a_step_is_taken_only_when_asked_for(self) -> None:
        model, judge, drawn = build(), build(), []

        def source() -> Iterator[StepBatch]:
            for step in (1, 2):
                drawn.append(step)
                yield batch(row(*sequences(2)), step=step)

        reports = train(model, descent(model), source(), device=CPU)
        assert drawn == []
        next(reports)
        assert drawn == [1]
        steps(judge, batch(row(*sequences(2))))
        assert all(torch.equal(param, judge.get_parameter(name)) for name, param in model.named_parameters())

    def test_time_is_waiting_and_work_but_not_what_the_caller_does(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        now = 0.0

        def pass_time(seconds: float) -> None:
            nonlocal now
            now += seconds

        def source() -> Iterator[StepBatch]:
            for seconds in (5, 1):
                pass_time(seconds)
                yield batch(row(*sequences(2)))

        monkeypatch.setattr(time, "perf_counter", lambda: now)
        model = build()
        model.register_forward_pre_hook(lambda *_: pass_time(0))
        model.model.register_forward_pre_hook(lambda *_: pass_time(2))
        times = []
        for report in train(model, descent(model), source(), device=CPU):
            times.append((report.seconds, report.wait_seconds))
            pass_time(100)
        assert times == [(7, 5), (3, 1)]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_and_says_where(value: float) -> None:
    model = build()

    def source() -> Iterator[StepBatch]:
        yield batch(row(*sequences(2)), step=6)
        with torch.no_grad():
            model.decoder.bias[3] = value
        yield batch(row(*sequences(2)), step=7)

    reports = train(model, descent(model), source(), device=CPU)
    assert next(reports).batch.clock.step == 6
    with pytest.raises(DivergenceError) as caught:
        next(reports)
    assert str(caught.value).startswith("step 7 is bad: its loss is ")
    assert str(caught.value).endswith("; both must be finite; the batch is phase `one`, row 7")
    assert next(reports, None) is None


def test_a_gradient_that_is_not_finite_stops_though_the_loss_is() -> None:
    model = build()
    model.decoder.bias.register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(
        DivergenceError, match=r"step 1 is bad: its loss is \d.*gradient's norm (inf|nan); both must"
    ):
        next(train(model, descent(model), [batch(row(*sequences(2)), step=1)], device=CPU))


def test_it_learns_what_can_be_foretold() -> None:
    """Each token is the one before plus one: the neighbours of a mask tell it."""
    model, phase = build(), replace(PHASE, learning_rate=0.005)
    optimizer = StableAdamW(parameter_groups(model, weight_decay=1e-5), lr=0.005)
    generator = torch.Generator().manual_seed(1)

    def text() -> list[int]:
        first = int(torch.randint(0, MASK, (), generator=generator))
        return [(first + i) % MASK for i in range(16)]

    def source() -> Iterator[StepBatch]:
        for step in range(100):
            yield batch(row(*(text() for _ in range(32))), step=step, phase=phase, learning_rate=0.005)

    reports = list(train(model, optimizer, source(), device=CPU))
    assert reports[0].loss == pytest.approx(math.log(VOCAB), abs=0.2)
    assert reports[-1].loss < 0.4 * math.log(VOCAB)
    assert reports[-1].accuracy > 0.7
    held_out = evaluate(model, [row(*(text() for _ in range(32)))], device=CPU)
    assert held_out.accuracy > 0.7 > 5 * held_out.commonest_accuracy


class TestEvaluate:
    def test_it_is_the_plain_mean_over_all_masked_tokens(self) -> None:
        model, texts = build(), sequences(7)
        expected, accuracy = plain_loss(model, row(*texts))
        for parts in ([texts], [texts[:1], texts[1:]], [texts[:2], texts[2:6], texts[6:]]):
            found = evaluate(model, [row(*part) for part in parts], device=CPU)
            assert found.loss == pytest.approx(expected.item(), rel=1e-5)
            assert found.accuracy == accuracy
            assert found.num_masked == sum(len(mask_of(text)) for text in texts)

    def test_the_baseline_is_the_commonest_masked_token_of_the_whole_set(self) -> None:
        def labelled(*labels: int) -> MaskedBatch:
            ids, places = torch.tensor([1, 2, 3, 4]), torch.arange(len(labels))
            return MaskedBatch(ids, SequenceLayout.of([4]), places, torch.tensor(labels, dtype=torch.int64))

        batches = [labelled(5, 5, 7), labelled(7, 7), labelled()]
        assert evaluate(build(), batches, device=CPU).commonest_accuracy == 3 / 5
        assert evaluate(build(), batches[:1], device=CPU).commonest_accuracy == 2 / 3

    @pytest.mark.parametrize("is_training", [True, False])
    def test_it_repeats_and_leaves_no_trace(self, is_training: bool) -> None:
        model = build(dropout=0.5).train(is_training)
        weights, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
        batches = [row(*sequences(3)), row(*sequences(4, seed=1))]
        first, second = (evaluate(model, batches, device=CPU) for _ in range(2))
        assert first == second
        assert model.training is is_training
        assert all(module.training is is_training for module in model.modules())
        assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
        assert all(param.grad is None for param in model.parameters())
        assert torch.equal(torch.get_rng_state(), random)

    def test_bf16_on_request(self) -> None:
        model, batches = build(), [row(*sequences(6))]
        rough, exact = (evaluate(model, batches, device=CPU, precision=p) for p in ("bf16", "fp32"))
        assert rough.loss != exact.loss
        assert rough.loss == pytest.approx(exact.loss, rel=1e-2)

    @pytest.mark.parametrize("batches", [[], [unmasked_row([1, 2])]])
    def test_refuses_a_set_without_masks(self, batches: list[MaskedBatch]) -> None:
        with pytest.raises(InputError) as caught:
            evaluate(build(), batches, device=CPU)
        assert str(caught.value) == (
            f"the evaluation set of {len(batches)} batches has no masked token; it must have at least one; "
            "give it more text or a higher mask rate"
        )
