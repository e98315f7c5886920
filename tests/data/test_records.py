from __future__ import annotations

from modernbert.data.records import Remark, Remarks


def test_remarks_are_counted_by_kind_with_the_first_place() -> None:
    remarks = Remarks()
    assert list(remarks) == []
    for kind, place in (("empty text", "line 3"), ("duplicate", "line 4"), ("empty text", "line 9")):
        remarks.add(kind, place)
    first, second = remarks
    assert first == Remark("empty text", 2, "line 3")
    assert first.summary() == "2 × empty text (first: line 3)"
    assert second.number == 1
