"""What is held out is the same however it is packed, and each source's figures add up to those of all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from modernbert.data.loader import validation_batches
from modernbert.data.masking import Masker
from modernbert.data.tokenizer import Tokenizer
from modernbert.model.heads import ModernBertForMaskedLM
from modernbert.model.init import initialise
from modernbert.recipes.prepare import prepare_shards
from modernbert.recipes.settings import PretrainRun, read_run
from modernbert.recipes.supply import open_sources
from modernbert.recipes.validation import Findings, Validation
from modernbert.train.loop import Evaluation, evaluate

CPU = torch.device("cpu")
Measure = Callable[..., tuple[PretrainRun, Findings | None, Callable[[], Evaluation]]]


@pytest.fixture
def measured(run_file: Path, tokenizer: Path) -> Measure:
    """Validate new weights; return also what they come to over rows that mix the sources."""

    def measure(*overrides: str) -> tuple[PretrainRun, Findings | None, Callable[[], Evaluation]]:
        run, words = read_run(run_file, overrides), Tokenizer.from_pretrained(tokenizer)
        shards = prepare_shards(run, Path(run.folder), words)
        model = ModernBertForMaskedLM(run.model)
        initialise(model, seed=1)

        def mixed() -> Evaluation:
            sources, _ = open_sources(run, shards, words, run.phases[0], "validation")
            masker = Masker(words, run.masking, seed=run.seed)
            rows = validation_batches(sources, masker, 0.15, row_tokens=256, max_tokens=10**9)
            return evaluate(model, rows, device=CPU)

        found = Validation(run, shards, words).measure(model, run.phases[0], device=CPU)
        return run, found, mixed

    return measure


def test_sources_packed_apart_come_to_what_they_come_to_together(measured: Measure) -> None:
    _, found, mixed = measured("validation.max_tokens=1e9")
    assert found is not None
    expected = mixed()
    assert found.evaluation.loss == pytest.approx(expected.loss, abs=1e-5)
    assert found.evaluation.accuracy == pytest.approx(expected.accuracy)
    assert found.evaluation.commonest_accuracy == expected.commonest_accuracy
    assert list(found.by_source) == ["a", "b"]
    assert sum(part.num_masked for part in found.by_source.values()) == expected.num_masked
    assert found.by_source["a"].loss != found.by_source["b"].loss


def test_each_source_is_looked_at_however_few_tokens_are(measured: Measure) -> None:
    _, found, _ = measured("validation.max_tokens=1", "validation.mask_rate=0.5")
    assert found is not None
    assert all(0 < part.num_masked <= 32 for part in found.by_source.values())
    assert len(found.by_source) == 2


def test_a_single_source_is_told_once(measured: Measure) -> None:
    run, found, mixed = measured("phases.0.mixture={b: 1}", "validation.max_tokens=1e9")
    assert found is not None
    assert (len(run.data.sources), found.by_source) == (2, {})
    assert found.evaluation.loss == pytest.approx(mixed().loss, abs=1e-5)


def test_nothing_held_out_is_nothing_measured(measured: Measure) -> None:
    assert measured("validation.fraction=0")[1] is None
