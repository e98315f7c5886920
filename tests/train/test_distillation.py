"""A distilled step descends on the plain definition; lessons reach the student."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from modernbert.data.masking import MaskedBatch
from modernbert.layout import pack
from modernbert.model.config import EncoderConfig
from modernbert.model.heads import ModernBertForMaskedLM
from modernbert.model.init import initialise
from modernbert.model.student import Student
from modernbert.train.distillation import Distillation
from modernbert.train.feed import StepBatch, stand_in
from modernbert.train.gradients import StepFigures, step_gradients
from modernbert.train.loop import StepReport, evaluate, train
from modernbert.train.optim import parameter_groups
from modernbert.train.parallel import Spread
from modernbert.train.schedule import Clock, Setting
from modernbert.train.stable_adamw import StableAdamW
from tests.train.phases import phase

CPU = torch.device("cpu")
VOCAB, MASK = 32, 31
PHASE = phase(tokens=10_000, sequence_length=16, learning_rate=2e-2, weight_decay=0.0, mask_rate=0.25)


def build(dim: int, *, seed: int) -> ModernBertForMaskedLM:
    shape = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48, "window": 3}
    model = ModernBertForMaskedLM(
        EncoderConfig(vocab_size=VOCAB, hidden_size=dim, pad_token_id=0, attn_out_dropout=0.0, **shape)
    )
    initialise(model, seed=seed)
    return model


def row(seed: int, *lengths: int) -> MaskedBatch:
    """Sequences that say one token again and again; every fourth is masked."""
    said = torch.randint(0, MASK, (len(lengths),), generator=torch.Generator().manual_seed(seed))
    ids, layout = pack([torch.full((length,), token) for token, length in zip(said.tolist(), lengths)])
    places = torch.arange(1, len(ids), 4)
    return MaskedBatch(ids.index_fill(0, places, MASK), layout, places, ids[places])


def batch(rows: Sequence[MaskedBatch], *, step: int = 1, stand_ins: int = 0) -> StepBatch:
    num_tokens = sum(one.num_tokens for one in rows)
    return StepBatch(
        setting=Setting(0, PHASE, PHASE.learning_rate, num_tokens),
        rows=(*rows, *[stand_in()] * stand_ins),
        row_numbers=(*range(len(rows)), *[None] * stand_ins),
        num_tokens=num_tokens,
        capacity=num_tokens,
        identity=f"row {step}",
        clock=Clock(step=step),
        loader_state={},
    )


def teaching(teacher: ModernBertForMaskedLM, *, weight: float, hidden_weight: float = 0.0) -> Distillation:
    teacher = teacher.eval().requires_grad_(False)
    return Distillation(teacher=teacher, weight=weight, temperature=2.0, hidden_weight=hidden_weight)


def student(lessons: Distillation) -> Student:
    return Student.of(build(16, seed=1), bridge_dim=lessons.bridge_dim, seed=5)


def figures(model: Student, lessons: Distillation, one: StepBatch) -> StepFigures:
    return step_gradients(Spread(model, device=CPU), lessons.rows(one), [None] * len(one.rows))


def definition(model: Student, teacher: ModernBertForMaskedLM, one: MaskedBatch) -> dict[str, Tensor]:
    """Means of a row on whole logits."""
    hidden, taught = (it.model(one.input_ids, one.layout) for it in (model, teacher))
    logits, wished = (
        it.decoder(it.head(states[one.masked_positions]))
        for it, states in ((model, hidden), (teacher, taught))
    )
    assert model.bridge is not None
    crossed, aim = (functional.normalize(it, dim=-1) for it in (model.bridge(hidden), taught))
    return {
        "masked_loss": functional.cross_entropy(logits, one.labels),
        "divergence": 4
        * functional.kl_div(
            functional.log_softmax(logits / 2, -1), functional.softmax(wished / 2, -1), reduction="batchmean"
        ),
        "hidden_distance": PHASE.mask_rate * (crossed - aim).square().sum() / one.num_masked,
    }


def test_a_step_has_the_loss_and_gradients_of_the_definition() -> None:
    teacher, one = build(24, seed=2), row(0, 13, 9, 16)
    lessons = teaching(teacher, weight=0.7, hidden_weight=0.5)
    model = student(lessons)
    parts = definition(model, teacher, one)
    expected = 0.3 * parts["masked_loss"] + 0.7 * parts["divergence"] + 0.5 * parts["hidden_distance"]
    gradients = torch.autograd.grad(expected, list(model.parameters()))
    found = figures(model, lessons, batch([one]))
    assert found.loss == pytest.approx(expected.item(), abs=1e-5)
    assert found.parts == pytest.approx([part.item() for part in parts.values()], abs=1e-5)
    for (name, parameter), gradient in zip(model.named_parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-5, atol=1e-5, msg=name)
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_cutting_a_batch_into_rows_and_stand_ins_change_nothing() -> None:
    lessons = teaching(build(24, seed=2), weight=0.7, hidden_weight=0.5)
    whole, cut = student(lessons), student(lessons)
    rows = [row(0, 12, 8), row(3, 16)]
    ids, layout = pack([*rows[0].layout.split(rows[0].input_ids), rows[1].input_ids])
    one = MaskedBatch(
        ids,
        layout,
        torch.cat([rows[0].masked_positions, 20 + rows[1].masked_positions]),
        torch.cat([it.labels for it in rows]),
    )
    expected = figures(whole, lessons, batch([one]))
    found = figures(cut, lessons, batch(rows, stand_ins=1))
    assert found.loss == pytest.approx(expected.loss, abs=1e-5)
    assert found.parts == pytest.approx(expected.parts, abs=1e-5)
    for (name, parameter), other in zip(cut.named_parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, other.grad, rtol=1e-5, atol=1e-6, msg=name)


def learn(
    model: ModernBertForMaskedLM, num_steps: int, lessons: Distillation | None = None
) -> list[StepReport]:
    optimizer = StableAdamW(parameter_groups(model, 0.0), lr=PHASE.learning_rate)
    batches = [batch([row(step, *[8] * 32)], step=step) for step in range(1, num_steps + 1)]
    return list(train(model, optimizer, batches, device=CPU, distillation=lessons))


@torch.no_grad()
def divergence(model: ModernBertForMaskedLM, teacher: ModernBertForMaskedLM) -> float:
    """Of a model from a teacher on rows that nobody was trained on, in nats a masked token."""
    one = row(10_000, *[8] * 64)
    guesses, aim = (
        it.eval()(one.input_ids, one.layout, one.masked_positions).log_softmax(-1) for it in (model, teacher)
    )
    return functional.kl_div(guesses, aim, reduction="batchmean", log_target=True).item()


def test_a_student_comes_nearer_to_its_teacher_than_by_the_text_alone() -> None:
    teacher = build(32, seed=2)
    learn(teacher, 50)
    alone = build(16, seed=1)
    learn(alone, 25)
    lessons = teaching(teacher, weight=0.9, hidden_weight=1.0)
    taught = student(lessons)
    reports = learn(taught, 25, lessons)
    assert divergence(taught, teacher) < 0.6 * divergence(alone, teacher)
    assert reports[-1].parts["hidden_distance"] < 0.5 * reports[0].parts["hidden_distance"]


def test_a_report_says_what_the_loss_is_made_of() -> None:
    one = row(0, 13, 9)
    for hidden_weight, names in ((0.0, ["objective", "divergence"]), (0.5, None)):
        lessons = teaching(build(24, seed=2), weight=0.7, hidden_weight=hidden_weight)
        model = student(lessons)
        before = evaluate(model, [one], device=CPU)
        optimizer = torch.optim.SGD(parameter_groups(model, 0.0), lr=0.0)
        (report,) = train(model, optimizer, [batch([one])], device=CPU, distillation=lessons)
        assert list(report.parts) == (names or ["objective", "divergence", "hidden_distance"])
        assert report.loss == pytest.approx(before.loss, abs=1e-5)  # which is that of any run
        assert report.accuracy == before.accuracy
        assert report.parts["objective"] == pytest.approx(
            0.3 * report.loss
            + 0.7 * report.parts["divergence"]
            + hidden_weight * report.parts.get("hidden_distance", 0.0),
            abs=1e-5,
        )


def test_a_teacher_in_bf16_leaves_the_students_figures_in_fp32() -> None:
    exact = teaching(build(24, seed=2), weight=0.7, hidden_weight=0.5)
    rough = teaching(copy.deepcopy(exact.teacher).bfloat16(), weight=0.7, hidden_weight=0.5)
    one = batch([row(0, 13, 9)])
    found, expected = (figures(student(it), it, one) for it in (rough, exact))
    assert found.parts[0] == expected.parts[0]
    assert found.loss == pytest.approx(expected.loss, rel=0.02)
