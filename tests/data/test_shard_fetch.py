from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from modernbert.data import shard_fetch
from modernbert.data.shard_fetch import fetch_shards, has_shards
from modernbert.data.shards import TokenShards, write_shards
from tests.data.scaffold import Bytes, content, refusal

URL = "memory://bucket/wiki"


@pytest.fixture
def written(tmp_path: Path) -> TokenShards:
    (tmp_path / "text.txt").write_text("".join(f"line number {line}\n" for line in range(40)))
    return write_shards(tmp_path / "text.txt", Bytes(), tmp_path / "written", shard_tokens=200)


@pytest.fixture
def bucket(written: TokenShards) -> Iterator[Any]:
    """The shards behind a URL."""
    store = fsspec.filesystem("memory")
    store.store.clear()
    for path in written.folder.iterdir():
        store.pipe(f"/bucket/wiki/{path.name}", path.read_bytes())
    yield store
    store.store.clear()


def test_copies_all_and_opens_it(bucket: Any, written: TokenShards, tmp_path: Path) -> None:
    seen: list[Path] = []
    fetched = fetch_shards(URL, tmp_path / "own", on_progress=seen.append)
    assert content(tmp_path / "own") == content(written.folder)
    assert fetched.read(17).tolist() == written.read(17).tolist()
    assert len(seen) == len(content(written.folder)) - 1
    bucket.store.clear()
    assert fetch_shards(URL, tmp_path / "own").num_tokens == written.num_tokens, "nothing is asked again"


def test_goes_on_with_what_is_there(
    bucket: Any, written: TokenShards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    last = max(name for name in content(written.folder) if name.endswith(".tokens"))
    gone = bucket.cat(f"/bucket/wiki/{last}")
    bucket.rm(f"/bucket/wiki/{last}")
    message = refusal(lambda: fetch_shards(URL, tmp_path / "own"))
    assert message.startswith(f"`{URL}/{last}` could not be read (FileNotFoundError")
    assert not (tmp_path / "own" / "index.json").exists()
    bucket.pipe(f"/bucket/wiki/{last}", gone)
    copied: list[str] = []
    copy = shard_fetch._copy

    def noted(url: str, path: Path, checksum: str) -> None:
        copied.append(path.name)
        copy(url, path, checksum)

    monkeypatch.setattr(shard_fetch, "_copy", noted)
    fetch_shards(URL, tmp_path / "own")
    assert copied == [last, last.replace(".tokens", ".offsets.npy")]
    assert content(tmp_path / "own") == content(written.folder)


def test_refuses_what_is_damaged_or_unfinished(bucket: Any, tmp_path: Path) -> None:
    whole = bucket.cat("/bucket/wiki/00001.tokens")
    bucket.pipe("/bucket/wiki/00001.tokens", whole[:-1] + bytes([whole[-1] ^ 1]))
    message = refusal(lambda: fetch_shards(URL, tmp_path / "own"))
    assert message.startswith(f"`{URL}/00001.tokens` is damaged: it does not match its checksum")
    assert not list((tmp_path / "own").glob("*00001.tokens*")), "no damaged file stays"
    index = bucket.cat("/bucket/wiki/index.json")
    bucket.pipe("/bucket/wiki/index.json", index.replace(b'"complete": true', b'"complete": false'))
    assert f"the token shards in `{URL}` are not finished" in refusal(
        lambda: fetch_shards(URL, tmp_path / "own")
    )
    bucket.pipe("/bucket/wiki/index.json", index[:-9])
    assert f"`{URL}/index.json` is not valid JSON" in refusal(lambda: fetch_shards(URL, tmp_path / "own"))
    bucket.pipe("/bucket/wiki/index.json", b"{}")
    assert f"`{URL}/index.json` is not an index" in refusal(lambda: fetch_shards(URL, tmp_path / "own"))


def test_says_of_a_url_whether_shards_are_there(bucket: Any, tmp_path: Path) -> None:
    bucket.pipe("/bucket/text/a.txt", b"x\n")
    assert has_shards(URL)
    assert has_shards(f"{URL}/")
    for url in ("memory://bucket/text", "memory://bucket/text/*.txt", "hub://own/name", "s4://x"):
        assert not has_shards(url)
