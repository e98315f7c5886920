"""The machine: device, precision, seed, and its facts as a record to keep beside results."""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from types import FrameType
from typing import Any, Literal, TypeVar

import torch

from modernbert import process
from modernbert.errors import BackendError, ConfigError

Key = TypeVar("Key", bound=Hashable)

log = logging.getLogger(__name__)

Precision = Literal["auto", "fp32", "bf16"]
"""Of training; inference knows `fp16` too."""


def choose_device(name: str | None = None) -> torch.device:
    """Return the named device, or the best one there is: CUDA, then Apple's MPS, then the CPU.

    Raises:
        ConfigError: The name is no device.
        BackendError: There is no such device here.
    """
    if name in (None, "auto"):
        if torch.cuda.is_available():
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    if not re.fullmatch(r"cpu|mps|cuda(:\d+)?", str(name)):
        raise ConfigError(f"`{name}` is not a device; it must be `auto`, `cpu`, `mps`, `cuda`, `cuda:1` …")
    device = torch.device(str(name))
    counts = {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if (device.index or 0) >= counts.get(device.type, 1):
        raise BackendError(f"device `{device}` is not available here; use `auto` or `cpu`")
    return device


def uses_bf16(device: torch.device, precision: Precision) -> bool:
    """Whether training in `precision` computes its products in bf16; `auto` does if the device has them."""
    return precision == "bf16" or (
        precision == "auto"
        and device.type == "cuda"
        and torch.cuda.is_bf16_supported(including_emulation=False)
    )


def autocast(
    device: torch.device, precision: Precision | Literal["fp16"]
) -> contextlib.AbstractContextManager[None]:
    """Return the context in which a forward runs: bf16 or fp16 products, or nothing changed.

    `auto` takes bf16 on a GPU that computes in it natively, fp32 elsewhere. Weights stay fp32.
    """
    if precision == "fp16" or uses_bf16(device, precision):
        return torch.autocast(device.type, dtype=torch.float16 if precision == "fp16" else torch.bfloat16)
    return contextlib.nullcontext()


PEAK_TFLOPS: Mapping[str, float] = {
    "GB200": 2500.0,
    "B200": 2250.0,
    "H200 NVL": 835.5,
    "H200": 989.4,
    "H100 PCIe": 756.5,
    "H100 NVL": 835.5,
    "H100": 989.4,
    "H800": 989.4,
    "H20": 148.0,
    "A100": 311.9,
    "A800": 311.9,
    "A40": 149.7,
    "A30": 165.0,
    "A10": 125.0,
    "L40S": 362.0,
    "L40": 181.0,
    "L4": 121.0,
    "RTX 5090": 209.5,
    "RTX 4090": 165.2,
    "RTX 3090": 71.0,
    "RTX A6000": 154.8,
    "MI300X": 1307.4,
}
"""Dense bf16 products with fp32 sums, in 10^12 operations a second, by the words of the device's name, as its
maker states them. Of two entries that fit, the first holds."""


def peak_tflops(device_name: str) -> float | None:
    """Return a device's entry in `PEAK_TFLOPS`, or None: an unknown device, or a slice of one (MIG)."""
    words = set(re.findall(r"\w+", device_name))
    if "MIG" in words:
        return None
    return next((peak for name, peak in PEAK_TFLOPS.items() if words.issuperset(name.split())), None)


def peak_memory(device: torch.device) -> int | None:
    """Return the most memory in use, in bytes.

    On CUDA: what tensors took since the last call. On MPS: what the driver holds now. On a CPU: what the
    process took since it began; None where the system does not say.
    """
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        return peak
    if device.type == "mps":
        return torch.mps.driver_allocated_memory()
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what was asked of it, so that a clock can be read."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def timed(run: Callable[[], object], device: torch.device) -> float:
    """Return the seconds that some work takes, the device's included."""
    synchronize(device)
    began = time.perf_counter()
    run()
    synchronize(device)
    return time.perf_counter() - began


def time_in_turn(
    runs: Mapping[Key, Callable[[], object]],
    turns: int,
    device: torch.device,
    *,
    clock: Callable[[Callable[[], object], torch.device], float] = timed,
) -> dict[Key, list[float]]:
    """Time several ways of doing the same work in turn, A B A B …, so that a drift of the machine hits all.

    Args:
        runs: What is timed; each has one turn before, which is not counted.
        turns: How often it is each one's turn.
        device: Which does the work.
        clock: Times one turn.

    Returns:
        What the clock said of each turn.
    """
    times: dict[Key, list[float]] = {key: [] for key in runs}
    for is_counted in [False] + [True] * turns:
        for key, run in runs.items():
            found = clock(run, device)
            if is_counted:
                times[key].append(found)
    return times


@contextlib.contextmanager
def deterministic(is_wanted: bool) -> Iterator[None]:
    """Let torch compute the same bits each time while the block runs, if that is wanted.

    On a GPU the backward pass of attention is slower then, and cuBLAS needs a setting, which it reads when it
    is first used.

    Raises:
        RuntimeError: From torch, at the first operation that has no deterministic form.
    """
    if not is_wanted:
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


class StopRequest:
    """Whether a signal asked for a stop: its `name`, or None."""

    name: str | None = None


@contextlib.contextmanager
def stop_signals() -> Iterator[StopRequest]:
    """Let Ctrl-C and SIGTERM ask for an orderly stop; a second one, of either, acts at once.

    Not so in one of several processes: it may get the same signal from the launcher and from the system.
    """
    stop = StopRequest()
    before: dict[int, Any] = {}

    def give_back() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def ask(number: int, frame: FrameType | None) -> None:
        stop.name = signal.Signals(number).name
        if process.is_launched():
            log.warning("%s: saving after this step, then stopping", stop.name)
            return
        give_back()
        log.warning("%s: saving after this step, then stopping; a second one stops at once", stop.name)

    try:
        if threading.current_thread() is threading.main_thread():  # no other thread may catch signals
            for number in (signal.SIGINT, signal.SIGTERM):
                before[number] = signal.getsignal(number)
                signal.signal(number, ask)
        yield stop
    finally:
        give_back()


def machine_facts(device: torch.device | None = None, packages: Sequence[str] = ()) -> dict[str, Any]:
    """Describe machine, versions and commit: what a figure is worth nothing without.

    Args:
        device: Which does the work.
        packages: Others whose versions are told, where they are installed.
    """
    from modernbert import __version__

    facts: dict[str, Any] = {
        "modernbert": __version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu_name(),
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }
    if device is not None:
        facts["device"] = str(device)
    if torch.cuda.is_available():
        facts |= {
            "gpu": torch.cuda.get_device_name(),
            "gpu_count": torch.cuda.device_count(),
            "cuda": torch.version.cuda,
        }
    for name in packages:
        with contextlib.suppress(metadata.PackageNotFoundError):
            facts[name] = metadata.version(name)
    return facts


def _commit() -> str | None:
    """Return the checkout's commit, with `+` if files differ from it.

    Elsewhere: what MODERNBERT_COMMIT says, for a copy without its repository, or None.
    """
    here = Path(__file__)

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(here.parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", here.name)  # else the commit is that of a repository around us
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("MODERNBERT_COMMIT")


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
        platform.processor(),
    )
