"""What each optimizer step consumes: the schedule and the data's order, turned into masked batches.

All of it is a pure function of the clock and a small loader state, so that it may run ahead in the
background: each batch carries the state in which the run is once the batch has been used. And so that each
rank finds out by itself which rows are its own, and how far all of them are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from modernbert.data.loader import RowStream, assemble
from modernbert.data.masking import MaskedBatch, Masker
from modernbert.data.source import Source
from modernbert.errors import ConfigError
from modernbert.layout import SequenceLayout
from modernbert.train.ranks import ALONE, Ranks
from modernbert.train.schedule import Clock, Phase, Schedule, Setting

Mixture = tuple[Sequence[Source], Sequence[float]]


@dataclass(frozen=True)
class StepBatch:
    """One global batch, with the rows of one rank.

    Attributes:
        setting: What the schedule says of this step.
        rows: This rank's packed and masked micro-batches, on the host. If some ranks have one row more, the
            others have a stand-in of a single token that is not predicted, for all to keep step.
        row_numbers: Which of the batch's rows these are; None for a stand-in.
        num_tokens: Real tokens in all rows of all ranks.
        capacity: Tokens that all rows of all ranks could hold.
        identity: Which sequences these are, for messages.
        clock: How far the run is after this step.
        loader_state: Where the data go on after this step; values that JSON can hold.
    """

    setting: Setting
    rows: tuple[MaskedBatch, ...]
    row_numbers: tuple[int | None, ...]
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
    ranks: Ranks = ALONE,
) -> Iterator[StepBatch]:
    """Yield the batches of a run from `clock` to the end of its last phase.

    Args:
        schedule: The phases.
        open_sources: Gives a phase's sources, cut to its sequence length, and their weights.
        masker: Masks tokens.
        row_tokens: Tokens of one row, which is one micro-batch; it must divide every batch.
        clock: Where to begin.
        loader_state: That of the last batch used before; None at the start of a run.
        ranks: Whose rows to read.

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
        numbers = ranks.share_of(num_rows)
        own = [assemble(rows[i], sources, masker, phase.mask_rate, phase.name) for i in numbers]
        idle = ranks.turns(num_rows) - len(own)
        span = f"{num_rows} rows from " if num_rows > 1 else ""
        yield StepBatch(
            setting=setting,
            rows=(*own, *[stand_in()] * idle),
            row_numbers=(*numbers, *[None] * idle),
            num_tokens=num_tokens,
            capacity=len(rows) * row_tokens,
            identity=f"phase `{phase.name}`, {span}{rows[0].identity}",
            clock=clock,
            loader_state={"phase": opened, "stream": stream.state()},
        )


def stand_in() -> MaskedBatch:
    """Return a row of one token, not predicted: it adds nothing to a loss, and keeps a rank in step."""
    nothing = torch.empty(0, dtype=torch.int64)
    return MaskedBatch(torch.zeros(1, dtype=torch.int64), SequenceLayout((1,)), nothing, nothing)
