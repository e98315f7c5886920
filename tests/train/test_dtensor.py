"""The optimizers over parameters that are split over two processes, against the same in one process."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed, multiprocessing, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from modernbert.train.dtensor import gather, is_split, local, part_of, whole_norms
from modernbert.train.optim import OptimizerSettings, build_optimizer, clip_gradients
from modernbert.train.schedule import Phase

PHASE = Phase(
    name="only",
    tokens=100,
    sequence_length=8,
    batch_tokens=10,
    learning_rate=0.03,
    weight_decay=0.01,
    mask_rate=0.3,
    global_rope_theta=10_000,
    local_rope_theta=10_000,
)
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


def learn(settings: OptimizerSettings, model: nn.Module) -> dict[str, Tensor]:
    """Take some steps, some of them with a gradient that bursts; return whole weights."""
    optimizer = build_optimizer(model, settings, PHASE)
    for step in range(6):
        ids = torch.randint(7, (20,), generator=torch.Generator().manual_seed(step))
        (model(ids) * (100.0 if step == 4 else 1.0)).backward()
        grads = {name: gather(local(param.grad), param) for name, param in model.named_parameters()}
        norm = torch.nn.utils.get_total_norm(grads.values()).item()
        clip_gradients(optimizer, norm)
        optimizer.step()
        optimizer.zero_grad()
    for state in optimizer.state.values():
        assert all(
            is_split(each) == is_split(model.out.weight) for each in state.values() if each_is_large(each)
        )
    return {name: gather(local(param), param).detach() for name, param in model.named_parameters()}


def each_is_large(value: object) -> bool:
    return isinstance(value, Tensor) and value.ndim > 0


def work(rank: int, folder: Path) -> None:
    """What each of two processes does: all is computed, and what rank 0 found is kept."""
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    found: dict[str, dict[str, Tensor]] = {}
    for shape in ((2,), (1, 2)):  # FSDP2, and hybrid sharding with one replica
        names = ("replicas", "shards")[-len(shape) :]
        for settings in OPTIMIZERS:
            model = Small()
            fully_shard(model, mesh=init_device_mesh("cpu", shape, mesh_dim_names=names))
            found[f"{settings.name} {len(shape)}"] = learn(settings, model)
            assert is_split(model.out.weight)
    whole = torch.arange(14.0).view(7, 2)
    like = nn.Linear(2, 7, bias=False)
    fully_shard(like)
    part = part_of(whole, like.weight)
    assert part.shape[0] == (4, 3)[rank]
    assert torch.equal(gather(part, like.weight), whole)
    norms = whole_norms([part.norm(), torch.tensor(5.0)], [like.weight, whole])
    found["norms"] = {"split": norms[0], "whole": norms[1]}
    if rank == 0:
        torch.save(found, folder / "found.pt")
    distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_learn_what_one_does(tmp_path: Path) -> None:
    multiprocessing.spawn(work, (tmp_path,), nprocs=2)
    found = torch.load(tmp_path / "found.pt", weights_only=True)
    for settings in OPTIMIZERS:
        expected = learn(settings, Small())
        for key in ("1", "2"):
            for name, tensor in found[f"{settings.name} {key}"].items():
                torch.testing.assert_close(tensor, expected[name], rtol=1e-5, atol=1e-5)
    assert found["norms"]["split"].item() == pytest.approx(torch.arange(14.0).norm().item())
    assert found["norms"]["whole"].item() == 5.0


def test_without_ranks_everything_is_whole() -> None:
    tensor = torch.ones(3)
    assert not is_split(tensor)
    assert local(tensor) is tensor
    assert gather(tensor, tensor) is tensor
    assert part_of(tensor, tensor) is tensor
    assert whole_norms([tensor[0]], [tensor])[0] == 1.0
