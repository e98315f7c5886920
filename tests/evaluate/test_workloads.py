from __future__ import annotations

import numpy as np
import pytest

from modernbert.evaluate.workloads import SETS, Workload, draw_document, draw_workload, in_batches


def draw(name: str, tokens: int, limit: int = 8192) -> Workload:
    return draw_workload(name, 50_368, tokens=tokens, limit=limit)


def test_the_published_sets() -> None:
    fixed, variable = draw("short-fixed", 8192 * 512), draw("short-variable", 8192 * 512)
    assert (fixed.num_tokens, set(fixed.lengths)) == (4_194_304, {512})
    assert len(variable.documents) == 8192
    assert variable.num_tokens == pytest.approx(2_096_510, rel=0.005)  # as published, but for the seed
    assert np.std(variable.lengths) == pytest.approx(64, rel=0.05)
    assert min(variable.lengths) >= 16
    assert max(variable.lengths) <= 512
    ids = np.concatenate(fixed.documents[:100])
    assert (ids.min(), ids.max()) == (100, 15_999)
    assert fixed.describe() == "short-fixed: 8,192 documents, 4,194,304 tokens (published: 8,192 documents)"


@pytest.mark.parametrize("name", SETS)
def test_small_sets_are_cut_and_say_so(name: str) -> None:
    workload = draw(name, 128)
    assert (workload.longest, len(workload.documents)) == (64, 2)
    assert workload.is_fixed == name.endswith("-fixed")
    assert "cut to 64 tokens from " in workload.describe()
    assert draw(name, 128).lengths == workload.lengths
    assert max(draw(name, 10_000, limit=100).lengths) <= 100


def test_the_number_of_documents_has_bounds() -> None:
    assert len(draw("short-fixed", 1).documents) == 2
    assert len(draw("long-fixed", 8192 * 3).documents) == 3
    assert len(draw("short-fixed", 10**8, limit=64).documents) == 8192


def test_ids_fit_small_vocabularies() -> None:
    document = draw_document(1000, 50, np.random.default_rng(0))
    assert (document.min(), document.max()) == (25, 49)


def test_batches_keep_the_order() -> None:
    documents = [np.full(1, number) for number in range(5)]
    assert [[int(it[0]) for it in batch] for batch in in_batches(documents, 2)] == [[0, 1], [2, 3], [4]]
