"""Where a model or tokenizer is: a folder or a hub id, and what is said when neither is found. No network."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import huggingface_hub
import pytest
from huggingface_hub import errors

from modernbert import hub
from modernbert.errors import CheckpointError, StorageError

NAME = "answerdotai/ModernBERT-base"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
NO_FOLDER = (
    "is no folder; it must be a folder, or a hub id such as `answerdotai/ModernBERT-base`; check the path"
)


@pytest.fixture
def cached(tmp_path: Path) -> Path:
    """A hub cache that holds one revision of one model."""
    model = tmp_path / "cache" / "models--answerdotai--ModernBERT-base"
    snapshot = model / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text(COMMIT)
    return tmp_path / "cache"


def find(
    name: str | Path,
    *,
    patterns: Sequence[str] = ("*.json",),
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    token: str | None = None,
) -> Path:
    return hub.find(
        name,
        patterns=patterns,
        revision=revision,
        cache_dir=cache_dir,
        local_files_only=local_files_only,
        token=token,
    )


def fail_with(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def snapshot_download(*args: Any, **options: Any) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)


def refusal(kind: type[errors.HfHubHTTPError], text: str) -> errors.HfHubHTTPError:
    return kind(text, response=Mock(headers={}))


def test_a_folder_is_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find(tmp_path) == find(str(tmp_path)) == tmp_path
    (tmp_path / "answerdotai/ModernBERT-base").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert find(NAME) == Path(NAME)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find("~/answerdotai") == tmp_path / "answerdotai"


def test_what_is_asked_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def snapshot_download(name: str, **options: Any) -> str:
        asked.update(name=name, **options)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    cache = tmp_path / "cache"
    found = find(NAME, patterns=("a.json", "b*"), revision="v1", cache_dir=cache, token="secret")
    assert found == tmp_path
    assert asked == {
        "name": NAME,
        "revision": "v1",
        "cache_dir": cache,
        "local_files_only": False,
        "token": "secret",
        "allow_patterns": ["a.json", "b*"],
    }


def test_the_cache_serves_without_network(cached: Path) -> None:
    snapshot = find(NAME, cache_dir=cached, local_files_only=True)
    assert snapshot.name == COMMIT
    assert find(NAME, revision=COMMIT, cache_dir=str(cached), local_files_only=True) == snapshot


def test_an_empty_cache_without_network(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as raised:
        find(NAME, cache_dir=tmp_path, local_files_only=True)
    assert str(raised.value) == (
        f"`{NAME}` is no folder here, and not complete in `{tmp_path}`; the hub was out of reach "
        "(`local_files_only`); fetch it once with the network, or give a folder"
    )


def test_a_revision_that_is_not_in_the_cache(cached: Path) -> None:
    with pytest.raises(CheckpointError, match="not complete in"):
        find(NAME, revision="v2", cache_dir=cached, local_files_only=True)


@pytest.mark.parametrize(
    "name",
    [
        *("runs/tiny/step-10", "./tiny", "/nowhere/tiny", "~/tiny-model", "C:\\tiny", "tiny--model", "tiny."),
        *(Path("no/model"), Path("a/file"), "a/file"),  # as text, the first would be a hub id
    ],
)
def test_what_can_be_no_hub_id_is_not_asked_for(
    name: str | Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a").mkdir()
    Path("a/file").touch()
    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", Mock(side_effect=AssertionError))
    with pytest.raises(CheckpointError) as raised:
        find(name, cache_dir=tmp_path)
    assert str(raised.value) == f"`{name}` {NO_FOLDER}"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            refusal(errors.GatedRepoError, "403"),
            f"`{NAME}` is gated on the hub; you must have been granted access; ask for it at "
            f"https://huggingface.co/{NAME}, then run `hf auth login` or pass `token`",
        ),
        (
            refusal(errors.RepositoryNotFoundError, "404"),
            f"`{NAME}` is neither a folder here nor a repository on the hub that you can see; check the "
            "spelling; if it is private, run `hf auth login` or pass `token`",
        ),
        (
            refusal(errors.RevisionNotFoundError, "404"),
            f"`{NAME}` has no revision `v9`; it must be a branch, tag or commit; see "
            f"https://huggingface.co/{NAME}/commits",
        ),
        (
            refusal(errors.HfHubHTTPError, "503 Service Unavailable\nmore"),
            f"`{NAME}` could not be fetched from the hub: 503 Service Unavailable; check the connection and "
            "try again, or give a folder",
        ),
        (
            errors.HTTPError("the read timed out"),  # type: ignore[attr-defined]
            f"`{NAME}` could not be fetched from the hub: the read timed out; check the connection and try "
            "again, or give a folder",
        ),
        (
            ConnectionError(),
            f"`{NAME}` could not be fetched from the hub: ConnectionError; check the connection and try "
            "again, or give a folder",
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_what_the_hub_may_refuse(error: Exception, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_with(monkeypatch, error)
    with pytest.raises(CheckpointError) as raised:
        find(NAME, revision="v9", token="secret")
    assert str(raised.value) == message
    assert raised.value.__cause__ is error


def test_the_hub_out_of_reach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    error = errors.LocalEntryNotFoundError("Got: ConnectError")
    error.__cause__ = ConnectionError("name or service not known")
    fail_with(monkeypatch, error)
    with pytest.raises(
        CheckpointError, match=r"the hub was out of reach \(name or service not known\); fetch it"
    ):
        find(NAME, cache_dir=tmp_path)


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_with(monkeypatch, OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(StorageError, match=f"could not write `{tmp_path}`: the disk is full; free space"):
        find(NAME, cache_dir=tmp_path)
