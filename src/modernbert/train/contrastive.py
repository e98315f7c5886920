"""What a retriever minimises: each query is to find its own among all documents of the batch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from modernbert.data.records import PairRecord
from modernbert.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class InBatchNegatives:
    """Cross-entropy over a query's cosines with all documents, as MultipleNegativesRankingLoss has it.

    Documents are the positives of all queries, in their order, and after them any further negatives.

    Attributes:
        temperature: What cosines are divided by.
        symmetric: Each positive is to find its query among all queries, too; both losses are averaged.

    Raises:
        ConfigError: The temperature is not above 0.
    """

    temperature: float = 0.05
    symmetric: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.temperature < float("inf"):
            raise ConfigError(f"`temperature` is {self.temperature}; it must be above 0")

    def loss(self, queries: Tensor, documents: Tensor, related: Tensor) -> Tensor:
        """Return the mean loss.

        Args:
            queries: fp32 `[P, E]`, of length 1 each.
            documents: fp32 `[K, E]`, of length 1 each; the first `P` are the positives.
            related: int64 `[R, 2]`, from `related_pairs`.
        """
        scores = _scores(queries, documents, related) / self.temperature
        right = torch.arange(len(queries), device=queries.device)
        loss = functional.cross_entropy(scores, right)
        if self.symmetric:
            loss = (loss + functional.cross_entropy(scores[:, : len(queries)].T, right)) / 2
        return loss


def ranks_of_positives(queries: Tensor, documents: Tensor, related: Tensor) -> Tensor:
    """Return the rank of each query's own document, 1 at best; see `InBatchNegatives.loss`.

    What scores as high as the right one stands before it: a model that says the same of all is not right.
    """
    scores = _scores(queries, documents, related)
    return (scores >= scores.diagonal()[:, None]).sum(1)


def related_pairs(pairs: Sequence[PairRecord]) -> Tensor:
    """Find which documents of a batch are no negatives of a query, though they are not its own.

    A document is none if it is the query itself, or a positive of an equal query.

    Returns:
        int64 `[R, 2]`: indices of query and document.
    """
    places: defaultdict[str, list[int]] = defaultdict(list)
    positives: defaultdict[str, set[str]] = defaultdict(set)
    for index, text in enumerate(documents_of(pairs)):
        places[text].append(index)
    for pair in pairs:
        positives[pair.query].add(pair.positive)
    found = [
        (index, place)
        for index, pair in enumerate(pairs)
        for text in sorted({pair.query, *positives[pair.query]})
        for place in places.get(text, ())
        if place != index
    ]
    return torch.tensor(found, dtype=torch.int64).reshape(-1, 2)


def documents_of(pairs: Sequence[PairRecord]) -> list[str]:
    """Return the documents of a batch: the positives, and after them the negatives."""
    return [*(pair.positive for pair in pairs), *(text for pair in pairs for text in pair.negatives)]


def _scores(queries: Tensor, documents: Tensor, related: Tensor) -> Tensor:
    """Return the cosines `[P, K]`, without those that do not count."""
    left_out = torch.zeros(len(queries), len(documents), dtype=torch.bool, device=queries.device)
    left_out[related[:, 0], related[:, 1]] = True
    return (queries @ documents.T).masked_fill(left_out, -torch.inf)
