from __future__ import annotations

import copy
import importlib.util
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from modernbert.errors import BackendError, ConfigError
from modernbert.train.optim import parameter_groups
from modernbert.train.stable_adamw import StableAdamW

SHAPES = ((5, 7), (7,), (), (3, 2, 4))


def plain_step(
    param: Tensor, grad: Tensor, state: dict[str, Any], *, lr: float, max_lr: float, decay: float
) -> float:
    """One step as published, in float64; returns what the learning rate was divided by."""
    beta1, beta2, eps = 0.9, 0.98, 1e-6
    age = state["age"] = state.get("age", 0) + 1
    hat1 = (beta1**age - beta1) / (beta1**age - 1)
    hat2 = (beta2**age - beta2) / (beta2**age - 1)
    state["m"] = hat1 * state.get("m", torch.zeros_like(param)) + (1 - hat1) * grad
    state["v"] = hat2 * state.get("v", torch.zeros_like(param)) + (1 - hat2) * grad**2
    clip = max(1.0, float((grad**2 / state["v"].clamp(min=eps**2)).mean().sqrt()))
    param.mul_(1 - lr / clip / max_lr * decay)
    param.sub_(lr / clip * state["m"] / (state["v"].sqrt() + eps))
    return clip


def gradients(step: int, shapes: tuple[tuple[int, ...], ...] = SHAPES) -> list[Tensor]:
    """Mostly small, with a burst now and then, so that some updates are clipped."""
    generator = torch.Generator().manual_seed(step)
    scale = 30.0 if step % 7 == 6 else 0.1
    return [scale * torch.randn(shape, generator=generator) for shape in shapes]


def parameters(dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(1)
    return [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in SHAPES]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
@pytest.mark.parametrize("decay", [0.0, 0.01])
def test_it_follows_the_published_formula(dtype: torch.dtype, tolerance: float, decay: float) -> None:
    params = parameters(dtype)
    plain = [param.detach().double().clone() for param in params]
    optimizer = StableAdamW(params, lr=0.02, weight_decay=decay, max_lr=0.05)
    states: list[dict[str, Any]] = [{} for _ in params]
    clips = []
    for step in range(40):
        lr = 0.02 * (1 + math.sin(step))
        optimizer.param_groups[0]["lr"] = lr
        for param, grad in zip(params, gradients(step), strict=True):
            param.grad = grad.to(dtype)
        optimizer.step()
        for index, grad in enumerate(gradients(step)):
            clips.append(
                plain_step(plain[index], grad.double(), states[index], lr=lr, max_lr=0.05, decay=decay)
            )
    assert max(clips) > 2
    assert 1.0 in clips
    for param, expected in zip(params, plain, strict=True):
        torch.testing.assert_close(param.detach().double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.filterwarnings("ignore:Parameter `foreach`:DeprecationWarning")
@pytest.mark.parametrize("foreach", [False, True])
def test_it_agrees_with_optimi(foreach: bool) -> None:
    optimi = pytest.importorskip("optimi", reason="a GPU machine without network may lack it")
    ours, theirs = parameters(torch.float64), parameters(torch.float64)
    optimizer = StableAdamW(ours, lr=0.02, weight_decay=9e-4)
    settings = {"betas": (0.9, 0.98), "eps": 1e-6, "decouple_lr": True, "triton": False, "kahan_sum": False}
    peer = optimi.StableAdamW(theirs, lr=0.02, weight_decay=9e-4, foreach=foreach, **settings)
    for step in range(20):
        for mine, other, grad in zip(ours, theirs, gradients(step), strict=True):
            mine.grad, other.grad = grad.double(), grad.double()
        optimizer.step()
        peer.step()
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-12)


def test_a_step_never_waits_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    params = parameters()
    optimizer = StableAdamW(params, lr=0.02)

    def refuse(*_: object) -> None:
        raise AssertionError("a tensor was read on the host")

    for _ in range(2):
        for param, grad in zip(params, gradients(6), strict=True):
            param.grad = grad
        with monkeypatch.context() as patch:
            for name in ("item", "tolist", "cpu", "numpy", "__float__", "__int__", "__bool__", "__index__"):
                patch.setattr(Tensor, name, refuse)
            optimizer.step()


def test_a_step_runs_where_there_is_nothing_to_read() -> None:
    params = [nn.Parameter(torch.empty(shape, device="meta")) for shape in SHAPES]
    optimizer = StableAdamW(params, lr=0.02)
    for param in params:
        param.grad = torch.empty_like(param)
    optimizer.step()
    assert optimizer.state[params[0]]["exp_avg"].is_meta


def test_gradients_are_left_as_they_were() -> None:
    params = parameters()
    optimizer = StableAdamW(params, lr=0.02)
    for param, grad in zip(params, gradients(6), strict=True):
        param.grad = grad
    optimizer.step()
    for param, grad in zip(params, gradients(6), strict=True):
        assert param.grad is not None
        assert torch.equal(param.grad, grad)


def test_state_dict_resumes_bit_for_bit() -> None:
    def run(params: list[nn.Parameter], optimizer: StableAdamW, steps: range) -> None:
        for step in steps:
            for param, grad in zip(params, gradients(step), strict=True):
                param.grad = grad
            optimizer.step()

    whole = parameters()
    optimizer = StableAdamW(whole, lr=0.02)
    run(whole, optimizer, range(9))
    half = [nn.Parameter(param.detach().clone()) for param in whole]
    resumed = StableAdamW(half, lr=0.5)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    run(whole, optimizer, range(9, 20))
    run(half, resumed, range(9, 20))
    for param, expected in zip(half, whole, strict=True):
        assert torch.equal(param, expected)
    assert resumed.param_groups[0]["lr"] == 0.02
    assert type(resumed.state[half[0]]["step"]) is int


def test_a_parameter_without_gradient_is_skipped_and_later_debiased_by_its_own_count() -> None:
    late, always = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    optimizer = StableAdamW([late, always], lr=0.1, weight_decay=0.0)
    for step in range(5):
        always.grad = torch.ones(3)
        late.grad = torch.ones(3) if step == 4 else None
        optimizer.step()
        if step < 4:
            assert torch.equal(late, torch.ones(3))
            assert late not in optimizer.state
    torch.testing.assert_close(late.detach(), torch.full((3,), 0.9))
    assert optimizer.state[late]["step"] == 1
    assert optimizer.state[always]["step"] == 5


def test_an_empty_tensor_and_an_empty_group_are_no_trouble() -> None:
    empty, one = nn.Parameter(torch.zeros(0, 4)), nn.Parameter(torch.ones(2))
    groups: list[dict[str, Any]] = [{"params": []}, {"params": [empty, one]}]
    optimizer = StableAdamW(groups, lr=0.1)
    empty.grad, one.grad = torch.zeros(0, 4), torch.ones(2)
    optimizer.step()
    assert one.isfinite().all()
    assert (one < 1).all()


def test_a_zero_gradient_moves_nothing() -> None:
    param = nn.Parameter(torch.ones(4))
    optimizer = StableAdamW([param], lr=0.1, weight_decay=0.0)
    param.grad = torch.zeros(4)
    optimizer.step()
    assert torch.equal(param, torch.ones(4))


def test_a_closure_gives_its_loss() -> None:
    param = nn.Parameter(torch.ones(2))
    optimizer = StableAdamW([param], lr=0.1)

    def closure() -> float:
        optimizer.zero_grad()
        loss = (param**2).sum()
        loss.backward()
        return loss.item()

    assert optimizer.step(closure) == 2.0
    assert (param < 1).all()


def test_max_lr_is_the_groups_first_learning_rate_unless_it_has_its_own() -> None:
    groups: list[dict[str, Any]] = [
        {"params": [nn.Parameter(torch.ones(2))]},
        {"params": [nn.Parameter(torch.ones(2))], "lr": 0.2},
        {"params": [nn.Parameter(torch.ones(2))], "max_lr": 0.7},
    ]
    optimizer = StableAdamW(groups, lr=0.1)
    assert [group["max_lr"] for group in optimizer.param_groups] == [0.1, 0.2, 0.7]


def test_a_sparse_gradient_is_refused_by_name() -> None:
    embedding = nn.Embedding(5, 3, sparse=True)
    optimizer = StableAdamW(parameter_groups(embedding, weight_decay=0.0), lr=0.1)
    embedding(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(ConfigError, match="gradient of parameter `weight` is sparse; it must be dense"):
        optimizer.step()


def test_a_parameter_of_half_precision_is_refused() -> None:
    param = nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
    with pytest.raises(
        ConfigError, match=r"parameter 0 of its group is torch\.bfloat16; it must be torch\.float32"
    ):
        StableAdamW([param], lr=0.1)


def test_fused_without_triton_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BackendError, match="the fused StableAdamW needs Triton, which is not installed"):
        StableAdamW([nn.Parameter(torch.ones(2))], lr=0.1, fused=True)


def test_fused_on_a_cpu_is_the_plain_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    weights = []
    for is_fused in (False, True):
        params = parameters()
        optimizer = StableAdamW(params, lr=0.02, fused=is_fused)
        for param, grad in zip(params, gradients(1), strict=True):
            param.grad = grad
        copy.deepcopy(optimizer).step()
        optimizer.step()
        weights.append(params)
    for one, other in zip(*weights, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": 0.0}, "`lr` is 0.0; it must be above 0"),
        ({"lr": 0.1, "max_lr": -1.0}, "`max_lr` is -1.0; it must be above 0"),
        ({"lr": 0.1, "betas": (0.9, 1.0)}, "`betas` is (0.9, 1.0); it must be two numbers"),
        ({"lr": 0.1, "eps": 0.0}, "`eps` is 0.0; it must be above 0"),
        ({"lr": 0.1, "weight_decay": 1.0}, "`weight_decay` is 1.0; it must be at least 0 and below 1"),
        ({"lr": math.nan}, "`lr` is nan"),
    ],
)
def test_a_setting_out_of_range_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        StableAdamW([nn.Parameter(torch.ones(2))], **settings)
    assert message in str(caught.value)
