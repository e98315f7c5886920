"""What every test stands on: no network, one seed, and `gpu` tests skipped where there is no GPU."""

from __future__ import annotations

import os
from collections.abc import Iterator

# Before torch, tokenizers or huggingface_hub are imported: they read these once.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("MPLBACKEND", "agg")

import hypothesis
import pytest
import torch

SEED = 20241218  # any number, the same for all

hypothesis.settings.register_profile(
    "house", deadline=None, derandomize=True, database=None, max_examples=50, print_blob=False
)
hypothesis.settings.load_profile("house")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session", autouse=True)
def no_wait_for_the_disk() -> Iterator[None]:
    """Leave out `fsync`, some milliseconds a file: what tests write need not outlive the machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(autouse=True)
def seed() -> None:
    """Start each test from the same random state, so that a failure repeats alone."""
    torch.manual_seed(SEED)
