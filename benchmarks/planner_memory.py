"""How near is the planner's memory to what a GPU counts, for base and large at 1,024 and 8,192 tokens?

Two steps of two micro-batches each, through the parts that a run is made of; of the second step, the most
bytes that torch had in use. What the planner says does not fit is left out.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from benchmarks.common import write
from modernbert import telemetry
from modernbert.data.masking import MaskedBatch
from modernbert.layout import SequenceLayout
from modernbert.model.config import EncoderConfig
from modernbert.model.heads import ModernBertForMaskedLM
from modernbert.model.init import initialise
from modernbert.runtime import choose_device, machine_facts
from modernbert.train.memory import OPTIMIZERS, StepSetup, largest_row, training_memory
from modernbert.train.optim import OptimizerSettings, build_optimizer
from modernbert.train.parallel import DistributionSettings, Spread
from modernbert.train.schedule import Phase

QUESTION = "bytes of a training step: planned, and counted by the GPU"
ROWS = {"base": (16_384, 98_304), "large": (16_384, 49_152)}
LENGTHS = (1024, 8192)
MASK_RATE = 0.3
TARGET = 0.1


@dataclass(frozen=True)
class Case:
    preset: str
    length: int
    row_tokens: int
    optimizer: str = "stable_adamw"
    recomputes_layers: bool = False

    @property
    def setup(self) -> StepSetup:
        return StepSetup(
            shape=EncoderConfig.preset(self.preset),
            optimizer=self.optimizer,
            recomputes_layers=self.recomputes_layers,
        )


def cases() -> Iterator[Case]:
    for preset, rows in ROWS.items():
        for length in LENGTHS:
            for row in rows:
                for again in (False, True):
                    yield Case(preset, length, row, recomputes_layers=again)
        for name in OPTIMIZERS:
            yield Case(preset, 1024, 8192, optimizer=name)


def row_of(case: Case, device: torch.device) -> MaskedBatch:
    """A full row, with as many masked tokens as the planner counts with."""
    generator = torch.Generator().manual_seed(case.row_tokens)
    ids = torch.randint(0, 50_000, (case.row_tokens,), generator=generator)
    masked = torch.randperm(case.row_tokens, generator=generator)[: math.ceil(case.row_tokens * MASK_RATE)]
    layout = SequenceLayout((case.length,) * (case.row_tokens // case.length))
    return MaskedBatch(ids, layout, masked.sort().values, ids[masked]).to(device)


def measure(case: Case, device: torch.device) -> int:
    """The most bytes in use during the second of two steps."""
    phase = Phase(
        name="one",
        tokens=10**9,
        sequence_length=case.length,
        batch_tokens=2 * case.row_tokens,
        learning_rate=1e-4,
        global_rope_theta=160_000.0,
        local_rope_theta=10_000.0,
    )
    model = ModernBertForMaskedLM(case.setup.shape, backend="varlen")
    initialise(model, seed=0)
    model.to(device).train()
    spread = Spread(
        model,
        device=device,
        precision="bf16",
        settings=DistributionSettings(activation_checkpointing=case.recomputes_layers),
    )
    optimizer = build_optimizer(model, OptimizerSettings(name=case.optimizer), phase)
    row = row_of(case, device)
    for _ in range(2):
        torch.cuda.reset_peak_memory_stats(device)
        for _ in range(2):
            loss, _ = spread.loss(row)
            spread.backward(loss / row.num_masked)
            del loss
        spread.squared_gradient_norm().item()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return torch.cuda.max_memory_allocated(device)


def main() -> None:
    device = choose_device()
    if device.type != "cuda":
        raise SystemExit("this benchmark needs a CUDA GPU: the planner plans for one")
    machine = machine_facts(device)
    memory = torch.cuda.get_device_properties(device).total_memory
    rows = []
    for case in cases():
        planned = training_memory(case.setup, row_tokens=case.row_tokens, mask_rate=MASK_RATE)
        if largest_row(case.setup, memory, mask_rate=MASK_RATE) < case.row_tokens:
            telemetry.note(f"left out, as it does not fit: {case}")
            continue
        before = torch.cuda.memory_allocated(device)
        counted = measure(case, device) - before
        gc.collect()
        torch.cuda.empty_cache()
        error = planned.peak / counted - 1
        rows.append(
            {
                "shape": case.preset,
                "length": case.length,
                "row": case.row_tokens,
                "layers": "recomputed" if case.recomputes_layers else "kept",
                "optimizer": case.optimizer,
                "planned_gb": planned.peak / 1e9,
                "counted_gb": counted / 1e9,
                "error": error,
                "verdict": "met" if abs(error) <= TARGET else "missed",
                "parts_gb": {name: round(value / 1e9, 3) for name, value in vars(planned).items()},
            }
        )
        telemetry.note(f"{case}: planned {planned.peak / 1e9:.2f}, counted {counted / 1e9:.2f} GB")
    write("planner_memory", QUESTION, rows, machine, target=TARGET, mask_rate=MASK_RATE)


if __name__ == "__main__":
    main()
