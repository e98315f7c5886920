"""Compile the C files beside this module, once for each kind of machine, and load them."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import importlib.util
import logging
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from functools import cache
from pathlib import Path

import torch

log = logging.getLogger(__name__)

SOURCES = ("attention.c", "rows.c")
FOLDER = Path(__file__).parent
TIMEOUT_SECONDS = 120


class Unavailable(Exception):
    """Why there are no kernels; `str` of it completes "not native: …"."""


@cache
def library() -> ctypes.CDLL | Unavailable:
    """Return the compiled kernels, or why they cannot be had. What was compiled once is kept."""
    try:
        command = (*_compiler(), "-O3", "-std=gnu11", "-shared", "-fPIC", *_flags())
        parallel()  # without which they are of no use
        return _kept(command)
    except Unavailable as reason:
        return reason


@cache
def parallel() -> int:
    """Return the address of the function by which torch's own OpenMP runs another on all its threads.

    Raises:
        Unavailable: This build of torch has another way to use threads.
    """
    try:
        found = ctypes.cast(ctypes.CDLL(None).GOMP_parallel, ctypes.c_void_p).value
    except (AttributeError, OSError, TypeError):  # the last on Windows
        found = None
    if found is None:
        raise Unavailable("this build of torch is without OpenMP")
    return found


def multiplies_halves() -> bool:
    """Whether the kernels multiply bf16, twice as fast as fp32: if the CPU does and torch uses AVX512."""
    return torch.backends.cpu.get_cpu_capability() == "AVX512" and bool(torch.cpu._is_avx512_bf16_supported())


def _flags() -> tuple[str, ...]:
    """Say what this CPU can do; the same binary may lie in a folder that other machines share."""
    if platform.machine().lower() not in ("x86_64", "amd64") or sys.platform == "win32":
        raise Unavailable(f"they are written for x86 and Unix, not for {platform.machine()}, {sys.platform}")
    capability = torch.backends.cpu.get_cpu_capability()
    if capability == "AVX512":
        halves = ("-mavx512bf16",) if multiplies_halves() else ()
        width = "-mprefer-vector-width=512"
        return ("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma", width, *halves)
    if capability == "AVX2":
        return ("-mavx2", "-mfma")
    raise Unavailable(f"this CPU has neither AVX2 nor AVX512 (torch calls it {capability})")


def _compiler() -> tuple[str, ...]:
    named = os.environ.get("CC", "").split()  # it may bring options
    for name, *options in [named] if named else [["cc"], ["gcc"], ["clang"]]:
        if found := shutil.which(name):
            return (found, *options)
    if not named and importlib.util.find_spec("ziglang"):
        return (sys.executable, "-m", "ziglang", "cc")
    raise Unavailable(
        f"the C compiler `{named[0]}` that `CC` names is not there"
        if named
        else "there is no C compiler (install gcc or clang, or `pip install ziglang`)"
    )


def _kept(command: tuple[str, ...]) -> ctypes.CDLL:
    """Load what a command makes of the sources; it is made now if it is not there, or damaged."""
    files = sorted((*FOLDER.glob("*.c"), *FOLDER.glob("*.h")))
    digest = hashlib.sha256("\0".join((*command, *(file.read_text() for file in files))).encode())
    name = f"native-{digest.hexdigest()[:16]}.so"
    cache: Path | None
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "modernbert"
        with contextlib.suppress(OSError):
            return ctypes.CDLL(str(cache / name))
        cache.mkdir(parents=True, exist_ok=True)
        place = tempfile.TemporaryDirectory(dir=cache)
    except (OSError, RuntimeError):  # not ours to write, or no home: it serves this process alone
        cache, place = None, tempfile.TemporaryDirectory()
    with place:
        began, made = time.monotonic(), Path(place.name, name)
        _run((*command, "-o", str(made), *(str(FOLDER / source) for source in SOURCES), "-lm"))
        loaded = _load(made)
        if cache is not None:
            made.replace(cache / name)  # whole or not at all, whoever else compiles it now
    kept = "not kept" if cache is None else cache / name
    log.info("compiled the native kernels in %.1f s: %s", time.monotonic() - began, kept)
    return loaded


def _run(command: tuple[str, ...]) -> None:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=TIMEOUT_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"`{command[0]}` could not be run: {error}") from None
    if done.returncode:
        raise Unavailable(f"`{' '.join(command)}` failed: {done.stderr.strip()[-500:]}")


def _load(path: Path) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise Unavailable(f"`{path}` could not be loaded: {error}") from None
