"""The packed form: offsets, positions, owners, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from modernbert.errors import InputError
from modernbert.layout import SequenceLayout, pack


def test_facts_of_a_small_layout() -> None:
    layout = SequenceLayout.of([3, 1, 2])
    assert (layout.num_sequences, layout.num_tokens, layout.longest) == (3, 6, 3)
    assert layout.starts == (0, 3, 4, 6)
    assert layout.offsets.tolist() == [0, 3, 4, 6]
    assert layout.offsets.dtype == torch.int32
    assert layout.positions.tolist() == [0, 1, 2, 0, 0, 1]
    assert layout.sequence_ids.tolist() == [0, 0, 0, 1, 2, 2]


@given(st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=9), min_size=1, max_size=9))
def test_split_undoes_pack(sequences: list[list[int]]) -> None:
    ids, layout = pack(sequences)
    assert [part.tolist() for part in layout.split(ids)] == sequences


def test_derived_facts_are_computed_once() -> None:
    layout, calls = SequenceLayout.of([2]), []
    for _ in range(2):
        assert layout.derive("key", lambda it: calls.append(it) or 7) == 7
    assert calls == [layout]


def test_to_the_same_device_is_the_same_object() -> None:
    layout = SequenceLayout.of([2])
    assert layout.to("cpu") is layout
    assert layout.to("meta").offsets.device.type == "meta"


def test_refuses_no_sequence_and_an_empty_one() -> None:
    with pytest.raises(InputError, match="holds no sequence"):
        SequenceLayout.of([])
    with pytest.raises(InputError, match="sequence 1 has length 0; each must have at least one token"):
        pack([[1], []])
