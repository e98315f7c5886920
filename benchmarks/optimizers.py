"""What does one step of each optimizer cost, in time and in memory, beside the peers'?

python -m benchmarks.optimizers [--presets base,large] [--device cuda] [--repetitions 20] [--output FOLDER]
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from benchmarks import common
from modernbert import runtime
from modernbert.model.config import EncoderConfig
from modernbert.model.heads import ModernBertForMaskedLM
from modernbert.train.optim import OptimizerSettings, build_optimizer, parameter_groups
from modernbert.train.schedule import Phase

PHASE = Phase(
    name="only",
    tokens=1024,
    sequence_length=1024,
    batch_tokens=1024,
    learning_rate=8e-4,
    weight_decay=1e-5,
    mask_rate=0.3,
    global_rope_theta=10_000,
    local_rope_theta=10_000,
)


class _Several:
    """Optimizers that step together."""

    def __init__(self, *optimizers: Optimizer) -> None:
        self._optimizers = optimizers

    def step(self) -> None:
        for optimizer in self._optimizers:
            optimizer.step()


def torch_muon(model: nn.Module) -> _Several:
    """torch's Muon on the same matrices, fused weights as they are, and AdamW on the rest."""
    ours = build_optimizer(model, OptimizerSettings(name="muon"), PHASE)
    hidden, *rest = (group["params"] for group in ours.param_groups)
    return _Several(
        torch.optim.Muon(hidden, lr=8e-4, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW([param for group in rest for param in group], lr=8e-4),
    )


def optimi_stable(model: nn.Module) -> Optimizer:
    """The published recipe's other StableAdamW."""
    import optimi

    groups = [
        {"params": group["params"], "weight_decay": group["weight_decay"]}
        for group in parameter_groups(model, 1e-5)
    ]
    peer: Optimizer = optimi.StableAdamW(groups, lr=8e-4, decouple_lr=True, foreach=False, kahan_sum=False)
    return peer


def contenders() -> Mapping[str, Callable[[nn.Module], Any]]:
    """Ours by the name in a run file, and the peers that are installed."""
    ours: dict[str, Callable[[nn.Module], Any]] = {
        name: lambda model, name=name: build_optimizer(model, OptimizerSettings(name=name), PHASE)
        for name in ("stable_adamw", "adamw", "muon")
    }
    peers: dict[str, Callable[[nn.Module], Any]] = {"torch Muon": torch_muon}
    if importlib.util.find_spec("optimi"):
        peers["optimi StableAdamW"] = optimi_stable
    return {**ours, **peers}


def measure(preset: str, device: torch.device, repetitions: int) -> list[dict[str, Any]]:
    """Time the steps in turn over models of their own, with gradients that stay."""
    steps: dict[str, Callable[[], object]] = {}
    for name, build in contenders().items():
        with device:
            model = ModernBertForMaskedLM(EncoderConfig.preset(preset))
        for param in model.parameters():
            param.grad = torch.randn_like(param) * 1e-3
        steps[name] = build(model).step
    seconds = runtime.time_in_turn(steps, repetitions, device)
    return [
        {
            "preset": preset,
            "optimizer": name,
            "milliseconds": statistics.median(times) * 1e3,
            "fastest": min(times) * 1e3,
            "slowest": max(times) * 1e3,
            "extra_megabytes": _extra(steps[name], device),
        }
        for name, times in seconds.items()
    ]


def _extra(step: Callable[[], object], device: torch.device) -> float | None:
    """What a step takes for a moment beyond weights, gradients and state."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    step()
    torch.cuda.synchronize(device)
    return (torch.cuda.max_memory_allocated(device) - before) / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--presets", default="base,large")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--repetitions", type=int, default=20)
    parser.add_argument("--output", type=Path, help="another folder for the result")
    given = parser.parse_args()
    device = runtime.choose_device(given.device)
    machine = runtime.machine_facts(device)
    rows = [row for preset in given.presets.split(",") for row in measure(preset, device, given.repetitions)]
    question = str(__doc__).splitlines()[0]
    path = common.save("optimizers", question, rows, machine, folder=given.output)
    common.show(question, rows)
    common.telemetry.note(f"written to {path}")


if __name__ == "__main__":
    main()
