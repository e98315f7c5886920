"""Every run file builds: its settings fit, and its model exists on the meta device."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from modernbert import config, files
from modernbert.model.config import EncoderConfig
from modernbert.model.dialects import to_published
from modernbert.model.heads import ModernBertForMaskedLM
from modernbert.recipes.plan import plan
from modernbert.recipes.settings import PretrainRun, phase_rows, read_run
from modernbert.train.planner import Machines

ROOT = Path(__file__).parents[2]
MIXTURES = sorted(ROOT.glob("runs/mixtures/*.yaml"))
BENCHMARKS = sorted(ROOT.glob("runs/glue/*.yaml"))  # tests/evaluate/test_finetuned.py builds them
RETRIEVERS = sorted(ROOT.glob("runs/**/embed.yaml"))  # tests/recipes/retriever/test_session.py builds them
RUN_FILES = sorted(
    {*ROOT.glob("runs/**/*.yaml"), *ROOT.glob("src/modernbert/recipes/*.yaml")}
    - {*MIXTURES, *BENCHMARKS, *RETRIEVERS}
)
NAMES = [str(path.relative_to(ROOT)) for path in RUN_FILES]


@pytest.fixture(autouse=True)
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand where a checkpoint is: `base`, of which only the shape is read."""
    files.write_json(
        tmp_path / "base" / "config.json", to_published(EncoderConfig(), "ModernBertForMaskedLM")
    )
    monkeypatch.chdir(tmp_path)


def start_of(path: Path) -> list[str]:
    """Let a run file that continues a checkpoint of the hub continue the one that is here."""
    return ["start.model=base"] if "start" in config.load(path) else []


def test_there_is_a_run_file() -> None:
    assert "src/modernbert/recipes/tour.yaml" in NAMES


@pytest.mark.parametrize("path", RUN_FILES, ids=NAMES)
def test_the_run_file_builds(path: Path) -> None:
    run = read_run(path, start_of(path))
    assert len(phase_rows(run)) == len(run.phases)
    assert config.build(PretrainRun, yaml.safe_load(config.dump(run))) == run
    with torch.device("meta"):
        model = ModernBertForMaskedLM(run.model)
    assert sum(weight.numel() for weight in model.parameters()) == run.model.num_parameters(head=True)
    assert next(model.parameters()).is_meta


@pytest.mark.parametrize("path", RUN_FILES, ids=NAMES)
def test_the_run_file_names_no_path_of_one_machine(path: Path) -> None:
    run = read_run(path, start_of(path))
    named = [run.folder, *(source.path for source in run.data.sources), run.tokenizer.path or ""]
    assert [name for name in named if Path(name).is_absolute()] == []


@pytest.mark.parametrize("path", RUN_FILES, ids=NAMES)
def test_the_run_file_plans(path: Path) -> None:
    run = read_run(path, start_of(path))
    found = plan(run, Machines(num_gpus=8))
    assert [phase.steps for phase in found.phases] == [phase.num_steps() for phase in run.phases]
    assert all(found.fits(phase) for phase in found.phases), "it must fit on GPUs of 80 GB"
