"""The optimizers, and what they save, over parameters split over two processes, against one process."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, multiprocessing, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard

from modernbert import files
from modernbert.train.dtensor import gather, is_split, local, placed_like, whole_norms
from modernbert.train.optim import OptimizerSettings, build_optimizer, clip_gradients
from modernbert.train.parts import NOTE, begin_writing, finish_writing, read_parts
from modernbert.train.ranks import ALONE, Ranks
from tests.train.phases import phase

PHASE = phase(learning_rate=0.03, weight_decay=0.01)
OPTIMIZERS = (
    OptimizerSettings(),
    OptimizerSettings(name="adamw", clip_norm=2.0),
    OptimizerSettings(name="muon"),
)


class Small(nn.Module):
    """Hidden matrices, one fused, an embedding, vectors: some do not divide by two, one has a single row."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.ModuleDict({"Wqkv": nn.Linear(4, 9, bias=False), "Wo": nn.Linear(3, 5, bias=False)})
        self.embedding = nn.Embedding(7, 4)
        self.out = nn.Linear(5, 1)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for param in self.parameters():
                param.copy_(torch.randn(param.shape, generator=generator))

    def forward(self, ids: Tensor) -> Tensor:
        q, k, v = self.attn["Wqkv"](self.embedding(ids)).chunk(3, -1)
        scores: Tensor = self.out(torch.tanh(self.attn["Wo"](q * k + v)))
        return scores.square().mean()


Learner = tuple[nn.Module, torch.optim.Optimizer]


def learner(settings: OptimizerSettings, mesh: DeviceMesh | None = None) -> Learner:
    model = Small()
    if mesh is not None:
        fully_shard(model, mesh=mesh)
    return model, build_optimizer(model, settings, PHASE)


def learn(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    """Take some steps, of which one has a gradient that bursts."""
    for step in steps:
        ids = torch.randint(7, (20,), generator=torch.Generator().manual_seed(step))
        (model(ids) * (100.0 if step == 4 else 1.0)).backward()
        grads = {name: gather(local(param.grad), param) for name, param in model.named_parameters()}
        norm = torch.nn.utils.get_total_norm(grads.values()).item()
        clip_gradients(optimizer, norm)
        optimizer.step()
        optimizer.zero_grad()


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: gather(local(param), param).detach() for name, param in model.named_parameters()}


def go_on(found: dict[str, Tensor], parts: Path, ranks: Ranks, model: nn.Module, optimizer: Any) -> None:
    """Take the weights and the optimizer's parts of half way, and the other steps."""
    for name, param in model.named_parameters():
        local(param).detach().copy_(local(placed_like(found[name], param)))
    read_parts(parts, model, optimizer, ranks).apply(model, optimizer)
    learn(model, optimizer, range(3, 6))


def work(rank: int, folder: Path) -> None:
    """What each of two processes does: all is computed, and what rank 0 found is kept."""
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2, timeout=timedelta(seconds=600)
    )
    control, saving = distributed.new_group(), distributed.new_group()
    ranks = Ranks(rank, 2, 2, control, saving)
    found: dict[str, dict[str, Tensor]] = {}
    for shape in ((2,), (1, 2)):  # FSDP2, and hybrid sharding with one replica
        mesh = init_device_mesh("cpu", shape, mesh_dim_names=("replicas", "shards")[-len(shape) :])
        for settings in OPTIMIZERS:
            name = f"{settings.name} {len(shape)}"
            model, optimizer = learner(settings, mesh)
            learn(model, optimizer, range(3))
            assert all(is_split(param) for param in model.parameters())
            for state in optimizer.state.values():
                assert all(
                    is_split(each) for each in state.values() if isinstance(each, Tensor) and each.ndim
                )
            found[f"{name} half"] = weights(model)
            written, note = begin_writing(folder / name, model, optimizer, ranks)
            learn(model, optimizer, range(3, 6))
            found[f"{name} straight"] = weights(model)
            finish_writing(written)
            if ranks.is_first:
                files.write_json(folder / name / NOTE, note)
            ranks.meet()
            model, optimizer = learner(settings, mesh)
            go_on(found[f"{name} half"], folder / name, ranks, model, optimizer)
            found[f"{name} resumed"] = weights(model)
    whole = torch.arange(14.0).view(7, 2)
    like = nn.Linear(2, 7, bias=False)
    fully_shard(like, mesh=init_device_mesh("cpu", (2,)))
    part = local(placed_like(whole, like.weight))
    assert part.shape[0] == (4, 3)[rank]
    assert torch.equal(gather(part, like.weight), whole)
    norms = whole_norms([part.norm(), torch.tensor(5.0)], [like.weight, whole])
    found["norms"] = {"split": norms[0], "whole": norms[1]}
    if rank == 0:
        torch.save(found, folder / "found.pt")
    distributed.destroy_process_group()
    os._exit(0)  # see `process.leave`


@pytest.mark.slow
def test_two_processes_learn_what_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if they stop half way and go on; and one process goes on from what two have saved."""
    with monkeypatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", "")  # beside a GPU, FSDP2 of torch 2.11 crashes on the CPU
        multiprocessing.spawn(work, (tmp_path,), nprocs=2)
    found = torch.load(tmp_path / "found.pt", weights_only=True)
    for settings in OPTIMIZERS:
        model, optimizer = learner(settings)
        learn(model, optimizer, range(6))
        for number in (1, 2):
            name = f"{settings.name} {number}"
            alone, other = learner(settings)
            go_on(found[f"{name} half"], tmp_path / name, ALONE, alone, other)
            for key, tensor in weights(model).items():
                for one in (
                    found[f"{name} straight"][key],
                    found[f"{name} resumed"][key],
                    weights(alone)[key],
                ):
                    torch.testing.assert_close(one, tensor, rtol=1e-5, atol=1e-5)
                assert torch.equal(found[f"{name} straight"][key], found[f"{name} resumed"][key])
    assert found["norms"]["split"].item() == pytest.approx(torch.arange(14.0).norm().item())
    assert found["norms"]["whole"].item() == 5.0


def test_without_ranks_everything_is_whole() -> None:
    tensor = torch.ones(3)
    assert not is_split(tensor)
    assert local(tensor) is tensor
    assert gather(tensor, tensor) is tensor
    assert placed_like(tensor, tensor) is tensor
    assert whole_norms([tensor[0]], [tensor])[0] == 1.0
