"""The formula beside the graph that autograd builds, on tensors that have shapes and no contents."""

from __future__ import annotations

import re
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from modernbert.data.masking import MaskedBatch
from modernbert.errors import ConfigError
from modernbert.layout import SequenceLayout
from modernbert.model.config import EncoderConfig
from modernbert.model.heads import ModernBertForMaskedLM
from modernbert.model.student import Student
from modernbert.ops import attention
from modernbert.train.distillation import Distillation, DistilledRow
from modernbert.train.memory import (
    UNUSABLE_SHARE,
    Memory,
    StepSetup,
    largest_row,
    layer_tensors,
    training_memory,
)
from modernbert.train.optim import parameter_groups
from modernbert.train.stable_adamw import StableAdamW

GB = 10**9


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors that are alive, and the most there were."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.known: dict[int, int] = {}

    def count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata not in self.known:
            self.known[storage._cdata] = storage.nbytes()
            self.live += storage.nbytes()
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self.forget, storage._cdata)

    def forget(self, key: int) -> None:
        self.live -= self.known.pop(key)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.logsumexp.default:  # inside, it makes a copy
            self.peak = max(self.peak, self.live + args[0].nbytes)
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self.count(leaf)
        return out


class Stepper:
    """Takes training steps of fake tensors. On the CPU, whose autocast treats the encoder as CUDA's does."""

    def __init__(self, shape: EncoderConfig, live: LiveBytes, *, row_tokens: int, mask_rate: float) -> None:
        self.shape = shape
        self.live = live
        self.model = self.new_model()
        self.optimizer = StableAdamW(parameter_groups(self.model, 1e-5), lr=1e-3)
        self.layout = SequenceLayout((1024,) * (row_tokens // 1024))
        self.layout.__dict__["offsets"] = torch.empty(row_tokens // 1024 + 1, dtype=torch.int32)
        self.layout.__dict__["positions"] = torch.empty(row_tokens, dtype=torch.int64)
        self.ids = torch.empty(row_tokens, dtype=torch.int64)
        self.masked = torch.empty(int(row_tokens * mask_rate), dtype=torch.int64)
        for tensor in (*self.model.parameters(), self.ids, self.masked, self.masked, self.layout.positions):
            live.count(tensor)

    def micro_batch(self) -> int:
        """Return the most bytes of forward and backward."""
        self.live.peak = 0
        with torch.autocast("cpu", torch.bfloat16):
            loss = self.loss()
        loss.backward()
        return self.live.peak

    def new_model(self) -> ModernBertForMaskedLM:
        return fake(lambda: ModernBertForMaskedLM(self.shape, backend="varlen"))

    def loss(self) -> Tensor:
        return self.model.loss(self.ids, self.layout, self.masked, self.masked)[0]

    def step(self) -> int:
        """Return the most bytes of the optimizer's step."""
        self.live.peak = 0
        self.optimizer.step()
        self.optimizer.zero_grad()
        return self.live.peak


class DistilledStepper(Stepper):
    """The same with a teacher."""

    def __init__(self, shape: EncoderConfig, teacher: EncoderConfig, live: LiveBytes, **row: Any) -> None:
        model = fake(lambda: ModernBertForMaskedLM(teacher, backend="varlen"), torch.bfloat16)
        model.eval().requires_grad_(False)
        self.lessons = Distillation(
            teacher=model, weight=0.5, temperature=2.0, hidden_weight=row.pop("hidden")
        )
        super().__init__(shape, live, **row)
        for tensor in model.parameters():
            live.count(tensor)

    def new_model(self) -> ModernBertForMaskedLM:
        return fake(lambda: Student(self.shape, bridge_dim=self.lessons.bridge_dim, backend="varlen"))

    def loss(self) -> Tensor:
        row = MaskedBatch(self.ids, self.layout, self.masked, self.masked)
        return DistilledRow(row, self.lessons, token_share=0.3).loss(self.model)[0]


Model = TypeVar("Model", bound=ModernBertForMaskedLM)


def fake(build: Callable[[], Model], dtype: torch.dtype = torch.float32) -> Model:
    with torch.device("meta"):
        model = build()
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                empty = torch.empty(parameter.shape, device="cpu", dtype=dtype)
                module._parameters[name] = torch.nn.Parameter(empty)
    model.tie_weights()
    return model


@pytest.fixture
def live(monkeypatch: pytest.MonkeyPatch) -> Iterator[LiveBytes]:
    monkeypatch.setattr(attention, "choose", lambda *_: "varlen")
    with FakeTensorMode(allow_non_fake_inputs=True), LiveBytes() as counter:
        yield counter


# Without dropout, whose mask is a bf16 tensor on a CPU and one of bytes on a GPU.
SHAPES = {
    "17m": EncoderConfig.preset("17m", attn_out_dropout=0.0),
    "wide": EncoderConfig.preset("1b", num_hidden_layers=4, attn_out_dropout=0.0),
}

ROWS = [("17m", 65_536, 0.3), ("17m", 65_536, 0.05), ("wide", 32_768, 0.3)]


@pytest.mark.parametrize(("name", "row_tokens", "mask_rate"), ROWS)
def test_the_peak_is_that_of_a_step(name: str, row_tokens: int, mask_rate: float, live: LiveBytes) -> None:
    stepper = Stepper(SHAPES[name], live, row_tokens=row_tokens, mask_rate=mask_rate)
    stepper.micro_batch()
    stepper.step()
    stepper.micro_batch()
    peak = stepper.micro_batch()
    assert stepper.step() < peak
    found = training_memory(StepSetup(shape=SHAPES[name]), row_tokens=row_tokens, mask_rate=mask_rate)
    assert found.peak == pytest.approx(peak, rel=0.01)


@pytest.mark.parametrize("hidden", [0.0, 0.5])
@pytest.mark.parametrize(("name", "row_tokens"), [("17m", 65_536), ("wide", 32_768)])
def test_the_peak_with_a_teacher_is_that_of_a_step(
    name: str, row_tokens: int, hidden: float, live: LiveBytes
) -> None:
    shape, teacher = SHAPES[name], SHAPES["wide"]
    row = {"row_tokens": row_tokens, "mask_rate": 0.3}
    stepper = DistilledStepper(shape, teacher, live, hidden=hidden, **row)
    stepper.micro_batch()
    stepper.step()
    stepper.micro_batch()
    peak = stepper.micro_batch()
    setup = StepSetup(shape=shape, teacher=teacher, learns_hidden=hidden > 0)
    assert training_memory(setup, **row).peak == pytest.approx(peak, rel=0.015)


@pytest.mark.parametrize("row_tokens", [16_384, 65_536])
def test_the_peak_when_recomputing_is_that_of_a_step(row_tokens: int, live: LiveBytes) -> None:
    shape = SHAPES["wide"]
    stepper = Stepper(shape, live, row_tokens=row_tokens, mask_rate=0.3)
    stepper.model.model.recomputes_layers = True
    stepper.micro_batch()
    stepper.step()
    stepper.micro_batch()
    peak = stepper.micro_batch()
    found = training_memory(
        StepSetup(shape=shape, recomputes_layers=True), row_tokens=row_tokens, mask_rate=0.3
    )
    assert found.peak == pytest.approx(peak, rel=0.01)


def test_all_that_a_step_keeps_of_a_layer_is_named(live: LiveBytes) -> None:
    """One layer more is that much more, but for its weights."""
    kept = []
    for num_layers in (1, 2):
        shape = EncoderConfig.preset("17m", num_hidden_layers=num_layers, attn_out_dropout=0.0)
        stepper = Stepper(shape, live, row_tokens=8192, mask_rate=0.3)
        before = live.live
        with torch.autocast("cpu", torch.bfloat16):
            loss = stepper.model.loss(stepper.ids, stepper.layout, stepper.masked, stepper.masked)
        kept.append(live.live - before)
        del loss, stepper
    matrices = 4 * 256 * 256 + 3 * 256 * 384
    tensors = layer_tensors(shape)
    assert kept[1] - kept[0] == pytest.approx(2 * matrices + 8192 * sum(tensors.values()), rel=1e-3)
    assert tensors["mask of the dropout"] == 0
    assert layer_tensors(EncoderConfig())["mask of the dropout"] == 768


BASE = StepSetup(shape=EncoderConfig())


def memory_of(setup: StepSetup, row_tokens: int) -> Memory:
    return training_memory(setup, row_tokens=row_tokens, mask_rate=0.3)


def longest(setup: StepSetup, memory_bytes: float, multiple: int = 1024) -> int:
    return largest_row(setup, memory_bytes, mask_rate=0.3, multiple=multiple)


@pytest.mark.parametrize(
    ("optimizer", "numbers"),
    [("stable_adamw", 2 * 149_655_232), ("adamw", 2 * 149_655_232), ("muon", 149_655_232 + 38_768_320)],
)
def test_what_an_optimizer_holds(optimizer: str, numbers: int) -> None:
    """Two means of each parameter; Muon has one of the hidden matrices: 110,886,912 numbers of base's."""
    found = memory_of(replace(BASE, optimizer=optimizer), 1024)
    assert found.optimizer == 4 * numbers
    assert (found.weights, found.gradients) == (4 * 149_655_232, 4 * 149_655_232)


def test_shards_take_their_part_of_weights_and_optimizer() -> None:
    whole = memory_of(BASE, 8192)
    assert memory_of(replace(BASE, num_shards=8), 8192) == whole  # ddp has none
    for strategy in ("fsdp", "hybrid"):
        found = memory_of(replace(BASE, strategy=strategy, num_shards=8), 8192)
        assert found.optimizer == whole.optimizer // 8
        assert found.weights == 4 * (149_655_232 // 8 + (50_368 + 768) * 768)
        assert found.copies == 2 * 22 * (4 * 768 * 768 + 3 * 768 * 1152)
        assert (found.gradients, found.activations) == (whole.gradients, whole.activations)
        alone = memory_of(replace(BASE, strategy=strategy, num_shards=1), 8192)
        assert alone == whole


@pytest.mark.parametrize("recomputes_layers", [False, True])
def test_the_largest_row_just_fits(recomputes_layers: bool) -> None:
    setup = replace(BASE, recomputes_layers=recomputes_layers)
    usable = 80 * GB * (1 - UNUSABLE_SHARE)
    row = longest(setup, 80 * GB)
    assert row % 1024 == 0
    assert memory_of(setup, row).peak <= usable < memory_of(setup, row + 1024).peak
    assert longest(setup, 80 * GB, multiple=8192) == row // 8192 * 8192
    assert longest(setup, GB) == 0


def test_the_published_rows_fit_where_they_ran() -> None:
    """On 80 GB: base's of 98,304 tokens; large's of 57,344 come to 84 GB here, those of 49,152 fit."""
    large = StepSetup(shape=EncoderConfig.preset("large"))
    assert 98_304 <= longest(BASE, 80 * GB) < 131_072
    assert 49_152 <= longest(large, 80 * GB) < 57_344
    assert longest(replace(large, recomputes_layers=True), 80 * GB) > 300_000


def test_an_optimizer_that_is_not_known_is_refused() -> None:
    with pytest.raises(ConfigError, match=re.escape("`optimizer` is 'adam'; did you mean `adamw`?")):
        StepSetup(shape=EncoderConfig(), optimizer="adam")
