"""Files are whole or absent, whatever happens in the middle, and a refusal of the disk says what to do."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

import pytest

from modernbert import files
from modernbert.errors import InputError, StorageError


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def refusal(number: int) -> OSError:
    return OSError(number, os.strerror(number))


def fail_after_writing(path: Path, error: BaseException) -> None:
    path.write_text("half")
    raise error


class TestAtomicFolder:
    def test_appears_whole_when_the_block_ends(self, tmp_path: Path) -> None:
        target = tmp_path / "deep" / "new"
        with files.atomic_folder(target) as temporary:
            (temporary / "sub").mkdir()
            (temporary / "sub" / "a").write_text("x")
            assert not target.exists()
        assert (target / "sub" / "a").read_text() == "x"
        assert names(target.parent) == ["new"]

    @pytest.mark.parametrize("error", [RuntimeError("stop"), KeyboardInterrupt(), refusal(errno.EIO)])
    def test_a_failure_leaves_nothing(self, error: BaseException, tmp_path: Path) -> None:
        with pytest.raises(type(error)) as caught, files.atomic_folder(tmp_path / "new") as temporary:
            fail_after_writing(temporary / "a", error)
        assert caught.value is error
        assert names(tmp_path) == []

    def test_what_a_killed_process_left_is_replaced(self, tmp_path: Path) -> None:
        (tmp_path / ".new.partial").mkdir()
        (tmp_path / ".new.partial" / "old").write_text("x")
        with files.atomic_folder(tmp_path / "new") as temporary:
            (temporary / "a").write_text("x")
        assert names(tmp_path) == ["new"]
        assert names(tmp_path / "new") == ["a"]

    @pytest.mark.parametrize("is_folder", [True, False])
    def test_refuses_one_that_exists(self, is_folder: bool, tmp_path: Path) -> None:
        target = tmp_path / "old"
        target.mkdir() if is_folder else target.write_text("x")
        with (
            pytest.raises(StorageError, match="exists already; it must be new; remove it or choose another"),
            files.atomic_folder(target),
        ):
            pytest.fail("the block must not run")
        assert names(tmp_path) == ["old"]

    def test_a_full_disk_while_it_is_forced_out_leaves_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(descriptor: int) -> None:
            raise refusal(errno.ENOSPC)

        monkeypatch.setattr(os, "fsync", full)
        with (
            pytest.raises(StorageError, match="disk is full"),
            files.atomic_folder(tmp_path / "new") as temporary,
        ):
            (temporary / "a").write_text("x")
        assert names(tmp_path) == []

    def test_all_of_it_is_on_the_disk_before_it_has_its_name(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        target, synced = tmp_path / "new", []

        def note(descriptor: int) -> None:
            path = Path(f"/proc/self/fd/{descriptor}").readlink()
            synced.append((path.relative_to(tmp_path).as_posix(), target.exists()))

        if not Path("/proc/self/fd").exists():
            pytest.skip("needs /proc to see which file is meant")
        monkeypatch.setattr(os, "fsync", note)
        with files.atomic_folder(target) as temporary:
            (temporary / "sub").mkdir()
            (temporary / "sub" / "a").write_text("x")
        hidden = ".new.partial"
        before = {(hidden, False), (f"{hidden}/sub", False), (f"{hidden}/sub/a", False)}
        assert set(synced) == {*before, (".", True)}


class TestAtomicFile:
    def test_replaces_what_was_there_when_the_block_ends(self, tmp_path: Path) -> None:
        target = tmp_path / "deep" / "a.txt"
        files.write_text(target, "old")
        with files.atomic_file(target) as temporary:
            temporary.write_text("new")
            assert target.read_text() == "old"
        assert target.read_text() == "new"
        assert names(target.parent) == ["a.txt"]

    def test_who_reads_the_old_one_reads_it_to_its_end(self, tmp_path: Path) -> None:
        target = tmp_path / "a.txt"
        target.write_text("old")
        with target.open() as reader:
            files.write_text(target, "new")
            assert reader.read() == "old"
        assert target.read_text() == "new"

    @pytest.mark.parametrize("error", [RuntimeError("stop"), KeyboardInterrupt(), refusal(errno.EIO)])
    def test_a_failure_leaves_what_was_there(self, error: BaseException, tmp_path: Path) -> None:
        target = tmp_path / "a.txt"
        target.write_text("old")
        with pytest.raises(type(error)), files.atomic_file(target) as temporary:
            fail_after_writing(temporary, error)
        assert target.read_text() == "old"
        assert names(tmp_path) == ["a.txt"]

    def test_a_failure_before_the_first_byte_is_told_as_it_is(self, tmp_path: Path) -> None:
        with pytest.raises(RuntimeError, match="stop"), files.atomic_file(tmp_path / "a.txt"):
            raise RuntimeError("stop")
        assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "the disk is full; free space or choose a folder on another disk"),
        (errno.EDQUOT, "your quota is used up; free space or choose a folder on another disk"),
        (errno.EACCES, "there is no permission to write there; choose another folder"),
        (errno.EPERM, "there is no permission to write there; choose another folder"),
        (errno.EROFS, "the file system is read-only; choose another folder"),
    ],
)
def test_a_refusal_of_the_disk_says_what_to_do(number: int, remedy: str, tmp_path: Path) -> None:
    path = tmp_path / "a"
    with pytest.raises(StorageError) as caught, files.storage_errors(path):
        raise refusal(number)
    assert str(caught.value) == f"could not write `{path}`: {remedy}; nothing written before was lost"
    assert isinstance(caught.value.__cause__, OSError)


def test_other_errors_pass_as_they_are(tmp_path: Path) -> None:
    for error in (refusal(errno.EIO), ValueError("no"), StorageError("said already")):
        with pytest.raises(type(error)) as caught, files.storage_errors(tmp_path):
            raise error
        assert caught.value is error


def test_a_file_in_the_place_of_a_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for target in (tmp_path / "file" / "a", tmp_path / "file" / "b" / "a"):
        with pytest.raises(StorageError, match="a part of this path is a file, not a folder; choose another"):
            files.write_text(target, "x")
        with (
            pytest.raises(StorageError, match="a part of this path is a file, not a folder; choose another"),
            files.atomic_folder(target),
        ):
            pytest.fail("the block must not run")
    (tmp_path / "folder").mkdir()
    with pytest.raises(StorageError, match="it is a folder; choose another name"):
        files.write_text(tmp_path / "folder", "x")
    assert names(tmp_path) == ["file", "folder"]


def test_a_folder_without_permission_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, *_: object, **__: object) -> None:
        raise refusal(errno.EACCES)

    monkeypatch.setattr(Path, "mkdir", refuse)  # a real folder would let root in
    with pytest.raises(StorageError, match="no permission to write there"):
        files.write_text(tmp_path / "a", "x")
    with (
        pytest.raises(StorageError, match="no permission to write there"),
        files.atomic_folder(tmp_path / "a"),
    ):
        pytest.fail("the block must not run")


class TestJson:
    def test_what_is_written_is_read(self, tmp_path: Path) -> None:
        value = {"text": "größer\n", "numbers": [1, 2.5, None, True]}
        files.write_json(tmp_path / "a.json", value)
        assert files.read_json(tmp_path / "a.json") == value
        content = (tmp_path / "a.json").read_text(encoding="utf-8")
        assert "größer" in content
        assert content.endswith("}\n")

    @pytest.mark.parametrize("content", [b"", b'{"a": 1', b"{'a': 1}", b"\xff\xfe"])
    def test_refuses_what_is_no_json(self, content: bytes, tmp_path: Path) -> None:
        path = tmp_path / "a.json"
        path.write_bytes(content)
        with pytest.raises(InputError) as caught:
            files.read_json(path)
        assert str(caught.value).startswith(f"`{path}` is not valid JSON (")
        assert str(caught.value).endswith("; it may be cut short, write it again")

    def test_refuses_what_is_no_file(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"no\.json` does not exist"):
            files.read_json(tmp_path / "no.json")
        with pytest.raises(InputError, match=r"could not be read \(Is a directory\); check the path"):
            files.read_json(tmp_path)


def test_checksum(tmp_path: Path) -> None:
    content = bytes(range(256)) * 5000
    (tmp_path / "a").write_bytes(content)
    assert files.sha256(tmp_path / "a") == hashlib.sha256(content).hexdigest()
