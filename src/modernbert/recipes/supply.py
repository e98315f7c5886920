"""Each phase's sources, and whether there is as much text as the phase asks for."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from modernbert.data.shards import TokenShards
from modernbert.data.source import Source, Split
from modernbert.data.tokenizer import Tokenizer
from modernbert.errors import ConfigError
from modernbert.recipes.settings import PretrainRun
from modernbert.telemetry import human
from modernbert.train.feed import Mixture
from modernbert.train.schedule import Phase

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Supply:
    """How much of a source a phase reads.

    Attributes:
        phase: Its name.
        source: Its name.
        share: Of the phase's tokens.
        wanted: Tokens that the phase reads of it at most: its last batch may go beyond the phase's end.
        available: Tokens that there are to train on, in sequences of the phase's length; None if the source
            is not tokenised yet.
    """

    phase: str
    source: str
    share: float
    wanted: int
    available: int | None

    @property
    def epochs(self) -> float | None:
        """How often the phase goes through the source."""
        return None if self.available is None else self.wanted / self.available


def open_sources(
    run: PretrainRun,
    shards: Mapping[str, TokenShards],
    tokenizer: Tokenizer,
    phase: Phase,
    split: Split = "train",
) -> Mixture:
    """Return a phase's sources, cut to its sequence length, and their weights."""
    weights, special = _weights(run, phase), (tokenizer.cls_id, tokenizer.sep_id)
    return [_open(run, name, shards[name], phase, split, special) for name in weights], list(weights.values())


def supplies(run: PretrainRun, shards: Mapping[str, TokenShards | None]) -> Iterator[Supply]:
    """Say for each phase and source how much is wanted and how much is there."""
    for phase in run.phases:
        weights = _weights(run, phase)
        for name, weight in weights.items():
            share, tokens = weight / sum(weights.values()), shards[name]
            wanted = int((phase.tokens + phase.batch_tokens) * share)
            available = None if tokens is None else _open(run, name, tokens, phase, "train").num_tokens
            yield Supply(phase.name, name, share, wanted, available)


def check_supply(run: PretrainRun, shards: Mapping[str, TokenShards]) -> None:
    """Make sure, before a run begins, that no phase asks for more than there is, unless text may repeat.

    Raises:
        ConfigError: A phase does, and `data.repeat` is false.
    """
    for supply in supplies(run, shards):
        if supply.available is None or supply.wanted <= supply.available:
            continue
        wanted, available = human(supply.wanted), human(supply.available)
        if not run.data.repeat:
            raise ConfigError(
                f"phase `{supply.phase}` asks source `{supply.source}` for {wanted} tokens, its last batch "
                f"included; there are {available}, and `data.repeat` is false; it must not ask for more; "
                "lower the phase's `tokens` or the source's share, add text, or set `data.repeat` to true"
            )
        log.info(
            "phase `%s` goes through source `%s` %.3g times: it asks for %s tokens of %s",
            *(supply.phase, supply.source, supply.epochs, wanted, available),
        )


def _weights(run: PretrainRun, phase: Phase) -> dict[str, float]:
    return phase.mixture or {source.name: source.weight for source in run.data.sources}


def _open(
    run: PretrainRun,
    name: str,
    shards: TokenShards,
    phase: Phase,
    split: Split,
    special: tuple[int, int] = (0, 0),  # to count, none is needed
) -> Source:
    return Source(
        name,
        shards,
        sequence_length=phase.sequence_length,
        cls_id=special[0],
        sep_id=special[1],
        overflow=run.data.overflow,
        split=split,
        validation_fraction=run.validation.fraction,
        seed=run.seed,
        order=phase.name if split == "train" else "",  # held out: always the same
        repeats=run.data.repeat,
    )
