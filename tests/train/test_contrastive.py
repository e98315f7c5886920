"""The loss over a batch: that of sentence-transformers, and what is no negative is none."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from modernbert.data.records import PairRecord
from modernbert.errors import ConfigError
from modernbert.train.contrastive import InBatchNegatives, ranks_of_positives, related_pairs

NONE = torch.empty(0, 2, dtype=torch.int64)


def pair(query: str, positive: str, *negatives: str) -> PairRecord:
    return PairRecord(query=query, positive=positive, negatives=negatives, place="here")


def vectors(count: int) -> Tensor:
    return torch.randn(count, 8, requires_grad=True)


def ours(queries: Tensor, documents: Tensor, related: Tensor = NONE, **settings: object) -> Tensor:
    objective = InBatchNegatives(**settings)  # type: ignore[arg-type]
    return objective.loss(functional.normalize(queries), functional.normalize(documents), related)


@pytest.mark.parametrize("num_negatives", [0, 2])
@pytest.mark.parametrize("symmetric", [False, True])
def test_equals_sentence_transformers(num_negatives: int, symmetric: bool) -> None:
    losses = pytest.importorskip("sentence_transformers.sentence_transformer.losses")
    directions = ("query_to_doc", "doc_to_query") if symmetric else ("query_to_doc",)
    judge = losses.MultipleNegativesRankingLoss(
        None, scale=20.0, directions=directions, partition_mode="per_direction"
    )
    given = [vectors(6) for _ in range(2 + num_negatives)]
    expected = judge.compute_loss_from_embeddings(given, None)
    wanted = torch.autograd.grad(expected, given)
    found = ours(given[0], torch.cat(given[1:]), symmetric=symmetric)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    for gradient, judged in zip(torch.autograd.grad(found, given), wanted):
        torch.testing.assert_close(gradient, judged, rtol=0, atol=1e-6)


def test_equal_texts_are_no_negatives() -> None:
    pairs = [pair("q", "a"), pair("q", "b"), pair("r", "a", "x"), pair("a", "c"), pair("s", "d", "d", "b")]
    # Documents: a b a c d | x d b
    assert set(map(tuple, related_pairs(pairs).tolist())) == {
        *((0, 1), (0, 2), (0, 7)),  # of `q`: its other positive, and its own again
        *((1, 0), (1, 2), (1, 7)),
        (2, 0),
        *((3, 0), (3, 2)),  # the query itself
        (4, 6),
    }
    assert related_pairs([pair("q", "a"), pair("r", "b")]).shape == (0, 2)


@pytest.mark.parametrize("symmetric", [False, True])
def test_a_text_twice_changes_nothing(symmetric: bool) -> None:
    """What is related neither adds to a loss nor gets a gradient of it."""
    queries, documents = vectors(3), vectors(3)
    alone = ours(queries[:2], documents[:2], symmetric=symmetric)
    related = torch.tensor([[0, 2], [1, 2], [2, 0], [2, 1]])
    both = ours(queries, documents, related, symmetric=symmetric)
    torch.testing.assert_close(both * 3, alone * 2)
    assert torch.autograd.grad(both, documents)[0][2].abs().max() == 0


def test_ranks_count_what_scores_as_high() -> None:
    queries = documents = torch.eye(4)
    assert ranks_of_positives(queries, documents, NONE).tolist() == [1, 1, 1, 1]
    assert ranks_of_positives(queries, documents[[1, 0, 2, 3]], NONE).tolist() == [4, 4, 1, 1]
    assert ranks_of_positives(torch.ones(3, 4), torch.ones(3, 4), NONE).tolist() == [3, 3, 3]
    assert ranks_of_positives(torch.ones(3, 4), torch.ones(3, 4), torch.tensor([[0, 1]])).tolist() == [
        2,
        3,
        3,
    ]


def test_a_temperature_out_of_range() -> None:
    with pytest.raises(ConfigError, match="`temperature` is 0; it must be above 0"):
        InBatchNegatives(temperature=0)
