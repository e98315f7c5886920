"""What a run holds out, and how well its model predicts it: in all, by source, and at several lengths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from modernbert.data.loader import validation_batches
from modernbert.data.masking import MaskedBatch, Masker
from modernbert.data.shards import TokenShards
from modernbert.data.tokenizer import Tokenizer
from modernbert.data.windows import draw_stretches
from modernbert.errors import InputError
from modernbert.model.heads import ModernBertForMaskedLM
from modernbert.recipes.settings import PretrainRun
from modernbert.recipes.supply import open_sources
from modernbert.train.evaluation import LengthEvaluation, LengthProbe
from modernbert.train.loop import Evaluation, evaluate
from modernbert.train.parallel import Spread
from modernbert.train.schedule import Phase

BySource = Mapping[str, Sequence[MaskedBatch]]


@dataclass(frozen=True)
class Findings:
    """What one validation found.

    Attributes:
        evaluation: Over all held-out text.
        by_source: Over that of each source; empty where there is but one.
        by_length: At each of `validation.by_length`; empty where that is not set.
    """

    evaluation: Evaluation
    by_source: Mapping[str, Evaluation]
    by_length: Sequence[LengthEvaluation]


class Validation:
    """The held-out text of each phase, packed and masked once.

    Args:
        run: Says what is held out.
        shards: Its sources.
        tokenizer: Its tokenizer.

    Raises:
        InputError: Nothing can be predicted, or no document is as long as the longest length.
    """

    def __init__(self, run: PretrainRun, shards: Mapping[str, TokenShards], tokenizer: Tokenizer) -> None:
        self._run = run
        self._shards = shards
        self._tokenizer = tokenizer
        self._masker = Masker(tokenizer, run.masking, seed=run.seed)
        # All phases' now: what is wrong with them shows before the first step, not after days.
        self._batches = {phase.name: self._held_out(phase) for phase in run.phases}
        self._probe = self._length_probe()

    def measure(
        self,
        model: ModernBertForMaskedLM,
        phase: Phase,
        *,
        device: torch.device,
        spread: Spread[ModernBertForMaskedLM] | None = None,
    ) -> Findings | None:
        """Measure the model on what a phase is validated on; None if nothing is held out.

        For the other arguments see `train.loop.evaluate`.
        """
        precision, batches = self._run.precision, self._batches[phase.name]
        if not batches:
            return None
        found = {
            name: evaluate(model, rows, device=device, precision=precision, spread=spread)
            for name, rows in batches.items()
        }
        lengths: Sequence[LengthEvaluation] = ()
        if self._probe is not None:
            lengths = self._probe.measure(model, device=device, precision=precision, spread=spread)
        return Findings(_in_all(found, batches), found if len(found) > 1 else {}, lengths)

    def _held_out(self, phase: Phase) -> BySource:
        """Return what a phase is validated on, rows of one source each; nothing if nothing is held out."""
        settings = self._run.validation
        if not settings.fraction:
            return {}
        sources, _ = open_sources(self._run, self._shards, self._tokenizer, phase, "validation")
        total = sum(source.num_tokens for source in sources)
        batches = {
            source.name: validation_batches(
                [source],
                self._masker,
                settings.mask_rate,
                row_tokens=self._run.micro_batch_tokens,
                max_tokens=max(settings.max_tokens * source.num_tokens // total, phase.sequence_length),
            )
            for source in sources
        }
        found = {name: rows for name, rows in batches.items() if any(row.num_masked for row in rows)}
        if not found:
            count = sum(row.num_tokens for rows in batches.values() for row in rows)
            raise InputError(
                f"of the {count} held-out tokens not one is masked; some must be, to be predicted; raise "
                "`validation.fraction`, or hold out nothing with 0"
            )
        return found

    def _length_probe(self) -> LengthProbe | None:
        """Return what looks at long held-out documents at several lengths; None if it is not wanted."""
        settings, words = self._run.validation, self._tokenizer
        if settings.by_length is None or not settings.fraction:
            return None
        longest = replace(self._run.phases[-1], sequence_length=max(settings.by_length.lengths))
        sources, _ = open_sources(self._run, self._shards, words, longest, "validation")
        return LengthProbe(
            draw_stretches(sources, settings.by_length.max_tokens),
            settings.by_length,
            self._masker,
            mask_rate=settings.mask_rate,
            special=(words.cls_id, words.sep_id, words.mask_id),
            row_tokens=self._run.micro_batch_tokens,
        )


def _in_all(found: Mapping[str, Evaluation], batches: BySource) -> Evaluation:
    """Bring the sources' figures to those of all their masked tokens."""
    labels = torch.cat([row.labels for rows in batches.values() for row in rows])
    parts = found.values()
    return Evaluation(
        loss=sum(part.loss * part.num_masked for part in parts) / len(labels),
        accuracy=sum(part.accuracy * part.num_masked for part in parts) / len(labels),
        commonest_accuracy=labels.bincount().max().item() / len(labels),
        num_masked=len(labels),
    )
