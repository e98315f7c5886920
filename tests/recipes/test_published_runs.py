"""The run files beside what is published: paper 2.2 and appendix A; Ettin, 2507.11412; mmBERT, 2509.06888."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from modernbert.model.config import EncoderConfig
from modernbert.model.heads import ModernBertForMaskedLM
from modernbert.recipes.settings import PretrainRun, read_run
from modernbert.train.optim import parameter_groups
from modernbert.train.schedule import Phase

RUNS = Path(__file__).parents[2] / "runs"
BILLION = 10**9
SIZES = ("17m", "32m", "68m", "150m", "400m", "1b")


def run_of(name: str) -> PretrainRun:
    return read_run(RUNS / f"{name}.yaml")


def phase_of(name: str, phase: str) -> Phase:
    return next(found for found in run_of(name).phases if found.name == phase)


def column(name: str, key: str) -> list[Any]:
    return [getattr(phase, key) for phase in run_of(name).phases]


@pytest.mark.parametrize(
    ("name", "phase", "steps"),
    [
        ("base", "extend", 52_981.9),
        ("base", "decay", 10_596.4),
        ("large", "extend", 49_541.5),
        ("large", "decay", 9_781.3),
    ],
)
def test_a_phase_ends_with_the_step_that_reaches_its_tokens(name: str, phase: str, steps: float) -> None:
    found = phase_of(name, phase)
    assert found.tokens / found.batch_tokens == pytest.approx(steps, abs=0.05)
    assert found.num_steps() == math.ceil(steps)


@pytest.mark.parametrize(
    ("name", "sequences", "borders", "steps_of_each", "steps_in_all"),
    [
        ("base", [768, 1536, 2304, 3072, 3840, 4608], [0, 3.33, 10, 20, 33.3, 50], 4_239, 374_900),
        (
            "large",
            [*range(448, 4481, 448), 4928],
            [0, 0.182, 0.545, 1.091, 1.818, 2.727, 3.818, 5.091, 6.545, 8.182, 10],
            396,
            184_100,
        ),
    ],
)
def test_batches_grow_where_published(
    name: str, sequences: list[int], borders: list[float], steps_of_each: int, steps_in_all: int
) -> None:
    found = phase_of(name, "pretrain")
    assert [size / 1024 for _, size in found.batch_sizes] == sequences
    assert [border / BILLION for border, _ in found.batch_sizes] == pytest.approx(borders, rel=2e-3)
    assert found.steps_of_sizes()[:-1] == pytest.approx([steps_of_each] * (len(sequences) - 1), abs=1)
    assert found.num_steps() == pytest.approx(steps_in_all, rel=1e-4)


def test_the_phases_of_base() -> None:
    assert [tokens / BILLION for tokens in column("base", "tokens")] == [1719, 250, 50]
    assert column("base", "sequence_length") == [1024, 8192, 8192]
    assert [p.batch_tokens / p.sequence_length for p in run_of("base").phases] == [4608, 576, 576]
    assert column("base", "learning_rate") == [8e-4, 3e-4, 3e-4]
    assert column("base", "warmup_tokens") == [3 * BILLION, 0, 0]
    assert column("base", "weight_decay") == [1e-5] * 3
    assert column("base", "global_rope_theta") == [10_000, 160_000, 160_000]
    assert column("base", "local_rope_theta") == [10_000] * 3
    assert column("base", "mask_rate") == [0.3] * 3
    assert column("base", "decay") == ["none", "none", "one_minus_sqrt"]


def test_the_phases_of_large() -> None:
    """Its restart is a row of its own: a tenth of both rates, for the last 800 B of 1,719."""
    assert column("large", "name") == ["pretrain", "restart", "extend", "decay"]
    assert [tokens / BILLION for tokens in column("large", "tokens")] == [919, 800, 250, 50]
    assert column("large", "sequence_length") == [1024, 1024, 8192, 8192]
    assert [p.batch_tokens / p.sequence_length for p in run_of("large").phases] == [4928, 4928, 616, 624]
    assert column("large", "learning_rate") == [5e-4, 5e-5, 5e-5, 5e-5]
    assert column("large", "warmup_tokens") == [2 * BILLION, 0, 0, 0]
    assert column("large", "weight_decay") == [1e-5, 1e-6, 1e-6, 1e-6]
    assert column("large", "global_rope_theta") == [10_000, 10_000, 160_000, 160_000]
    assert column("large", "local_rope_theta") == [10_000] * 4
    assert column("large", "mask_rate") == [0.3] * 4
    first, second = run_of("large").phases[:2]
    assert first.mixture == second.mixture
    start = run_of("large").start
    assert start is not None
    assert (start.model, start.how) == ("base/model", "tile")


@pytest.mark.parametrize(("name", "seed"), [("base", 17), ("large", 314)])
def test_what_else_is_published(name: str, seed: int) -> None:
    run = run_of(name)
    assert run.model == EncoderConfig.preset(name)
    assert (run.model.attn_out_dropout, run.model.initializer_range) == (0.1, 0.02)
    assert (run.optimizer.name, run.optimizer.betas, run.optimizer.eps) == ("stable_adamw", (0.9, 0.98), 1e-6)
    assert (run.seed, run.validation.mask_rate, run.data.overflow) == (seed, 0.15, "truncate")
    assert (run.masking.mask_share, run.masking.random_share) == (0.8, 0.1)
    assert not run.masking.protect_special
    assert run.checkpoint.average_best == (3 if name == "base" else 0)


@pytest.mark.parametrize(
    ("name", "phase", "tokens", "learning_rate"),
    [
        ("base", "pretrain", 0, 8e-14),
        ("base", "pretrain", 3 * BILLION, 8e-4),
        ("base", "pretrain", 1719 * BILLION, 8e-4),
        ("base", "extend", 0, 3e-4),
        ("base", "extend", 250 * BILLION, 3e-4),
        ("base", "decay", 0, 3e-4),
        ("base", "decay", 50 * BILLION, 3e-7),
        ("large", "pretrain", 2 * BILLION, 5e-4),
        ("large", "restart", 0, 5e-5),
        ("large", "decay", 50 * BILLION, 5e-8),
        ("ettin/17m", "extend", 0, 3e-3),
        ("ettin/17m", "extend", 250 * BILLION, 1.5e-3),
        ("ettin/17m", "decay", 0, 1.5e-3),
        ("ettin/17m", "decay", 50 * BILLION, 0.02 * 3e-3),
        ("successor/base", "extend", 250 * BILLION, 4e-4),
        ("successor/base", "decay", 50 * BILLION, 0.02 * 8e-4),
    ],
)
def test_the_learning_rate_at_the_borders(name: str, phase: str, tokens: int, learning_rate: float) -> None:
    assert phase_of(name, phase).learning_rate_after(tokens) == pytest.approx(learning_rate)


@pytest.mark.parametrize(
    ("size", "learning_rate", "weight_decay", "warmup", "batch_warmup", "parameters"),
    [
        ("17m", 3e-3, 3e-4, 4, 125, 16.9),
        ("32m", 3e-3, 3e-4, 4, 100, 32.1),
        ("68m", 3e-3, 3e-4, 3, 75, 68.5),
        ("150m", 8e-4, 1e-5, 3, 50, 149.7),
        ("400m", 5e-4, 1e-5, 2, 10, 395.9),
        ("1b", 5e-4, 5e-5, 2, 3, 1031.3),
    ],
)
def test_the_ladder_of_ettin(
    size: str,
    learning_rate: float,
    weight_decay: float,
    warmup: int,
    batch_warmup: int,
    parameters: float,
) -> None:
    run = run_of(f"ettin/{size}")
    first = run.phases[0]
    assert run.model.num_parameters(head=True) / 1e6 == pytest.approx(parameters, abs=0.051)
    assert [phase.learning_rate for phase in run.phases] == pytest.approx(
        [learning_rate, learning_rate, learning_rate / 2]
    )
    assert [phase.weight_decay for phase in run.phases] == [weight_decay] * 3
    assert (first.warmup_tokens, first.batch_warmup_tokens) == (warmup * BILLION, batch_warmup * BILLION)


@pytest.mark.parametrize("name", [*(f"ettin/{size}" for size in SIZES), "successor/base", "successor/small"])
def test_what_the_successors_have_in_common(name: str) -> None:
    assert [tokens / BILLION for tokens in column(name, "tokens")] == [1700, 250, 50]
    assert column(name, "global_rope_theta") == column(name, "local_rope_theta") == [10_000, 160_000, 160_000]
    assert column(name, "decay") == ["none", "one_minus_sqrt", "one_minus_sqrt"]
    assert column(name, "decay_floor")[1:] == [0.5, 0.04]
    is_ettin = name.startswith("ettin")
    assert column(name, "mask_rate") == ([0.3, 0.3, 0.15] if is_ettin else [0.3, 0.15, 0.05])
    assert column(name, "sequence_length") == ([1024, 7999, 7999] if is_ettin else [1024, 8192, 8192])
    assert column(name, "batch_tokens") == [4608 * 1024, 4608 * 8192, 4608 * 8192]
    assert run_of(name).seed == (21 if is_ettin else 17)
    for before, after in zip(run_of(name).phases[1:2], run_of(name).phases[2:], strict=True):
        ends = before.learning_rate_after(before.tokens)
        assert after.learning_rate_after(0) == pytest.approx(ends)  # no jump between them


def test_the_values_of_mmbert() -> None:
    for name, rates, decay, batch_warmup in (
        ("base", [8e-4, 8e-4, 4e-4], 8e-5, 60),
        ("small", [8e-4, 4e-4, 2e-4], 4e-5, 100),
    ):
        run = run_of(f"successor/{name}")
        assert [phase.learning_rate for phase in run.phases] == rates
        assert {phase.weight_decay for phase in run.phases} == {decay}
        assert run.phases[0].batch_warmup_tokens == batch_warmup * BILLION
        assert (run.optimizer.betas, run.optimizer.eps) == ((0.9, 0.95), 1e-8)
    small = run_of("successor/small")
    assert small.start is not None
    assert small.start.how == "shrink"
    shape = small.model
    dimensions = (shape.num_hidden_layers, shape.hidden_size, shape.intermediate_size, shape.head_dim)
    assert dimensions == (22, 384, 1152, 64)
    assert shape.num_parameters() - shape.vocab_size * 384 == pytest.approx(42e6, rel=0.01)


def test_weight_decay_leaves_out_what_is_published() -> None:
    """Norms and the decoder's bias; the embedding decays."""
    with torch.device("meta"):
        model = ModernBertForMaskedLM(run_of("base").model)
    decayed, others = (group["parameter_names"] for group in parameter_groups(model, 1e-5))
    assert (
        len(others) == 2 * 22 - 1 + 2 + 1 + 1
    )  # the layers', the embedding's and the last; the head's; a bias
    assert {name.rpartition(".")[0].rpartition(".")[2] for name in others} == {
        "norm",
        "attn_norm",
        "mlp_norm",
        "final_norm",
        "decoder",
    }
    assert "decoder.bias" in others
    assert len(decayed) == 4 * 22 + 2
    assert "model.embeddings.tok_embeddings.weight" in decayed


def test_the_mixture_is_that_of_ettin() -> None:
    """In every phase of every file, each phase's own; large's restart goes on with the first one's."""
    for name in ("base", "ettin/17m", "successor/base"):
        first, second, third = column(name, "mixture")
        assert (first["dclm"], second["dclm_dolmino"], third["code_repositories"]) == (49.1, 70.4, 26.5)
        assert [len(first), len(second), len(third)] == [13, 10, 9]
