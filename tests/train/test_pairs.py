"""Pairs as packed rows: the cached gradient is that of the whole batch, and each rank takes its own texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from modernbert.data.records import PairRecord
from modernbert.layout import pack
from modernbert.model.config import EncoderConfig
from modernbert.model.encoder import ModernBertModel
from modernbert.model.init import initialise
from modernbert.model.pooling import pool
from modernbert.train.contrastive import InBatchNegatives, documents_of
from modernbert.train.pairs import PairBatch, PairEncoding, PairStep, pair_steps
from modernbert.train.parallel import Spread
from modernbert.train.ranks import Ranks

OBJECTIVE = InBatchNegatives(symmetric=True)
NAMES = [f"text {number}" for number in range(60)]


def encode(texts: Sequence[str]) -> list[list[int]]:
    """Of lengths from 2 to 9, by what they say."""
    numbers = [int(text.split()[1]) for text in texts]
    return [[1, *range(10 + number, 11 + number + number % 8)] for number in numbers]


def encoding(row_tokens: int, pooling: str = "mean") -> PairEncoding:
    return PairEncoding(query=encode, document=encode, pooling=pooling, row_tokens=row_tokens)


def made(count: int, *, negatives: bool = False) -> list[PairRecord]:
    return [
        PairRecord(
            query=NAMES[index],
            positive=NAMES[20 + index],
            negatives=tuple(NAMES[40 + index : 40 + index + index % 3]) if negatives else (),
            place=f"line {index}",
        )
        for index in range(count)
    ]


def model(dropout: float) -> ModernBertModel:
    shape = EncoderConfig.preset("tiny", vocab_size=128, attn_out_dropout=dropout, window=4)
    built = ModernBertModel(shape)
    initialise(built, seed=0)
    return built.train()


def gradients(of: nn.Module) -> dict[str, Tensor]:
    found = {name: param.grad for name, param in of.named_parameters() if param.grad is not None}
    of.zero_grad(set_to_none=True)
    return found


def by_place(*batches: PairBatch) -> dict[int, list[int]]:
    """The token ids of the texts of batches, by which texts they are."""
    rows = [row for batch in batches for row in batch.rows]
    return {
        int(place): ids.tolist()
        for row in rows
        for place, ids in zip(row.places, row.layout.split(row.input_ids))
    }


def plain_loss(of: ModernBertModel, step: PairStep, seeds: list[int]) -> Tensor:
    """The loss with the graphs of all rows in memory at once."""
    table = torch.zeros(step.batch.num_texts, of.config.hidden_size)
    for row, seed in zip(step.rows, seeds):
        torch.manual_seed(seed)
        table = table.index_put((row.places,), row.embed(of))
    count = step.batch.num_pairs
    return step.objective.loss(table[:count], table[count:], step.batch.related)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_the_cached_gradient_is_that_of_the_whole_batch(pooling: str, dropout: float) -> None:
    trained = model(dropout)
    pairs = made(7, negatives=True)
    step = PairStep(1, PairBatch.of(pairs, encoding(24, pooling)), OBJECTIVE, "")
    seeds = list(range(len(step.rows)))
    assert len(seeds) > 3
    loss = plain_loss(trained, step, seeds)
    loss.backward()
    expected = gradients(trained)
    found = step.gradients(Spread(trained, device=torch.device("cpu")), seeds)
    assert found.loss == pytest.approx(loss.item(), abs=1e-6)
    cached = gradients(trained)
    assert cached.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(cached[name], tensor, rtol=0, atol=1e-5, msg=name)
    norm = torch.stack([tensor.square().sum() for tensor in expected.values()]).sum().sqrt()
    assert found.gradient_norm == pytest.approx(norm.item(), rel=1e-4)


def test_how_a_batch_is_cut_changes_nothing() -> None:
    """And it is the loss of the texts, each by itself."""
    trained, pairs = model(0.0), made(6, negatives=True)
    texts = [*(pair.query for pair in pairs), *documents_of(pairs)]
    alone = []
    for ids in encode(texts):
        row, layout = pack([ids])
        alone.append(functional.normalize(pool(trained(row, layout), layout, "mean"), dim=-1))
    table = torch.cat(alone)
    batch = PairBatch.of(pairs, encoding(10_000))
    expected = OBJECTIVE.loss(table[:6], table[6:], batch.related).item()
    for row_tokens in (1, 16, 10_000):
        step = PairStep(1, PairBatch.of(pairs, encoding(row_tokens)), OBJECTIVE, "")
        found = step.gradients(Spread(trained, device=torch.device("cpu")), [0] * len(step.rows))
        assert found.loss == pytest.approx(expected, abs=1e-6)


def test_ranks_share_the_texts_of_a_batch() -> None:
    pairs = made(7, negatives=True)
    tokenised: list[str] = []

    def noting(texts: Sequence[str]) -> list[list[int]]:
        tokenised.extend(texts)
        return encode(texts)

    noted = replace(encoding(30), query=noting, document=noting)
    shares = [PairBatch.of(pairs, noted, Ranks(rank, 3)) for rank in range(3)]
    assert sorted(tokenised) == sorted([*(pair.query for pair in pairs), *documents_of(pairs)])
    whole = PairBatch.of(pairs, encoding(30))
    assert by_place(*shares) == by_place(whole)
    assert sorted(by_place(whole)) == list(range(whole.num_texts))
    assert all(share.rows for share in shares)
    assert {(it.num_pairs, it.num_texts) for it in shares} == {(7, whole.num_texts)}


def test_steps_take_each_pair_once_an_epoch_and_go_on_from_any() -> None:
    def epoch(number: int) -> list[PairRecord]:
        return made(11)

    def taken(done: int = 0, seed: int = 1) -> list[list[int]]:
        steps = pair_steps(epoch, encoding(30), OBJECTIVE, batch_size=3, num_steps=7, seed=seed, done=done)
        return [sorted(id for row in step.rows for id in row.input_ids.tolist()) for step in steps]

    whole = taken()
    assert len(whole) == 7
    assert taken(done=4) == whole[4:]
    assert taken(seed=2) != whole
    assert whole[0:3] != whole[3:6]
    numbers = [
        step.number
        for step in pair_steps(epoch, encoding(30), OBJECTIVE, batch_size=3, num_steps=7, seed=1, done=4)
    ]
    assert numbers == [5, 6, 7]
