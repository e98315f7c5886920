"""The inverted index is the sort of all products, whatever was added, deleted and opened again before."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modernbert.errors import ConfigError, InputError, StorageError
from modernbert.files import hold
from modernbert.retrieve.sparse import SparseHits, SparseVectors
from modernbert.retrieve.sparse_files import MANIFEST

scipy_sparse = pytest.importorskip("scipy.sparse")

DIM = 4
ROW = st.lists(st.integers(0, 2), min_size=DIM, max_size=DIM)  # many ties, and products that are exact
IDS = st.lists(st.sampled_from("abcdefgh"), max_size=4, unique=True)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.dictionaries(st.sampled_from("abcdefgh"), ROW, max_size=4)),
        st.tuples(st.just("delete"), IDS),
        st.tuples(st.sampled_from(["open", "compact"]), st.none()),
    ),
    max_size=12,
)


def matrix(rows: Any) -> Any:
    return scipy_sparse.csr_matrix(np.array(list(rows), np.float32).reshape(-1, DIM))


@given(steps=STEPS, query=ROW, k=st.integers(1, 9))
def test_what_is_found_is_what_is_there(steps: list[Any], query: list[int], k: int) -> None:
    with TemporaryDirectory() as folder:
        index = SparseVectors.create(Path(folder) / "index", DIM)
        there: dict[str, list[int]] = {}
        for step, what in steps:
            if step == "add":
                new = {id: row for id, row in what.items() if id not in there}
                index.add(list(new), matrix(new.values()))
                there |= new
            elif step == "delete":
                assert index.delete(what) == len(there.keys() & set(what))
                there = {id: row for id, row in there.items() if id not in what}
            elif step == "compact":
                index.compact()
                assert len(list(index.folder.glob("segment-*"))) == bool(there)
            else:
                index = SparseVectors.open(index.folder)
            assert (len(index), index.ids()) == (len(there), list(there))
            products = {id: int(np.dot(row, query)) for id, row in there.items()}
            expected = sorted((id for id in there if products[id]), key=lambda id: -products[id])[:k]
            hits = index.search(matrix([query]), k)
            assert hits.ids == expected
            assert hits.scores.tolist() == [products[id] for id in expected]


@pytest.fixture
def index(tmp_path: Path) -> SparseVectors:
    index = SparseVectors.create(tmp_path / "index", DIM)
    index.add(["a", "b"], matrix([[1, 0, 0, 2], [0, 3, 0, 0]]))
    index.add(["c"], matrix([[1, 1, 0, 0]]))
    index.delete(["b"])
    return index


def found(index: SparseVectors) -> SparseHits:
    return index.search(matrix([[1, 1, 1, 1]]), 9)


def test_any_kind_of_sparse_matrix(tmp_path: Path) -> None:
    index = SparseVectors.create(tmp_path, 3)
    twice = scipy_sparse.coo_array(([1.0, 1.5, 0.0], ([0, 0, 0], [1, 1, 2])), shape=(1, 3))
    index.add(["a"], twice)
    assert index.search(scipy_sparse.csc_array(np.array([[0.0, 2.0, 1.0]])), 1).scores.tolist() == [5.0]


def test_ids_are_any_strings(tmp_path: Path) -> None:
    ids = ["", "a\0", "ä\ud800", "x" * 300]
    SparseVectors.create(tmp_path, DIM).add(ids, matrix(np.ones((4, DIM))))
    assert SparseVectors.open(tmp_path).ids() == ids


def test_two_objects_write_in_turn(index: SparseVectors) -> None:
    other = SparseVectors.open(index.folder)
    other.add(["d"], matrix([[0, 0, 1, 0]]))
    index.delete(["a"])
    index.compact()
    other.add(["e"], matrix([[0, 0, 0, 1]]))
    assert SparseVectors.open(index.folder).ids() == other.ids() == ["c", "d", "e"]


def test_while_another_writes(index: SparseVectors) -> None:
    with hold(index.folder, ""), pytest.raises(ConfigError, match=r"another process writes to `.*index`"):
        index.delete(["a"])
    assert SparseVectors.open(index.folder).ids() == ["a", "c"]


@pytest.mark.parametrize(
    ("work", "step"), [("add", 0), ("add", 1), ("delete", 0), ("compact", 0), ("compact", 1), ("compact", 2)]
)
def test_what_is_interrupted_loses_nothing(
    work: str, step: int, index: SparseVectors, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends before a segment or the manifest is in its place, or before the old segments are removed."""
    calls: dict[str, Callable[[], object]] = {
        "add": lambda: index.add(["d"], matrix([[0, 0, 5, 0]])),
        "delete": lambda: index.delete(["a"]),
        "compact": index.compact,
    }
    before, done, replace, unlink = found(index), [], Path.replace, Path.unlink

    def count(path: Path) -> None:
        if len(done) == step:
            raise KeyboardInterrupt
        done.append(path)

    def replaced(self: Path, target: Path) -> Path:
        count(target)
        return replace(self, target)

    def unlinked(self: Path, missing_ok: bool = False) -> None:
        if self.match("segment-*"):
            count(self)
        unlink(self, missing_ok=missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", replaced)
        patch.setattr(Path, "unlink", unlinked)
        with pytest.raises(KeyboardInterrupt):
            calls[work]()
    again = SparseVectors.open(index.folder)
    assert found(again).ids == before.ids
    assert found(again).scores.tolist() == before.scores.tolist()
    again.add(["e"], matrix([[9, 0, 0, 0]]))
    assert found(SparseVectors.open(index.folder)).ids == ["e", *before.ids]
    named = {entry["name"] for entry in json.loads((index.folder / MANIFEST).read_text())["segments"]}
    assert {path.name for path in index.folder.glob("segment-*")} == named


class TestDamage:
    @given(place=st.integers(0, 10**6), bit=st.integers(0, 7), which=st.integers(0, 2), is_cut=st.booleans())
    def test_is_refused_by_name(self, place: int, bit: int, which: int, is_cut: bool) -> None:
        with TemporaryDirectory() as folder:
            index = SparseVectors.create(folder, DIM)
            index.add(["a", "b"], matrix([[1, 0, 0, 2], [0, 3, 0, 0]]))
            index.add(["c"], matrix([[1, 1, 0, 0]]))
            path = sorted(each for each in Path(folder).iterdir() if each.name != ".lock")[which]
            content = bytearray(path.read_bytes())
            place %= len(content) - 1  # the manifest may lack its last line break
            if is_cut:
                del content[place:]
            else:
                content[place] ^= 1 << bit
            path.write_bytes(content)
            with pytest.raises(InputError, match=re.escape(str(path))):
                SparseVectors.open(folder)

    def test_a_segment_that_is_missing(self, index: SparseVectors) -> None:
        (index.folder / "segment-000002.npz").unlink()
        with pytest.raises(InputError, match=r"segment-000002.npz` is missing from the index"):
            SparseVectors.open(index.folder)

    def test_another_version(self, index: SparseVectors, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("modernbert.retrieve.sparse_files._FORMAT", 2)
        with pytest.raises(InputError, match="has the format 1; it must be 2"):
            SparseVectors.open(index.folder)


class TestRefusals:
    def test_no_index(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"sparse.json` does not exist"):
            SparseVectors.open(tmp_path)

    def test_create(self, index: SparseVectors, tmp_path: Path) -> None:
        with pytest.raises(StorageError, match="holds an index already"):
            SparseVectors.create(index.folder, DIM)
        with pytest.raises(InputError, match="`dim` is 0"):
            SparseVectors.create(tmp_path / "none", 0)

    @pytest.mark.parametrize(
        ("ids", "rows", "message"),
        [
            (["a"], [[1, 0, 0, 0]], "id 0, 'a', is taken, or given twice"),
            (["x", "x"], [[1, 0, 0, 0]] * 2, "id 1, 'x', is taken, or given twice"),
            ([7], [[1, 0, 0, 0]], "id 0, 7, is no string"),
            (["x"], [[1, 0, 0, 0]] * 2, "there are 1 ids for 2 vectors"),
            (["x"], [[-1, 0, 0, 0]], "numbers below 0"),
            (["x"], [[np.nan, 0, 0, 0]], "not finite"),
            (["x"], [[np.inf, 0, 0, 0]], "not finite"),
        ],
    )
    def test_add(self, ids: list[Any], rows: list[Any], message: str, index: SparseVectors) -> None:
        with pytest.raises(InputError, match=message):
            index.add(ids, matrix(rows))
        assert SparseVectors.open(index.folder).ids() == ["a", "c"]

    def test_what_is_no_sparse_matrix_of_the_width(self, index: SparseVectors) -> None:
        with pytest.raises(InputError, match=r"\[1, 4\] \(ndarray\); they must be a sparse matrix"):
            index.add(["x"], np.ones((1, DIM)))
        with pytest.raises(InputError, match="with 4 columns"):
            index.search(scipy_sparse.csr_matrix((1, 5)), 1)

    def test_search(self, index: SparseVectors) -> None:
        with pytest.raises(InputError, match="has 2 rows and `k` is 1"):
            index.search(matrix([[1, 0, 0, 0]] * 2), 1)
        with pytest.raises(InputError, match="has 1 rows and `k` is 0"):
            index.search(matrix([[1, 0, 0, 0]]), 0)
