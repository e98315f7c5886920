"""What `modernbert bench` measured: a record a figure, and all of them as plain values."""

from __future__ import annotations

import datetime
import statistics
from dataclasses import dataclass, field
from typing import Any

from modernbert.evaluate.contenders import Contender
from modernbert.evaluate.timing import percentile


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much is measured.

    Attributes:
        tokens: About so many places of longest documents in each set.
        batch_tokens: Places of a batch.
        repetitions: Of each set.
        latency_turns: How often it is each contender's turn with a single sequence.
        latency_runs: Runs of such a turn.
    """

    tokens: int
    batch_tokens: int
    repetitions: int
    latency_turns: int
    latency_runs: int


@dataclass(frozen=True, kw_only=True)
class Throughput:
    """How fast one contender computes one set.

    Attributes:
        batch_tokens: Places of its batches.
        num_tokens: Real tokens of the set.
        flops: Of the model, for these.
        seconds: Of each repetition.
    """

    contender: Contender
    workload: str
    batch_tokens: int
    num_tokens: int
    flops: int
    seconds: tuple[float, ...]

    @property
    def rates(self) -> list[float]:
        """Tokens a second, the slowest first."""
        return sorted(self.num_tokens / second for second in self.seconds)

    @property
    def tokens_per_second(self) -> float:
        return statistics.median(self.rates)

    def mfu(self, product_flops: float) -> float:
        """Return the share of a matrix product's rate that the model's own operations get."""
        return self.flops / statistics.median(self.seconds) / product_flops


@dataclass(frozen=True, kw_only=True)
class Latency:
    """How long one contender takes for a single sequence."""

    contender: Contender
    length: int
    seconds: tuple[float, ...]

    @property
    def p50(self) -> float:
        return percentile(list(self.seconds), 0.5)

    @property
    def p90(self) -> float:
        return percentile(list(self.seconds), 0.9)


@dataclass(frozen=True, kw_only=True)
class Largest:
    """The largest batch of documents of a length that one contender could compute."""

    contender: Contender
    length: int
    batch: int


@dataclass(kw_only=True)
class BenchOutcome:
    """All that was measured, in the order in which it was.

    Attributes:
        product_rates: Operations a second of a matrix product, measured before each set.
        product: What was multiplied.
        notes: What was cut, what is absent, who failed and why.
    """

    model: str
    num_parameters: int
    dtype: str
    machine: dict[str, Any]
    size: Size
    product: str
    product_rates: list[float] = field(default_factory=list)
    throughputs: list[Throughput] = field(default_factory=list)
    latencies: list[Latency] = field(default_factory=list)
    largest: list[Largest] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    date: str = field(default_factory=lambda: datetime.datetime.now(datetime.UTC).date().isoformat())

    @property
    def product_flops(self) -> float:
        """Operations a second of the matrix product: the most, as it is to be a ceiling."""
        return max(self.product_rates, default=float("nan"))

    def to_json(self) -> dict[str, Any]:
        """Return all of it as plain values."""
        return {
            "model": self.model,
            "num_parameters": self.num_parameters,
            "date": self.date,
            "dtype": self.dtype,
            "machine": self.machine,
            "size": vars(self.size),
            "product": {"what": self.product, "flops": self.product_flops} if self.product_rates else None,
            "throughput": [
                {
                    **_of(it.contender),
                    "set": it.workload,
                    "tokens_per_second": it.tokens_per_second,
                    "slowest": it.rates[0],
                    "fastest": it.rates[-1],
                    "repetitions": len(it.seconds),
                    "tokens": it.num_tokens,
                    "batch_tokens": it.batch_tokens,
                    "mfu": it.mfu(self.product_flops),
                    "seconds": it.seconds,
                }
                for it in self.throughputs
            ],
            "latency": [
                {
                    **_of(it.contender),
                    "tokens": it.length,
                    "p50_ms": 1e3 * it.p50,
                    "p90_ms": 1e3 * it.p90,
                    "runs": len(it.seconds),
                }
                for it in self.latencies
            ],
            "largest_batch": [
                {**_of(it.contender), "tokens": it.length, "batch": it.batch} for it in self.largest
            ],
            "notes": self.notes,
        }


def _of(contender: Contender) -> dict[str, Any]:
    return {"contender": contender.name, "dtype": contender.dtype, "ours": contender.is_ours}
