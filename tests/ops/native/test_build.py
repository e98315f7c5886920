"""Compiling the native kernels: once, where and by what, and what is said where it cannot be."""

from __future__ import annotations

import logging
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from modernbert.errors import BackendError
from modernbert.ops.native import build, kernels

pytestmark = pytest.mark.skipif(kernels.refusal(64) is not None, reason=str(kernels.refusal(64)))


@pytest.fixture(autouse=True)
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Forget what this process has loaded, and compile into a folder of the test's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    build.library.cache_clear()
    yield
    build.library.cache_clear()


def why() -> str:
    found = build.library()
    assert isinstance(found, build.Unavailable)
    return str(found)


def test_it_is_compiled_once_and_again_if_damaged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="modernbert")
    build.library()
    (file,) = (tmp_path / "modernbert").iterdir()
    file.unlink()  # and not written over: it is in use
    file.write_bytes(b"")
    for _ in range(2):
        build.library.cache_clear()
        assert build.library().queries_of_a_chunk() % 12 == 0  # type: ignore[union-attr]
    assert list((tmp_path / "modernbert").iterdir()) == [file]
    assert len(caplog.messages) == 2
    for message in caplog.messages:
        assert message.startswith("compiled the native kernels in ")
        assert message.endswith(str(file))


def test_for_a_cpu_without_avx512(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The narrow form, which any CPU of today can run: the same results."""
    from modernbert.layout import SequenceLayout
    from tests.ops.native.test_kernels import attend, plainly, qkv_of

    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    layout = SequenceLayout.of((5, 129, 1, 300))
    qkv = qkv_of(layout, 2, 64)
    for window in (None, 64):
        found = attend(qkv, layout, window, 2)
        torch.testing.assert_close(found.double(), plainly(qkv, layout, window, 2), rtol=0, atol=2e-5)
    for given, options in ((qkv, {"half_products": True}), (qkv.bfloat16(), {})):
        with pytest.raises(
            BackendError, match=r"^the native kernels do not multiply bf16 here; .* give fp32$"
        ):
            attend(given, layout, None, 2, **options)
    x, weight = torch.randn(20, 64), torch.randn(64)
    expected = torch.nn.functional.layer_norm(x, (64,), weight, None, 1e-5)
    torch.testing.assert_close(kernels.normed(x, weight, 1e-5, torch.float32), expected, rtol=1e-5, atol=1e-5)
    assert kernels.coded(x).codes.dtype == torch.uint8


def test_a_cpu_with_neither(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    assert why() == "this CPU has neither AVX2 nor AVX512 (torch calls it DEFAULT)"


def test_another_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build.platform, "machine", lambda: "aarch64")
    assert why().startswith("they are written for x86 and Unix, not for aarch64")


def test_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(build.shutil, "which", lambda name: None)
    monkeypatch.setattr(build.importlib.util, "find_spec", lambda name: None)
    assert why() == "there is no C compiler (install gcc or clang, or `pip install ziglang`)"
    assert kernels.refusal(64) == why()


def test_a_named_compiler_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "no-such-compiler -O1")
    assert why() == "the C compiler `no-such-compiler` that `CC` names is not there"


def test_a_compiler_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "failing-cc"
    script.write_text("#!/bin/sh\necho $1 >&2\nexit 1\n")
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("CC", f"{script} --no-such-option")
    assert why().endswith("failed: --no-such-option")
    assert not list((tmp_path / "modernbert").iterdir())


@pytest.mark.parametrize("case", ["no home", "no folder"])
def test_a_cache_that_cannot_be_written(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", "" if case == "no home" else str(tmp_path / "file"))
    monkeypatch.setattr(build.Path, "home", no_home)
    monkeypatch.setattr(build.tempfile, "tempdir", str(tmp_path))
    caplog.set_level(logging.INFO, logger="modernbert")
    assert build.library().queries_of_a_chunk() % 12 == 0  # type: ignore[union-attr]
    assert caplog.messages[0].endswith(" s: not kept")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def no_home() -> Path:
    raise RuntimeError("Could not determine home directory.")
