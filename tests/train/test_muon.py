from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from modernbert.errors import ConfigError
from modernbert.train import muon
from modernbert.train.muon import Muon

SHAPES = ((6, 10), (10, 6), (8, 8), (12, 4), (8, 8))
"""The fourth holds three matrices of 4 × 4, the last two of 4 × 8."""
COUNTS = [1, 1, 1, 3, 2]


def parameters(shapes: tuple[tuple[int, ...], ...] = SHAPES) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(1)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def give_gradients(params: list[nn.Parameter], step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for param in params:
        param.grad = torch.randn(param.shape, generator=generator)


def matrices(params: list[nn.Parameter], counts: list[int] | None = None) -> list[dict[str, Any]]:
    return [{"params": params, "num_matrices": counts or COUNTS}]


def plain_direction(update: Tensor) -> Tensor:
    """One matrix, as published: five steps of the quintic, then entries of root mean square 0.2."""
    x = update.mT if update.shape[0] > update.shape[1] else update
    x = x / x.norm()
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    x = x.mT if update.shape[0] > update.shape[1] else x
    return 0.2 * max(update.shape) ** 0.5 * x


def test_each_matrix_of_a_weight_is_orthogonalised_by_itself() -> None:
    params = parameters()
    plain = [param.detach().clone() for param in params]
    means = [torch.zeros_like(param) for param in params]
    optimizer = Muon(matrices(params), lr=0.1, momentum=0.9, weight_decay=0.05)
    for step in range(4):
        give_gradients(params, step)
        optimizer.step()
        for index, (weight, param) in enumerate(zip(plain, params, strict=True)):
            assert param.grad is not None
            means[index] = 0.9 * means[index] + 0.1 * param.grad
            ahead = 0.9 * means[index] + 0.1 * param.grad
            moved = torch.cat([plain_direction(each) for each in ahead.chunk(COUNTS[index])])
            plain[index] = weight * (1 - 0.1 * 0.05) - 0.1 * moved
    for param, expected in zip(params, plain, strict=True):
        torch.testing.assert_close(param.detach(), expected, rtol=1e-4, atol=1e-5)


def test_it_agrees_with_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(muon, "_dtype", lambda tensor: torch.bfloat16)
    ours, theirs = parameters(), parameters()
    optimizer = Muon(matrices(ours, [1] * 5), lr=0.1, weight_decay=0.05)
    peer = torch.optim.Muon(theirs, lr=0.1, weight_decay=0.05, adjust_lr_fn="match_rms_adamw")
    for step in range(4):
        give_gradients(ours, step)
        give_gradients(theirs, step)
        optimizer.step()
        peer.step()
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=4e-3)  # bf16: 4 steps of about 0.02


def test_a_step_is_of_the_size_of_adamws_whatever_the_gradients_size() -> None:
    for scale in (1e-4, 1e4):
        params = parameters(((64, 64), (192, 64), (48, 96)))
        before = [param.detach().clone() for param in params]
        optimizer = Muon(matrices(params, [1, 3, 1]), lr=0.01)
        give_gradients(params, 0)
        for param in params:
            assert param.grad is not None
            param.grad *= scale
        optimizer.step()
        for param, old in zip(params, before, strict=True):
            size = (param.detach() - old).square().mean().sqrt().item()
            assert size == pytest.approx(0.01 * 0.2, rel=0.25)


def test_many_matrices_go_in_several_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = [torch.randn(4, 6) for _ in range(5)]
    expected = muon._orthogonal(weights, [1] * 5)
    monkeypatch.setattr(muon, "_NUMBERS_AT_ONCE", 50)
    for found, whole in zip(muon._orthogonal(weights, [1] * 5), expected, strict=True):
        torch.testing.assert_close(found, whole)


def test_everything_else_is_left_to_adamw() -> None:
    shapes = ((5, 7), (7,), ())
    ours, theirs = parameters(shapes), parameters(shapes)
    settings = {"betas": (0.8, 0.95), "eps": 1e-7, "weight_decay": 0.1}
    optimizer = Muon([{"params": ours}], lr=0.03, **settings)
    peer = torch.optim.AdamW(theirs, lr=0.03, foreach=True, **settings)
    for step in range(5):
        give_gradients(ours, step)
        give_gradients(theirs, step)
        optimizer.step()
        peer.step()
    for mine, other in zip(ours, theirs, strict=True):
        assert torch.equal(mine, other)


def test_a_parameter_without_gradient_stays_and_a_zero_gradient_moves_nothing() -> None:
    params = parameters()
    before = [param.detach().clone() for param in params]
    optimizer = Muon(matrices(params), lr=0.1)
    optimizer.step()
    params[0].grad = torch.zeros(6, 10)
    optimizer.step()
    for param, old in zip(params, before, strict=True):
        assert torch.equal(param, old)
    assert list(optimizer.state) == [params[0]]


def test_a_step_never_waits_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, rest = parameters(), [nn.Parameter(torch.ones(3, 4, device="meta"))]
    hidden = [nn.Parameter(param.to("meta")) for param in hidden]
    optimizer = Muon([*matrices(hidden), {"params": rest}], lr=0.1)
    for _ in range(2):
        for param in [*hidden, *rest]:
            param.grad = torch.empty_like(param)
        optimizer.step()  # reading a number of the meta device would be an error
    assert optimizer.state[hidden[0]]["momentum_buffer"].is_meta


def test_state_dict_resumes_bit_for_bit() -> None:
    def run(params: list[nn.Parameter], optimizer: Muon, steps: range) -> None:
        for step in steps:
            give_gradients(params, step)
            optimizer.step()

    def build(params: list[nn.Parameter]) -> Muon:
        return Muon([{"params": params[:2], "num_matrices": [1, 2]}, {"params": params[2:]}], lr=0.02)

    whole = parameters()
    optimizer = build(whole)
    run(whole, optimizer, range(4))
    half = [nn.Parameter(param.detach().clone()) for param in whole]
    resumed = build(half)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    run(whole, optimizer, range(4, 8))
    run(half, resumed, range(4, 8))
    for param, expected in zip(half, whole, strict=True):
        assert torch.equal(param, expected)


def test_a_closure_gives_its_loss() -> None:
    param = nn.Parameter(torch.eye(3))
    optimizer = Muon([{"params": [param], "num_matrices": [1]}], lr=0.1)

    def closure() -> float:
        optimizer.zero_grad()
        loss = (param**2).sum()
        loss.backward()
        return loss.item()

    assert optimizer.step(closure) == 3.0
    assert param.square().sum() < 3.0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": 0.0}, "`lr` is 0.0; it must be above 0"),
        ({"lr": 0.1, "momentum": 1.0}, "`momentum` is 1.0; it must be at least 0 and below 1"),
        ({"lr": 0.1, "betas": (0.9, 1.0)}, "`betas` is (0.9, 1.0); it must be two numbers"),
        ({"lr": 0.1, "eps": 0.0}, "`eps` is 0.0; it must be above 0"),
        ({"lr": 0.1, "weight_decay": -1.0}, "`weight_decay` is -1.0; it must be at least 0"),
    ],
)
def test_a_setting_out_of_range_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Muon(matrices(parameters()), **settings)
    assert message in str(caught.value)


def test_what_is_no_matrix_is_refused() -> None:
    for shape, count in (((6,), 1), ((7, 4), 3)):
        with pytest.raises(ConfigError, match=r"a hidden matrix has shape .* it must hold . matrices"):
            Muon(matrices(parameters((shape,)), [count]), lr=0.1)


@pytest.mark.gpu
def test_it_runs_in_bf16_on_a_gpu() -> None:
    ours, theirs = (
        [nn.Parameter(param.cuda()) for param in parameters(((256, 128), (128, 512)))] for _ in "ab"
    )
    optimizer = Muon(matrices(ours, [1, 1]), lr=0.1)
    peer = torch.optim.Muon(theirs, lr=0.1, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
    for mine, other in zip(ours, theirs, strict=True):
        mine.grad = torch.randn_like(mine)
        other.grad = mine.grad.clone()
    optimizer.step()
    peer.step()
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=2e-3)
