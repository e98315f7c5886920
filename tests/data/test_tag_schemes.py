from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given

from modernbert.data.tag_schemes import Scheme, find_scheme, tag_names, to_bio

# Entities, each with its kind and length, and how many words outside stand before it.
ENTITIES = st.lists(
    st.tuples(st.integers(0, 2), st.sampled_from(["PER", "LOC"]), st.integers(1, 4)), max_size=6
)


def spell(entities: list[tuple[int, str, int]], scheme: Scheme) -> list[str]:
    """Write entities in a scheme."""
    marks = {"BIO": "BIIB", "BIOES": "BIES", "BILOU": "BILU", "BMES": "BMES", "IOB1": "IIII"}[scheme]
    tags: list[str] = []
    for gap, kind, length in entities:
        tags += ["O"] * gap
        follows_its_kind = scheme == "IOB1" and tags[-1:] and tags[-1][2:] == kind
        own = [marks[0], *marks[1] * (length - 2), marks[2]] if length > 1 else [marks[3]]
        tags += [f"{mark}-{kind}" for mark in (["B", *own[1:]] if follows_its_kind else own)]
    return tags


@pytest.mark.parametrize("scheme", ["BIO", "IOB1", "BIOES", "BILOU", "BMES"])
@given(entities=ENTITIES)
def test_every_scheme_is_read_as_the_same_bio(scheme: Scheme, entities: list[tuple[int, str, int]]) -> None:
    assert to_bio(spell(entities, scheme), scheme) == (tuple(spell(entities, "BIO")), 0)


@pytest.mark.parametrize(
    ("tags", "scheme"),
    [
        ("O O", "BIO"),
        ("B-X I-X O", "BIO"),
        ("I-X O B-X", "BIO"),
        ("O I-X I-X B-X", "IOB1"),
        ("I-X I-Y", "IOB1"),
        ("B-X E-X O S-Y", "BIOES"),
        ("S-X O", "BIOES"),
        ("B-X L-X U-Y", "BILOU"),
        ("B-X M-X E-X S-X", "BMES"),
        ("NOUN VERB X", "plain"),
        ("LABEL_0 LABEL_3", "plain"),
        ("O PER PER", "plain"),
        ("-LRB- O", "plain"),
    ],
)
def test_a_scheme_is_known_by_its_tags(tags: str, scheme: Scheme) -> None:
    assert find_scheme([["O"], tags.split()]) == scheme


@pytest.mark.parametrize(
    ("tags", "scheme", "mended", "number"),
    [
        ("O I-X I-X", "BIO", "O B-X I-X", 1),
        ("B-X I-Y I-Y", "BIO", "B-X B-Y I-Y", 1),
        ("E-X O L-Y", "BIOES", "B-X O B-Y", 2),
        ("B-X E-X I-X", "BIOES", "B-X I-X B-X", 1),
        ("S-X S-X", "BIOES", "B-X B-X", 0),
        ("I-X B-X", "IOB1", "B-X B-X", 0),
        ("I-X noun", "plain", "I-X noun", 0),
    ],
)
def test_what_cannot_begin_an_entity_begins_one(tags: str, scheme: Scheme, mended: str, number: int) -> None:
    assert to_bio(tags.split(), scheme) == (tuple(mended.split()), number)


@given(
    st.lists(
        st.sampled_from(["O", "B-X", "I-X", "E-X", "S-X", "B-Y", "I-Y", "E-Y", "S-Y"]), min_size=1, max_size=8
    )
)
def test_entities_are_those_that_seqeval_sees(tags: list[str]) -> None:
    labelling = pytest.importorskip("seqeval.metrics.sequence_labeling")
    mended, _ = to_bio(tags, "BIOES")
    assert labelling.get_entities(list(mended)) == labelling.get_entities(tags)


@pytest.mark.parametrize(
    ("tags", "names"),
    [
        ("O B-Y I-X", "O B-X I-X B-Y I-Y"),
        ("B-X", "O B-X I-X"),
        ("O", "O"),
        ("VERB NOUN O", "NOUN O VERB"),
        ("LABEL_10 LABEL_2", "LABEL_2 LABEL_10"),
    ],
)
def test_names_have_an_order_of_their_own(tags: str, names: str) -> None:
    assert tag_names([tags.split(), []]) == names.split()
