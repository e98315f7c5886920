"""A phase for tests that care about a few of its settings."""

from __future__ import annotations

from typing import Any

from modernbert.train.schedule import Phase


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
