"""Pairs of texts as packed micro-batches, and the gradients of a batch that does not fit in one.

A query's loss depends on all documents of the batch, so the batch cannot be cut into micro-batches whose
losses add up. Instead (Gao et al. 2021) all texts are embedded without gradients; the loss gives the gradient
of each embedding; then each micro-batch is computed again, and pulls that gradient through the model. The
same seed lets its dropout be the same, so this is the gradient of the whole batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from modernbert.data.counter_random import key_of, permute
from modernbert.data.records import PairRecord
from modernbert.layout import SequenceLayout, pack
from modernbert.model.pooling import pool
from modernbert.train.contrastive import InBatchNegatives, documents_of, related_pairs
from modernbert.train.examples import Example, cut_rows
from modernbert.train.gradients import TuningFigures
from modernbert.train.parallel import Spread
from modernbert.train.ranks import ALONE, Ranks

Encode = Callable[[Sequence[str]], list[list[int]]]


@dataclass(frozen=True, kw_only=True)
class PairEncoding:
    """How texts become rows.

    Attributes:
        query: Gives the token ids of queries.
        document: Gives those of documents.
        pooling: Of `model.pooling.POOLING`.
        row_tokens: Most tokens of a micro-batch.
    """

    query: Encode
    document: Encode
    pooling: str
    row_tokens: int


@dataclass(frozen=True, eq=False)
class TextRow:
    """Texts packed into one row.

    Attributes:
        input_ids: int64 `[T]`.
        layout: Where each text lies.
        places: int64 `[B]`, which of the batch's texts these are.
        pooling: How the hidden states of a text become one vector.
        gradient: fp32 `[B, E]`, what `loss` pulls through the model; None: there is none yet.
    """

    input_ids: Tensor
    layout: SequenceLayout
    places: Tensor
    pooling: str
    gradient: Tensor | None = None

    @property
    def weight(self) -> float:
        return float(self.layout.num_sequences)

    def to(self, device: torch.device | str) -> TextRow:
        """Return it on a device; a GPU copies it while the host goes on."""
        target = torch.device(device)
        ids = self.input_ids
        if target.type == "cuda" and not ids.is_cuda:
            ids = ids.pin_memory()
        return replace(self, input_ids=ids.to(target, non_blocking=True), layout=self.layout.to(target))

    def embed(self, model: Any) -> Tensor:
        """Return the embeddings, fp32 `[B, E]` of length 1."""
        hidden = model(self.input_ids, self.layout.worked_out())
        return functional.normalize(pool(hidden.float(), self.layout, self.pooling), dim=-1)

    def loss(self, model: Any) -> tuple[Tensor, Tensor]:
        """Return what has `gradient` as its gradient with regard to the embeddings."""
        assert self.gradient is not None
        nothing = torch.zeros((), dtype=torch.int64, device=self.gradient.device)
        return (self.embed(model) * self.gradient).sum(), nothing


@dataclass(frozen=True, eq=False)
class PairBatch:
    """Pairs, and the rows of one rank.

    Attributes:
        rows: This rank's micro-batches.
        num_pairs: Of all ranks.
        num_texts: Of all ranks: the queries, the positives and the negatives, in this order.
        related: See `contrastive.related_pairs`.
    """

    rows: tuple[TextRow, ...]
    num_pairs: int
    num_texts: int
    related: Tensor

    @classmethod
    def of(cls, pairs: Sequence[PairRecord], encoding: PairEncoding, ranks: Ranks = ALONE) -> PairBatch:
        """Pack pairs; each rank takes the texts of a stretch of them, and tokenises no others.

        Args:
            pairs: At least one a rank, the same on all ranks.
            encoding: How texts become rows.
            ranks: Whose rows to make.
        """
        documents, count = documents_of(pairs), len(pairs)
        begin, end = (part * count // ranks.size for part in (ranks.rank, ranks.rank + 1))
        negatives = list(accumulate((len(pair.negatives) for pair in pairs), initial=count))
        own = [*range(begin, end), *range(negatives[begin], negatives[end])]
        sequences = [
            *encoding.query([pair.query for pair in pairs[begin:end]]),
            *encoding.document([documents[place] for place in own]),
        ]
        places = [*range(begin, end), *(count + place for place in own)]
        texts = [Example((ids,), place) for ids, place in zip(sequences, places, strict=True)]
        return cls(
            rows=tuple(_row(row, encoding.pooling) for row in cut_rows(texts, encoding.row_tokens)),
            num_pairs=count,
            num_texts=count + len(documents),
            related=related_pairs(pairs),
        )

    def embed(self, spread: Spread[Any], seeds: Sequence[int] = ()) -> Tensor:
        """Return the embeddings `[num_texts, E]` without gradients, zero for those of other ranks.

        Args:
            spread: The model.
            seeds: For each row, what fixes its dropout; empty: torch's random state does.
        """
        width = spread.model.config.hidden_size
        table = torch.zeros(self.num_texts, width, device=spread.device)
        for place, row in enumerate(self.rows):
            if seeds:
                torch.manual_seed(seeds[place])
            table[row.places] = spread.compute(row, TextRow.embed)
        return table


@dataclass(frozen=True, eq=False)
class PairStep:
    """What one optimizer step of a retriever consumes.

    Attributes:
        number: Steps taken once it is done.
        batch: The pairs.
        objective: What is minimised.
        identity: Which pairs these are, for messages.
    """

    number: int
    batch: PairBatch
    objective: InBatchNegatives
    identity: str

    @property
    def rows(self) -> tuple[TextRow, ...]:
        return self.batch.rows

    @property
    def num_examples(self) -> int:
        return self.batch.num_pairs

    def gradients(self, spread: Spread[Any], seeds: Sequence[int]) -> TuningFigures:
        """Compute the gradients of the whole batch, which add to those that there are.

        Args:
            spread: The model.
            seeds: For each row, what fixes its dropout, both times.
        """
        spread.model.train()
        num_pairs, ranks, rows = self.batch.num_pairs, spread.ranks, self.rows
        table = ranks.add(self.batch.embed(spread, seeds)).requires_grad_()
        loss = self.objective.loss(table[:num_pairs], table[num_pairs:], self.batch.related.to(table.device))
        (wanted,) = torch.autograd.grad(loss, table)
        for place, (row, seed) in enumerate(zip(rows, seeds, strict=True), start=1):
            torch.manual_seed(seed)
            with spread.micro_batch(is_last=place == len(rows)):
                pulled, _ = spread.loss(replace(row, gradient=wanted[row.places]))
                spread.backward(pulled)
        square = ranks.add(spread.squared_gradient_norm())
        num_tokens = ranks.add(torch.tensor(sum(row.layout.num_tokens for row in rows), device=table.device))
        return TuningFigures(loss.item(), math.sqrt(square.item()), int(num_tokens.item()))


def pair_steps(
    pairs_of: Callable[[int], Sequence[PairRecord]],
    encoding: PairEncoding,
    objective: InBatchNegatives,
    *,
    batch_size: int,
    num_steps: int,
    seed: int,
    done: int = 0,
    ranks: Ranks = ALONE,
) -> Iterator[PairStep]:
    """Yield the steps of a run, each epoch in an order of its own.

    All batches are of one size, as a smaller one would be an easier question: what is over in one epoch, is
    another in the next.

    Args:
        pairs_of: Gives the pairs of an epoch, at least `batch_size`, as many in each, the same on all ranks.
        encoding: How texts become rows.
        objective: What is minimised.
        batch_size: Pairs of a step, over all ranks; at least one a rank.
        num_steps: Of the whole run.
        seed: Another seed, another order.
        done: Steps that were taken before.
        ranks: Whose rows to make.
    """
    in_epoch = len(pairs_of(0)) // batch_size
    for step in range(done, num_steps):
        epoch, place = divmod(step, in_epoch)
        pairs = pairs_of(epoch)
        drawn = np.arange(place * batch_size, (place + 1) * batch_size)
        order = permute(drawn, len(pairs), key_of("pairs", seed, epoch))
        chosen = [pairs[index] for index in order]
        yield PairStep(
            number=step + 1,
            batch=PairBatch.of(chosen, encoding, ranks),
            objective=objective,
            identity=f"epoch {epoch + 1}, {len(chosen)} pairs from {chosen[0].place}",
        )


def _row(texts: Sequence[Example], pooling: str) -> TextRow:
    ids, layout = pack([text.sequences[0] for text in texts])
    return TextRow(ids, layout, torch.tensor([text.target for text in texts]), pooling)
