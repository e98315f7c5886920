"""What each optimizer step consumes: the schedule and the data's order, turned into masked batches.

All of it is a pure function of the clock and a small loader state, so that it may run ahead in the
background: each batch carries the state in which the run is once the batch has been used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from modernbert.data.loader import RowStream, assemble
from modernbert.data.masking import MaskedBatch, Masker
from modernbert.data.source import Source
from modernbert.errors import ConfigError
from modernbert.train.schedule import Clock, Phase, Schedule, Setting

Mixture = tuple[Sequence[Source], Sequence[float]]


@dataclass(frozen=True)
class StepBatch:
    """One global batch.

    Attributes:
        setting: What the schedule says of this step.
        rows: Packed and masked micro-batches, on the host.
        num_tokens: Real tokens in all rows.
        capacity: Tokens that the rows could hold.
        identity: Which sequences these are, for messages.
        clock: How far the run is after this step.
        loader_state: Where the data go on after this step; values that JSON can hold.
    """

    setting: Setting
    rows: tuple[MaskedBatch, ...]
    num_tokens: int
    capacity: int
    identity: str
    clock: Clock
    loader_state: dict[str, Any]


def step_batches(
    schedule: Schedule,
    open_sources: Callable[[Phase], Mixture],
    masker: Masker,
    *,
    row_tokens: int,
    clock: Clock,
    loader_state: Mapping[str, Any] | None = None,
) -> Iterator[StepBatch]:
    """Yield the batches of a run from `clock` to the end of its last phase.

    Args:
        schedule: The phases.
        open_sources: Gives a phase's sources, cut to its sequence length, and their weights.
        masker: Masks tokens.
        row_tokens: Tokens of one row, which is one micro-batch; it must divide every batch.
        clock: Where to begin.
        loader_state: That of the last batch used before; None at the start of a run.

    Raises:
        ConfigError: A batch is not made of whole rows.
        CheckpointError: `loader_state` is of other data or settings.
    """
    stream, opened = None, None
    sources: Sequence[Source] = ()
    while (setting := schedule.setting(clock)) is not None:
        phase = setting.phase
        if opened != setting.phase_index:
            opened = setting.phase_index
            sources, weights = open_sources(phase)
            is_resumed = loader_state is not None and loader_state["phase"] == opened
            state = loader_state["stream"] if loader_state is not None and is_resumed else None
            stream = RowStream(sources, weights, row_tokens=row_tokens, state=state)
        assert stream is not None
        num_rows, rest = divmod(setting.batch_tokens, row_tokens)
        if rest:
            raise ConfigError(
                f"phase `{phase.name}` has a batch of {setting.batch_tokens} tokens; "
                f"it must be a multiple of `row_tokens`, {row_tokens}"
            )
        rows = stream.take(num_rows)
        num_tokens = sum(row.num_tokens for row in rows)
        clock = schedule.advance(clock, num_tokens)
        span = f"{num_rows} rows from " if num_rows > 1 else ""
        yield StepBatch(
            setting=setting,
            rows=tuple(assemble(row, sources, masker, phase.mask_rate, phase.name) for row in rows),
            num_tokens=num_tokens,
            capacity=len(rows) * row_tokens,
            identity=f"phase `{phase.name}`, {span}{rows[0].identity}",
            clock=clock,
            loader_state={"phase": opened, "stream": stream.state()},
        )
