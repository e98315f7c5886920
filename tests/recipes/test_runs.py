"""Every run file builds: its settings fit, and its model exists on the meta device."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from modernbert import config
from modernbert.model.heads import ModernBertForMaskedLM
from modernbert.recipes.settings import PretrainRun, phase_rows, read_run

ROOT = Path(__file__).parents[2]
RUN_FILES = sorted([*ROOT.glob("runs/**/*.yaml"), *ROOT.glob("src/modernbert/recipes/*.yaml")])
NAMES = [str(path.relative_to(ROOT)) for path in RUN_FILES]


def test_there_is_a_run_file() -> None:
    assert "src/modernbert/recipes/tour.yaml" in NAMES


@pytest.mark.parametrize("path", RUN_FILES, ids=NAMES)
def test_the_run_file_builds(path: Path) -> None:
    run = read_run(path)
    assert len(phase_rows(run)) == len(run.phases)
    assert config.build(PretrainRun, yaml.safe_load(config.dump(run))) == run
    with torch.device("meta"):
        model = ModernBertForMaskedLM(run.model)
    assert sum(weight.numel() for weight in model.parameters()) == run.model.num_parameters(head=True)
    assert next(model.parameters()).is_meta


@pytest.mark.parametrize("path", RUN_FILES, ids=NAMES)
def test_the_run_file_names_no_path_of_one_machine(path: Path) -> None:
    run = read_run(path)
    named = [run.folder, *(source.path for source in run.data.sources), run.tokenizer.path or ""]
    assert [name for name in named if Path(name).is_absolute()] == []
