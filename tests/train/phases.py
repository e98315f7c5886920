"""Phases for tests: one that cares about a few of its settings, and the first of base as published."""

from __future__ import annotations

from typing import Any

from modernbert.train.schedule import Phase

BILLION = 10**9


def phase(**changes: Any) -> Phase:
    settings: dict[str, Any] = {
        "name": "one",
        "tokens": 1000,
        "sequence_length": 8,
        "batch_tokens": 64,
        "learning_rate": 1e-3,
        "global_rope_theta": 1e4,
        "local_rope_theta": 1e4,
    }
    return Phase(**{**settings, **changes})


PRETRAINING = phase(
    name="pretrain",
    tokens=1719 * BILLION,
    sequence_length=1024,
    batch_tokens=4608 * 1024,
    learning_rate=8e-4,
    warmup_tokens=3 * BILLION,
    batch_warmup_start=768 * 1024,
    batch_warmup_tokens=50 * BILLION,
)
