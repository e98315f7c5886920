from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from modernbert.data import source as source_module
from modernbert.data.loader import Row, RowStream, assemble, validation_batches
from modernbert.data.masking import MaskedBatch, Masker, MaskingSettings
from modernbert.data.shards import TokenShards, write_shards
from modernbert.data.source import Source
from modernbert.errors import CheckpointError, ConfigError, InputError

CLS, SEP, MASK = 900, 901, 902


class Vocabulary:
    """A tokenizer that makes a text of as many tokens as it says: `7` becomes 7, 8, 9, 10, 11, 12, 13."""

    fingerprint, vocab_size, mask_id = "numbers", 1000, MASK
    special_ids = frozenset({CLS, SEP, MASK})
    ordinary_ids = np.arange(900)

    def encode_batch(self, texts: list[str], *, special: bool, literal: bool) -> list[list[int]]:
        return [[(int(text) + i) % 900 for i in range(int(text))] for text in texts]


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TokenShards]:
    """Three corpora of long, short and mixed documents."""
    folder = tmp_path_factory.mktemp("corpora")
    random = np.random.default_rng(0)
    lengths = {
        "long": random.integers(50, 400, 60),
        "short": random.integers(1, 20, 300),
        "mixed": np.clip(random.lognormal(3.5, 1, 150), 1, 500).astype(int),
    }
    for name, numbers in lengths.items():
        (folder / f"{name}.txt").write_text("\n".join(map(str, numbers)))
    vocabulary = Vocabulary()
    return {
        name: write_shards(folder / f"{name}.txt", vocabulary, folder / name, shard_tokens=2000)
        for name in lengths
    }


def sources(corpora: dict[str, TokenShards], **options: Any) -> list[Source]:
    settings = {"sequence_length": 64, "cls_id": CLS, "sep_id": SEP, "seed": 1, **options}
    return [Source(name, shards, **settings) for name, shards in corpora.items()]


def stream(corpora: dict[str, TokenShards], **options: Any) -> RowStream:
    return RowStream(sources(corpora), [3.0, 1.0, 2.0], **{"row_tokens": 200, "look_ahead": 20, **options})


@pytest.fixture
def masker() -> Masker:
    return Masker(Vocabulary(), MaskingSettings(), seed=1)


def equal(one: MaskedBatch, other: MaskedBatch) -> bool:
    pairs = [(one.input_ids, other.input_ids), (one.labels, other.labels)]
    pairs.append((one.masked_positions, other.masked_positions))
    return one.layout.lengths == other.layout.lengths and all(torch.equal(*pair) for pair in pairs)


class TestRowStream:
    def test_an_epoch_loses_and_doubles_nothing(self, corpora: dict[str, TokenShards]) -> None:
        given = sources(corpora)
        rows = RowStream(given, [3.0, 1.0, 2.0], row_tokens=200, look_ahead=20)
        taken = [sequence for row in rows.take(500) for sequence in row.sequences]
        waiting = [tuple(pair) for pair in rows.state()["waiting"]]
        for source in given:
            draws = [s.draw for s in taken if s.source == source.name]
            draws += [draw for name, draw in waiting if name == source.name]
            assert sorted(draws) == list(range(len(draws))), "every draw once, none passed over"
            assert len(draws) > source.num_sequences, "the test must span an epoch"
            first_epoch = Counter(
                (s.document, s.start + i)
                for s in map(source.sequence, range(source.num_sequences))
                for i in range(s.length - 2)
            )
            lengths = corpora[source.name].lengths
            assert first_epoch == Counter((d, i) for d, length in enumerate(lengths) for i in range(length))

    def test_rows_are_numbered_within_budget_and_full(self, corpora: dict[str, TokenShards]) -> None:
        rows = stream(corpora).take(300)
        assert [row.number for row in rows] == list(range(300))
        assert all(row.num_tokens == sum(s.length for s in row.sequences) <= 200 for row in rows)
        assert np.mean([row.num_tokens for row in rows]) > 0.99 * 200

    def test_without_repeating_each_sequence_comes_once_and_then_there_are_none(
        self, corpora: dict[str, TokenShards]
    ) -> None:
        once = sources(corpora, repeats=False)
        whole = RowStream(once, [3.0, 1.0, 2.0], row_tokens=200, look_ahead=20)
        total = sum(it.num_tokens for it in once)
        taken: list[Row] = []
        while sum(row.num_tokens for row in taken) < total:
            taken += whole.take(1)
        with pytest.raises(
            InputError, match=r"all of `long`, `short`, `mixed` is used up; .* let the sources"
        ):
            whole.take(1)
        found = Counter((s.source, s.draw) for row in taken for s in row.sequences)
        assert found == Counter((it.name, draw) for it in once for draw in range(it.num_sequences))
        half = RowStream(once, [3.0, 1.0, 2.0], row_tokens=200, look_ahead=20)
        half.take(len(taken) - 10)
        drawn = {name: counts["sequences"] for name, counts in half.state()["drawn"].items()}
        assert [it.has(drawn[it.name]) for it in once] != [True] * 3, "one must be used up by then"
        resumed = RowStream(once, [3.0, 1.0, 2.0], row_tokens=200, look_ahead=20, state=half.state())
        assert resumed.take(10) == taken[-10:]

    @pytest.mark.parametrize("weights", [[3.0, 1.0, 2.0], [1e-3, 1.0, 1.0], [1, 1, 1]])
    def test_shares_of_the_tokens_follow_the_weights(
        self, corpora: dict[str, TokenShards], weights: list[float]
    ) -> None:
        rows = RowStream(sources(corpora), weights, row_tokens=200, look_ahead=20)
        shares = np.array(weights) / sum(weights)
        for num_rows in (100, 900):
            rows.take(num_rows)
            drawn = np.array([rows.state()["drawn"][name]["tokens"] for name in corpora])
            assert (np.abs(drawn - drawn.sum() * shares) <= 64 * 3).all(), (
                "never off by more than a few sequences"
            )

    def test_resumed_is_uninterrupted_at_every_cut(
        self, corpora: dict[str, TokenShards], masker: Masker
    ) -> None:
        whole = stream(corpora)
        rows, states = [], []
        for _ in range(60):
            states.append(json.dumps(whole.state()))
            rows += whole.take(1)
        after = whole.take(10)
        for cut, state in enumerate(states):
            resumed = stream(corpora, state=json.loads(state))
            assert json.dumps(resumed.state()) == state
            assert resumed.take(70 - cut) == [*rows, *after][cut:]
        resumed = stream(corpora, state=json.loads(states[30]))
        batches = [assemble(row, sources(corpora), masker, 0.3, 0) for row in resumed.take(5)]
        expected = [assemble(row, sources(corpora), masker, 0.3, 0) for row in rows[30:35]]
        assert all(equal(*pair) for pair in zip(batches, expected))

    def test_resuming_takes_as_long_wherever_the_run_was(
        self, corpora: dict[str, TokenShards], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        state = stream(corpora).state()
        for counters, weight in zip(state["drawn"].values(), (3, 1, 2)):
            counters.update(sequences=10**12, tokens=10**13 * weight)
        state["rows"] = 10**11
        blocks: list[int] = []
        compute = source_module.Source._compute_block
        monkeypatch.setattr(
            source_module.Source, "_compute_block", lambda self, n: blocks.append(n) or compute(self, n)
        )
        (row,) = stream(corpora, state=state).take(1)
        assert row.number == 10**11
        assert all(sequence.draw >= 10**12 for sequence in row.sequences)
        assert len(blocks) == 3

    def test_the_state_stays_small(self, corpora: dict[str, TokenShards]) -> None:
        rows = stream(corpora)
        rows.take(500)
        assert len(json.dumps(rows.state())) < 2000

    @pytest.mark.parametrize(
        ("source_options", "weights", "options", "difference"),
        [
            ({}, [3, 1, 2], {"row_tokens": 300}, "`row_tokens`: 200 → 300"),
            ({}, [3, 1, 2], {"look_ahead": 30}, "`look_ahead`: 20 → 30"),
            ({}, [3, 1, 1], {}, "`sources.mixed.weight`: 2.0 → 1.0"),
            ({}, [3, 1], {}, "`sources.mixed`: {'weight': 2.0"),
            ({"sequence_length": 32}, [3, 1, 2], {}, "`sources.long.sequence_length`: 64 → 32"),
            ({"seed": 2}, [3, 1, 2], {}, "`sources.long.seed`: 1 → 2"),
            ({"order": "decay"}, [3, 1, 2], {}, "`sources.long.order`: '' → 'decay'"),
        ],
    )
    def test_refuses_the_state_of_another_stream(
        self,
        corpora: dict[str, TokenShards],
        source_options: dict[str, Any],
        weights: list[float],
        options: dict[str, int],
        difference: str,
    ) -> None:
        state = stream(corpora).state()
        given = sources(corpora, **source_options)[: len(weights)]
        with pytest.raises(CheckpointError, match="the loader's state is of another stream; these") as caught:
            RowStream(given, weights, state=state, **{"row_tokens": 200, "look_ahead": 20, **options})
        assert difference in str(caught.value)

    def test_refuses_a_mixture_that_cannot_be(self, corpora: dict[str, TokenShards]) -> None:
        given = sources(corpora)
        for weight in (0, -1.0, float("nan"), float("inf")):
            with pytest.raises(
                ConfigError, match=f"the weight of source `short` is {weight}; it must be above 0"
            ):
                RowStream(given, [1.0, weight, 1.0], row_tokens=200)
        with pytest.raises(ConfigError, match="there are 2 weights for 3 sources; give one each"):
            RowStream(given, [1.0, 1.0], row_tokens=200)
        with pytest.raises(ConfigError, match="two sources are named `long`; each must have its own name"):
            RowStream([given[0], given[0]], [1.0, 1.0], row_tokens=200)
        with pytest.raises(ConfigError, match="the mixture has no source; it must have at least one"):
            RowStream([], [], row_tokens=200)

    def test_refuses_rows_shorter_than_a_sequence(self, corpora: dict[str, TokenShards]) -> None:
        with pytest.raises(
            InputError, match="does not fit a row of 50; shorten the sequences or raise `row_tokens`"
        ):
            stream(corpora, row_tokens=50).take(100)

    def test_a_row_says_which_it_is(self, corpora: dict[str, TokenShards]) -> None:
        row = stream(corpora).take(4)[-1]
        first = row.sequences[0]
        assert row.identity.startswith(f"row 3: {first.source}#{first.document}+{first.start}, ")
        assert row.identity.endswith(f", … ({len(row.sequences)} sequences)")
        assert Row(7, row.sequences[:1]).identity == f"row 7: {first.source}#{first.document}+{first.start}"


class TestAssemble:
    def test_undoing_the_mask_gives_the_text(self, corpora: dict[str, TokenShards], masker: Masker) -> None:
        given = sources(corpora)
        for row in RowStream(given, [1, 1, 1], row_tokens=200).take(50):
            batch = assemble(row, given, masker, 0.3, phase_key=0)
            restored = batch.input_ids.clone()
            restored[batch.masked_positions] = batch.labels
            assert batch.layout.lengths == tuple(sequence.length for sequence in row.sequences)
            for sequence, tokens in zip(row.sequences, batch.layout.split(restored)):
                stop = sequence.start + sequence.length - 2
                content = corpora[sequence.source].read(sequence.document, sequence.start, stop)
                assert tokens.tolist() == [CLS, *content, SEP]
            assert {t.dtype for t in (batch.input_ids, batch.masked_positions, batch.labels)} == {torch.int64}
            assert batch.num_tokens == row.num_tokens

    def test_masks_do_not_depend_on_the_row(self, corpora: dict[str, TokenShards], masker: Masker) -> None:
        given = sources(corpora)
        row = RowStream(given, [1, 1, 1], row_tokens=500).take(1)[0]
        together = assemble(row, given, masker, 0.3, phase_key=0)
        backwards = assemble(Row(99, row.sequences[::-1]), given[::-1], masker, 0.3, phase_key=0)
        pieces = together.layout.split(together.input_ids)
        assert torch.equal(backwards.input_ids, torch.cat(pieces[::-1]))
        for sequence, piece in zip(row.sequences, pieces):
            assert torch.equal(
                assemble(Row(0, (sequence,)), given, masker, 0.3, phase_key=0).input_ids, piece
            )

    def test_each_draw_phase_and_source_masks_anew(
        self, corpora: dict[str, TokenShards], masker: Masker
    ) -> None:
        given = sources(corpora)
        long = given[0]
        sequence = next(s for s in map(long.sequence, range(100)) if s.length == 64)
        same_text = sequence._replace(draw=sequence.draw + long.num_sequences)
        twin = Source("twin", corpora["long"], sequence_length=64, cls_id=CLS, sep_id=SEP, seed=1)
        renamed = sequence._replace(source="twin")
        batches = [
            assemble(Row(0, (each,)), [*given, twin], masker, 0.3, phase)
            for each, phase in [(sequence, 0), (same_text, 0), (sequence, 1), (sequence, "0"), (renamed, 0)]
        ]
        assert len({batch.masked_positions.numpy().tobytes() for batch in batches}) == 5

    def test_the_share_of_masked_tokens_is_the_rate(
        self, corpora: dict[str, TokenShards], masker: Masker
    ) -> None:
        given = sources(corpora)
        batches = [
            assemble(row, given, masker, 0.3, 0)
            for row in RowStream(given, [1, 1, 1], row_tokens=500).take(200)
        ]
        content = sum(batch.num_tokens - 2 * batch.layout.num_sequences for batch in batches)
        assert sum(batch.num_masked for batch in batches) / content == pytest.approx(0.3, abs=0.01)


class TestValidationBatches:
    def validation(self, corpora: dict[str, TokenShards]) -> list[Source]:
        return sources(corpora, split="validation", validation_fraction=0.2)

    def batches(
        self, corpora: dict[str, TokenShards], masker: Masker, max_tokens: int = 10**9
    ) -> list[MaskedBatch]:
        return validation_batches(
            self.validation(corpora), masker, 0.15, row_tokens=300, max_tokens=max_tokens
        )

    def test_holds_the_whole_split_once_and_nothing_of_training(
        self, corpora: dict[str, TokenShards], masker: Masker
    ) -> None:
        validation = self.validation(corpora)
        train = sources(corpora, validation_fraction=0.2)
        batches = self.batches(corpora, masker)
        assert sum(batch.num_tokens for batch in batches) == sum(source.num_tokens for source in validation)
        assert sum(b.layout.num_sequences for b in batches) == sum(
            source.num_sequences for source in validation
        )
        for one, other in zip(train, validation):
            documents = [
                {s.document for s in map(of.sequence, range(of.num_sequences))} for of in (one, other)
            ]
            assert not documents[0] & documents[1]
            assert len(documents[0] | documents[1]) == corpora[one.name].num_documents

    def test_is_the_same_every_time(self, corpora: dict[str, TokenShards], masker: Masker) -> None:
        one, other = self.batches(corpora, masker), self.batches(corpora, masker)
        assert len(one) == len(other) > 5
        assert all(equal(*pair) for pair in zip(one, other))

    def test_takes_no_more_than_asked_from_all_sources_alike(
        self, corpora: dict[str, TokenShards], masker: Masker
    ) -> None:
        sizes = [
            sum(batch.num_tokens for batch in self.batches(corpora, masker, limit))
            for limit in (100, 1000, 3000)
        ]
        assert all(limit - 64 < size <= limit for size, limit in zip(sizes, (100, 1000, 3000)))
        assert all(one < other for one, other in pairwise(sizes))

    def test_refuses_to_hold_nothing(self, corpora: dict[str, TokenShards], masker: Masker) -> None:
        with pytest.raises(
            InputError, match="`max_tokens` is 2; it must hold at least one validation sequence"
        ):
            self.batches(corpora, masker, max_tokens=2)
