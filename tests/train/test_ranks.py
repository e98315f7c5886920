"""One process is nothing special; which of several takes what; what a launcher must say."""

from __future__ import annotations

import threading

import pytest
import torch
import torch.distributed as dist

from modernbert.errors import BackendError, ConfigError
from modernbert.train import ranks
from modernbert.train.ranks import ALONE, Ranks, join


@pytest.mark.parametrize("size", [1, 2, 3, 8])
@pytest.mark.parametrize("count", [0, 1, 2, 7, 8, 9])
def test_every_thing_is_one_ranks(size: int, count: int) -> None:
    group = [Ranks(rank=rank, size=size) for rank in range(size)]
    shares = [list(each.share_of(count)) for each in group]
    assert sorted(index for share in shares for index in share) == list(range(count))
    assert group[-1].turns(count) == max(map(len, shares))


def test_alone_there_is_no_one_to_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with join("cpu", timeout_seconds=1) as (found, device):
        assert (found, device) == (ALONE, torch.device("cpu"))
    assert not dist.is_initialized()
    assert ALONE.is_first
    assert [ALONE.any(is_so) for is_so in (True, False)] == [True, False]
    assert ALONE.from_first({"a": 1}) == {"a": 1}
    assert ALONE.add(torch.tensor(3.0)).item() == 3
    ALONE.meet()
    with ALONE.first_before_others("work"):
        pass


def test_the_first_goes_before_the_others() -> None:
    store, order = dist.HashStore(), []

    def work(rank: int) -> None:
        with Ranks(rank=rank, size=3, store=store).first_before_others("work"):
            order.append(rank)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in (2, 1)]
    for thread in threads:
        thread.start()
    assert order == []
    work(0)
    for thread in threads:
        thread.join()
    assert order[0] == 0
    assert sorted(order) == [0, 1, 2]


def test_processes_find_each_other_and_not_the_dead() -> None:
    """What an earlier group left in the store is not taken for a live one's."""
    store = dist.HashStore()
    for _ in range(3):
        found: dict[int, dist.Store] = {}

        def come(rank: int, found: dict[int, dist.Store] = found) -> None:
            found[rank] = ranks._fresh(store, rank, 2, timeout_seconds=10)

        threads = [threading.Thread(target=come, args=(rank,)) for rank in (1, 0)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        found[0].set("said", "by the first")
        assert found[1].get("said") == b"by the first"
        assert found[0].add("count", 1) == 1  # nobody wrote here before


def test_a_process_that_does_not_come_is_missed() -> None:
    with pytest.raises(BackendError, match=r"the 2 processes of the run did not find each other within 0 s"):
        ranks._fresh(dist.HashStore(), 0, 2, timeout_seconds=0.2)


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "1")


@pytest.mark.usefixtures("launched")
def test_a_launcher_must_say_it_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MASTER_ADDR")
    with pytest.raises(ConfigError, match=r"WORLD_SIZE is 2, but MASTER_ADDR is not set; .* with `torchrun`"):
        join("cpu", timeout_seconds=1).__enter__()


@pytest.mark.usefixtures("launched")
@pytest.mark.parametrize("device", ["mps", "cuda:1"])
def test_one_device_for_all_is_refused(device: str) -> None:
    with pytest.raises(ConfigError, match=f"`device` is `{device}`, but a launcher started several"):
        join(device, timeout_seconds=1).__enter__()
