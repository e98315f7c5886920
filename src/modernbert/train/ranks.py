"""The processes of a run: which one this is, how they agree, and what they wait for one another."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from itertools import zip_longest
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from modernbert import process, runtime
from modernbert.errors import BackendError, ConfigError

Value = TypeVar("Value")

_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_POLL_SECONDS = 0.2


@dataclass(frozen=True, eq=False)
class Ranks:
    """This process among all of a run. Alone, everything here is a plain no-operation.

    Attributes:
        rank: Number of this process, from 0.
        size: Processes of the run.
        local_size: Processes on this machine.
        control: gloo group for what the hosts agree on; None alone.
        saving: gloo group of its own for checkpoints, which are written beside the training; None alone.
        store: What the processes read and write by name; None alone.
    """

    rank: int = 0
    size: int = 1
    local_size: int = 1
    control: dist.ProcessGroup | None = None
    saving: dist.ProcessGroup | None = None
    store: Store | None = None

    @property
    def is_first(self) -> bool:
        """Whether this process writes what only one should."""
        return self.rank == 0

    def share_of(self, count: int) -> range:
        """Return which of `count` things are this rank's: every `size`-th, from its own number on."""
        return range(self.rank, count, self.size)

    def turns(self, count: int) -> int:
        """Return how many things the busiest rank has."""
        return -(-count // self.size)

    def add(self, tensor: Tensor) -> Tensor:
        """Add up a tensor over all ranks, in place, on its own device."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def any(self, is_so: bool) -> bool:
        """Return whether it is so on any rank; each rank gets the same answer."""
        if self.control is None:
            return is_so
        found = torch.tensor(int(is_so))
        dist.all_reduce(found, dist.ReduceOp.MAX, group=self.control)
        return bool(found.item())

    def from_first(self, value: Value) -> Value:
        """Return the first rank's value on all of them; one that can be pickled."""
        if self.control is None:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self.control)
        return box[0]

    def to_first(self, value: Value) -> list[Value]:
        """Return the values of all ranks, in their order, on the first; nothing on the others."""
        if self.control is None:
            return [value]
        values: list[Any] | None = [None] * self.size if self.is_first else None
        dist.gather_object(value, values, dst=0, group=self.control)
        return values or []

    def in_turn(self, count: int, compute: Callable[[int], Value]) -> list[Value]:
        """Compute so many things, each on one rank; return them in order on the first, nothing on the others.

        Each rank computes as many, as sharded weights need: one that has none left computes the first again,
        for nothing.
        """
        own = self.share_of(count)
        found = [compute(own[turn] if turn < len(own) else 0) for turn in range(self.turns(count))]
        gathered = self.to_first(found[: len(own)])
        return [it for turn in zip_longest(*gathered) for it in turn][:count]

    def meet(self) -> None:
        """Wait until every rank is here."""
        if self.control is not None:
            dist.barrier(group=self.control)

    @contextlib.contextmanager
    def first_before_others(self, name: str) -> Iterator[None]:
        """Let the first rank do the block, for as long as it takes, then all others.

        Args:
            name: Of the work, its own in the run.
        """
        if self.store is not None and not self.is_first:
            while not self.store.check([f"done/{name}"]):
                time.sleep(_POLL_SECONDS)
        yield
        if self.store is not None and self.is_first:
            self.store.set(f"done/{name}", "1")


ALONE = Ranks()
"""The only process of a run."""


@contextlib.contextmanager
def join(device: str, *, timeout_seconds: float) -> Iterator[tuple[Ranks, torch.device]]:
    """Join the processes that a launcher started, and take this process's device.

    Without a launcher, or as its only process, this is `ALONE` and nothing is set up.

    Args:
        device: See `runtime.choose_device`. `auto` and `cuda` take the GPU of the process's local rank.
        timeout_seconds: After so long without an answer of another rank, an operation fails.

    Raises:
        ConfigError: The launcher left out a variable, or `device` names one GPU for all processes.
        BackendError: There is no such device here, or the other processes did not come.
    """
    if not process.is_launched():
        yield ALONE, runtime.choose_device(device)
        return
    values = _environment()
    chosen = _local_device(device, values["LOCAL_RANK"])
    timeout = timedelta(seconds=timeout_seconds)
    shared, rank, size = next(rendezvous("env://", timeout=timeout))
    store = _fresh(shared, rank, size, timeout_seconds)
    backend = "cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo"
    dist.init_process_group(
        backend,
        store=PrefixStore("groups", store),
        rank=rank,
        world_size=size,
        timeout=timeout,
        device_id=chosen if chosen.type == "cuda" else None,
    )
    control, saving = (dist.new_group(backend="gloo", timeout=timeout) for _ in range(2))
    local_size = values["LOCAL_WORLD_SIZE"]
    yield Ranks(rank, size, local_size, control, saving, PrefixStore("run", store)), chosen
    # Not after an error: it would wait for ranks that will never come; the launcher ends them all.
    dist.destroy_process_group()


def _fresh(store: Store, rank: int, size: int, timeout_seconds: float) -> Store:
    """Return a part of the launcher's store that only the processes of now write to.

    After a restart torchrun's store still holds what the dead processes wrote, and a new one might connect to
    them. So each writes a name of its own; the first collects the names, and all confirm that it has theirs.

    Raises:
        BackendError: Some processes did not come.
    """
    name, deadline = uuid.uuid4().hex, time.monotonic() + timeout_seconds
    store.set(f"name/{rank}", name)
    while time.monotonic() < deadline:
        if rank == 0 and store.check([f"name/{other}" for other in range(size)]):
            names = [store.get(f"name/{other}").decode() for other in range(size)]
            store.set("names", ",".join(names))
        names = store.get("names").decode().split(",") if store.check(["names"]) else []
        if len(names) == size and names[rank] == name:
            part = hashlib.sha256(",".join(names).encode()).hexdigest()
            store.set(f"{part}/{rank}", "1")
            if store.check([f"{part}/{other}" for other in range(size)]):
                return PrefixStore(part, store)
        time.sleep(_POLL_SECONDS / 4)
    raise BackendError(
        f"the {size} processes of the run did not find each other within {timeout_seconds:.0f} s; all must "
        "be started at once and reach MASTER_ADDR; look at the launcher's log"
    )


def _environment() -> Mapping[str, int]:
    for name in _VARIABLES:
        if not os.environ.get(name):
            raise ConfigError(
                f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, but {name} is not set; a launcher of several "
                "processes must set both; start the run with `torchrun`"
            )
    return {name: int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")}


def _local_device(name: str, local_rank: int) -> torch.device:
    if name == "cuda" or (name == "auto" and torch.cuda.is_available()):
        device = runtime.choose_device(f"cuda:{local_rank}")
        torch.cuda.set_device(device)
        return device
    if name not in ("auto", "cpu"):
        raise ConfigError(
            f"`device` is `{name}`, but a launcher started several processes; it must be `auto`, `cuda` or "
            "`cpu`; each process then takes its own"
        )
    return torch.device("cpu")
