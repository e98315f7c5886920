from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from modernbert import config
from modernbert.errors import ConfigError
from modernbert.model.config import EncoderConfig
from modernbert.recipes.settings import PretrainRun, phase_rows, read_run


def test_a_run_file_and_its_overrides_become_a_run(run_file: Path, plan: dict[str, Any]) -> None:
    before = copy.deepcopy(plan)
    run = read_run(run_file, ["phases.1.learning_rate=1e-4", "checkpoint.keep_last=5", "precision=bf16"])
    assert run.folder == str(run_file.parent / "run")
    assert (run.phases[0].learning_rate, run.phases[1].learning_rate) == (3e-3, 1e-4)
    assert (run.checkpoint.keep_last, run.checkpoint.keep_best) == (5, 1)
    assert run.precision == "bf16"
    assert run.phases[2].mixture == {"a": 3, "b": 1}
    assert run.optimizer.betas == (0.9, 0.98)
    assert (run.model.hidden_size, run.model.num_hidden_layers) == (32, 4)
    assert plan == before


def test_fp8_takes_the_place_of_bf16_alone(run_file: Path) -> None:
    assert read_run(run_file, ["fp8=true"]).fp8
    with pytest.raises(ConfigError, match="`precision` is 'fp32'; it must be auto or bf16 with `fp8`"):
        read_run(run_file, ["fp8=true", "precision=fp32"])


@pytest.mark.parametrize(
    "overrides", [[], ["phases.0.mixture={b: 0.25}", "optimizer.eps=1e-7", "seed=0", "validation.fraction=0"]]
)
def test_what_is_written_reads_back(overrides: list[str], run_file: Path) -> None:
    run = read_run(run_file, overrides)
    run_file.write_text(config.dump(run), encoding="utf-8")
    assert read_run(run_file) == run


def test_a_preset_takes_any_vocabulary(run_file: Path) -> None:
    """Its special ids, which may lie beyond it, are the tokenizer's in the end."""
    run = read_run(run_file, ["model={preset: base, vocab_size: 384}"])
    assert run.model == EncoderConfig.preset("base", vocab_size=384, pad_token_id=0)
    assert read_run(run_file, ["model={preset: base}"]).model == EncoderConfig.preset("base")


@pytest.mark.parametrize("key", ["micro_batch_tokens", "folder", "phases", "data", "tokenizer", "model"])
def test_what_has_no_default_must_be_given(key: str, plan: dict[str, Any]) -> None:
    tree = {"folder": "run", **plan}
    del tree[key]
    with pytest.raises(ConfigError, match=f"`{key}` is missing; it must be"):
        config.build(PretrainRun, tree)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimiser={}", "unknown key `optimiser`; did you mean `optimizer`?"),
        ("model={preset: bass}", "unknown preset `bass` in `model.preset`; did you mean `base`?"),
        ("data=3", "`data` is 3; it must be a mapping"),
        ("tokenizer={}", "exactly one must be set: `path` to use a tokenizer, `vocab_size` to train one"),
        ("tokenizer={path: x, vocab_size: 320}", "exactly one must be set: `path`"),
        ("tokenizer={vocab_size: 385}", "`tokenizer.vocab_size` is 385, in multiples of 64 448; it must be "
         "at most `model.vocab_size`, 384; lower it, or raise that"),
        ("data.sources=[]", "in `data`: `sources` is empty; it must hold at least one source with `name`"),
        ("data.sources.0.name=../a", "`name` is `../a`; it must be a plain name: a folder has it"),
        ("model.hidden_size=33", "in `model`: "),
        ("phases=[]", "`phases` is empty; it must hold at least one phase"),
        ("seed=-1", "`seed` is -1; it must be at least 0 and below 2^63"),
        ("precision=fp8", "`precision` is 'fp8'"),
        ("micro_batch_tokens=0", "`micro_batch_tokens` is 0; it must be at least 1"),
        ("optimizer.betas=[0.9]", "in `optimizer`: `betas` is [0.9]; it must be two numbers, each"),
        ("optimizer.betas=[0.9, 1]", "in `optimizer`: `betas` is [0.9, 1.0]; it must be two numbers, each"),
        ("optimizer.eps=0", "in `optimizer`: `eps` is 0.0; it must be above 0"),
        ("validation.fraction=1", "in `validation`: `fraction` is 1.0; it must be at least 0 and below 1"),
        ("validation.mask_rate=0", "in `validation`: `mask_rate` is 0.0; it must be above 0 and below 1"),
        ("validation.max_tokens=0", "in `validation`: `max_tokens` is 0; it must be at least 1"),
        ("validation.every_tokens=0", "in `validation`: `every_tokens` is 0; it must be at least 1, or null"),
        ("checkpoint.every_tokens=-5", "in `checkpoint`: `every_tokens` is -5; it must be at least 1"),
        ("checkpoint.keep_last=0", "in `checkpoint`: `keep_last` is 0; it must be at least 1"),
        ("checkpoint.keep_best=-1", "in `checkpoint`: `keep_best` is -1; it must be at least 0"),
        ("checkpoint.average_best=2", "in `checkpoint`: `average_best` is 2; it must be from 0 to"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(override: str, message: str, run_file: Path) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        read_run(run_file, [override])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("phases.1.name=short", "two phases are named `short`; each name must be its own; rename one"),
        ("data.sources.1.name=a", "two sources are named `a`; each name must be its own; rename one"),
        ("phases.1.batch_tokens=700", "`phases.1.batch_tokens` is 700; it must be a multiple of "
         "`micro_batch_tokens`, 256"),
        ("phases.0.batch_warmup_start=384", "`phases.0.batch_warmup_start` is 384; it must be a multiple of"),
        ("phases.2.sequence_length=65", "`phases.2.sequence_length` is 65; it must be at most "
         "`micro_batch_tokens`, 256, and `model.max_position_embeddings`, 64"),
        ("phases.2.mixture={a: 1, bb: 2}", "`phases.2.mixture.bb` names no source"),
        ("phases.2.mixture={a: 0}", "phase `decay`: `mixture.a` is 0.0; it must be above 0 and finite"),
        ("phases.0.decay=cosine", "`phases.0.decay` is 'cosine'"),
        ("phases.0.warmup_tokens=1801", "phase `short`: `warmup_tokens` is 1801; it must be from 0 to 1800"),
    ],
)  # fmt: skip
def test_settings_must_fit_each_other(override: str, message: str, run_file: Path) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        read_run(run_file, [override])


def test_the_table_has_a_row_a_phase(run_file: Path) -> None:
    rows = phase_rows(read_run(run_file))
    assert [row["phase"] for row in rows] == ["short", "long", "decay"]
    assert [row["steps"] for row in rows] == ["4", "2", "2"]
    assert [row["length"] for row in rows] == ["32", "64", "64"]
    assert [row["tokens"] for row in rows] == ["1.8k", "1k", "1k"]
    assert {key: "40k" in value for key, value in rows[1].items() if "RoPE" in key} == {"RoPE": True}
    assert all(row.keys() == rows[0].keys() and all(row.values()) for row in rows)


def test_the_number_of_batch_sizes_does_not_widen_the_table(run_file: Path) -> None:
    """The published run warms up over ten sizes."""
    sizes = ["phases.0.batch_tokens=2560", "phases.0.batch_warmup_start=256", "phases.0.tokens=1_000_000"]
    rows = phase_rows(read_run(run_file, [*sizes, "phases.0.batch_warmup_tokens=100_000"]))
    assert max(len(value) for row in rows for value in row.values()) < 30


def test_yaml_is_read_as_numbers_and_not_as_text(run_file: Path, plan: dict[str, Any]) -> None:
    """`5e3` and `1e-5` are text to YAML."""
    tree = yaml.safe_load("tokens: 5e3\nlearning_rate: 1e-5\n")
    assert tree == {"tokens": "5e3", "learning_rate": "1e-5"}
    run = read_run(run_file, ["phases.1.tokens=5e3", "phases.1.learning_rate=1e-5"])
    assert (run.phases[1].tokens, run.phases[1].learning_rate) == (5000, 1e-5)
