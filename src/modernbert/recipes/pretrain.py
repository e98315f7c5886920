"""Pretraining by phases (paper 2.2): from text files to a model that others load, resumable at any step."""

from __future__ import annotations

import contextlib
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from modernbert import config, runtime, telemetry
from modernbert.data.loader import validation_batches
from modernbert.data.masking import MaskedBatch, Masker
from modernbert.data.prefetch import prefetch
from modernbert.data.shards import TokenShards
from modernbert.data.source import Source, Split
from modernbert.data.tokenizer import Tokenizer
from modernbert.errors import CheckpointError, DivergenceError, InputError
from modernbert.model.heads import ModernBertForMaskedLM
from modernbert.model.init import initialise
from modernbert.recipes.metrics import RunMetrics
from modernbert.recipes.prepare import claim, hold, prepare_shards, prepare_tokenizer
from modernbert.recipes.settings import PretrainRun
from modernbert.train.feed import Mixture, step_batches
from modernbert.train.loop import Evaluation, StepReport, evaluate, train
from modernbert.train.optim import StableAdamW, parameter_groups
from modernbert.train.schedule import Clock, Phase
from modernbert.train.state import Checkpoints, restore

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PretrainResult:
    """How a run ended.

    Attributes:
        checkpoint: The newest checkpoint.
        model: Folder of the finished model with its tokenizer; None if the run was stopped before its end.
        evaluation: The last validation; None without a held-out part.
        stopped_by: Name of the signal that stopped the run, or None.
    """

    checkpoint: Path
    model: Path | None
    evaluation: Evaluation | None
    stopped_by: str | None

    def summary(self) -> str:
        """Say how the run ended, for people."""
        lines = []
        if self.evaluation is not None:
            lines.append(
                f"held-out masked loss {self.evaluation.loss:.3f}, accuracy {self.evaluation.accuracy:.1%} "
                f"(always guessing the commonest token: {self.evaluation.commonest_accuracy:.1%})"
            )
        if self.stopped_by is not None:
            lines.append(
                f"stopped by {self.stopped_by}, saved in {self.checkpoint}; the same command goes on"
            )
        else:
            lines.append(f"the model is in {self.model}")
        return "\n".join(lines)


def pretrain(run: PretrainRun) -> PretrainResult:
    """Carry a run to its end, from wherever its folder says it is.

    The folder receives `run.yaml`, `facts.json`, `tokenizer/`, `shards/`, `checkpoints/`, `metrics.jsonl`
    and, at the end, `model/`. Ctrl-C and SIGTERM save a checkpoint and end the run; the same call goes on.

    Raises:
        ConfigError: The folder holds a run with other settings, or settings do not fit each other.
        InputError: The text cannot be used.
        CheckpointError: The tokenizer cannot be found, or a checkpoint does not fit the data.
        DivergenceError: The loss is not finite.
        StorageError: The disk is full or not writable.
    """
    runtime.require_one_process()
    folder = Path(run.folder)
    device = runtime.choose_device(run.device)
    facts = runtime.machine_facts(device)
    with hold(folder):
        claim(folder, run, facts)
        tokenizer = prepare_tokenizer(run, folder)
        shards = prepare_shards(run, folder, tokenizer)
        return _Session(run, folder, device, facts, tokenizer, shards).execute()


class _Session:
    """The objects that one process needs to carry a run on."""

    def __init__(
        self,
        run: PretrainRun,
        folder: Path,
        device: torch.device,
        facts: dict[str, Any],
        tokenizer: Tokenizer,
        shards: dict[str, TokenShards],
    ) -> None:
        self.run = run
        self.folder = folder
        self.device = device
        self.facts = facts
        self.tokenizer = tokenizer
        self.shards = shards
        self.schedule = run.schedule()
        self.masker = Masker(tokenizer, run.masking, seed=run.seed)
        # All phases' now: what is wrong with them shows before the first step, not after days.
        self.held_out = {phase.name: self._validation_batches(phase) for phase in run.phases}
        self.model = self._new_model()
        self.optimizer = StableAdamW(
            parameter_groups(self.model, run.phases[0].weight_decay),
            lr=run.phases[0].learning_rate,
            betas=(run.optimizer.betas[0], run.optimizer.betas[1]),
            eps=run.optimizer.eps,
        )
        self.checkpoints = Checkpoints(
            folder / "checkpoints",
            self._save_model,
            keep_last=run.checkpoint.keep_last,
            keep_best=run.checkpoint.keep_best,
        )
        self.metrics = RunMetrics(folder / "metrics.jsonl")
        self.evaluation: Evaluation | None = None

    def execute(self) -> PretrainResult:
        """Train to the end, or to a signal."""
        clock, loader_state = self._restore()
        batches = step_batches(
            self.schedule,
            self.open_sources,
            self.masker,
            row_tokens=self.run.micro_batch_tokens,
            clock=clock,
            loader_state=loader_state,
        )
        total = self.schedule.total_tokens
        with (
            contextlib.closing(prefetch(batches)) as ahead,
            runtime.stop_signals() as stop,
            telemetry.progress("pretrain", total, "tokens", done=clock.tokens) as meter,
        ):
            try:
                for report in train(
                    self.model, self.optimizer, ahead, device=self.device, precision=self.run.precision
                ):
                    stopped_by = stop.name
                    self._after_step(report, clock, is_last=stopped_by is not None)
                    meter.advance(report.batch.num_tokens, **_shown(report, self.evaluation))
                    clock = report.batch.clock
                    if stopped_by is not None and self.schedule.setting(clock) is not None:
                        return PretrainResult(self._newest(), None, self.evaluation, stopped_by)
            except DivergenceError as error:
                latest = self.checkpoints.latest()
                last = f"the last good checkpoint is `{latest}`" if latest else "there is no checkpoint yet"
                raise DivergenceError(
                    f"{error}; {last}; begin a new run with a lower learning rate, or mend these documents"
                ) from None
        return PretrainResult(self._newest(), self._finish(), self.evaluation, None)

    def open_sources(self, phase: Phase, split: Split = "train") -> Mixture:
        """Return a phase's sources, cut to its sequence length, and their weights."""
        weights = phase.mixture or {source.name: source.weight for source in self.run.data.sources}
        sources = [
            Source(
                name,
                self.shards[name],
                sequence_length=phase.sequence_length,
                cls_id=self.tokenizer.cls_id,
                sep_id=self.tokenizer.sep_id,
                overflow=self.run.data.overflow,
                split=split,
                validation_fraction=self.run.validation.fraction,
                seed=self.run.seed,
                order=phase.name if split == "train" else "",  # held out: always the same
            )
            for name in weights
        ]
        return sources, list(weights.values())

    def _new_model(self) -> ModernBertForMaskedLM:
        words = self.tokenizer
        words.check_fits(self.run.model.vocab_size)
        shape = replace(
            self.run.model, pad_token_id=words.pad_id, cls_token_id=words.cls_id, sep_token_id=words.sep_id
        )
        model = ModernBertForMaskedLM(shape, backend=self.run.attention)
        initialise(model, seed=self.run.seed)
        torch.manual_seed(self.run.seed)  # dropout
        return model.to(self.device)

    def _restore(self) -> tuple[Clock, dict[str, Any] | None]:
        """Go to the newest checkpoint, if there is one."""
        latest = self.checkpoints.latest()
        if latest is None:
            unreadable = sorted(self.checkpoints.folder.glob("step-*"))
            if unreadable:
                raise CheckpointError(
                    f"`{unreadable[-1]}` and all others of the run cannot be read; a whole one is needed to "
                    "go on; use the release that wrote them, or move the folder away to begin anew"
                )
            self.metrics.cut(0)
            return Clock(), None
        state = restore(latest, self.model, self.optimizer)
        phase = self.run.phases[min(state.clock.phase, len(self.run.phases) - 1)]
        self.model.model.set_rope_thetas(
            global_rope_theta=phase.global_rope_theta, local_rope_theta=phase.local_rope_theta
        )
        self.metrics.cut(state.clock.step)
        if state.metrics.get("validation"):
            self.evaluation = Evaluation(**state.metrics["validation"])
        log.info("going on from %s, %s tokens", latest, telemetry.human(state.clock.tokens))
        return state.clock, state.loader_state

    def _after_step(self, report: StepReport, before: Clock, *, is_last: bool) -> None:
        """Log, and validate and save where it is time."""
        after, phase = report.batch.clock, report.batch.setting.phase
        ends_phase = after.phase != before.phase
        self.metrics.step(report)
        validates = ends_phase or _crosses(self.run.validation.every_tokens, before, after)
        if validates:
            self._validate(phase, after)
        if is_last or ends_phase or _crosses(self.run.checkpoint.every_tokens, before, after):
            self._save(report, validated=validates)

    def _validate(self, phase: Phase, clock: Clock) -> None:
        if batches := self.held_out[phase.name]:
            self.evaluation = evaluate(self.model, batches, device=self.device, precision=self.run.precision)
            self.metrics.validation(self.evaluation, phase, clock)

    def _validation_batches(self, phase: Phase) -> list[MaskedBatch]:
        """Return what a phase is validated on; nothing if nothing is held out."""
        settings = self.run.validation
        if not settings.fraction:
            return []
        sources, _ = self.open_sources(phase, "validation")
        batches = validation_batches(
            sources,
            self.masker,
            settings.mask_rate,
            row_tokens=self.run.micro_batch_tokens,
            max_tokens=settings.max_tokens,
        )
        if not any(batch.num_masked for batch in batches):
            raise InputError(
                f"of the {sum(batch.num_tokens for batch in batches)} held-out tokens not one is masked; "
                "some must be, to be predicted; raise `validation.fraction`, or hold out nothing with 0"
            )
        return batches

    def _save(self, report: StepReport, *, validated: bool) -> None:
        """Write a checkpoint. Only one that was just validated has a score, and can be among the best."""
        validation = config.to_tree(self.evaluation) if self.evaluation else None
        self.checkpoints.save(
            self.model,
            self.optimizer,
            clock=report.batch.clock,
            loader_state=report.batch.loader_state,
            metrics={"loss": report.loss, "accuracy": report.accuracy, "validation": validation},
            settings_yaml=config.dump(self.run),
            facts=self.facts,
            score=self.evaluation.loss if self.evaluation and validated else None,
        )

    def _save_model(self, model: torch.nn.Module, folder: Path) -> None:
        """Write model and tokenizer, so that each checkpoint is usable as it is."""
        assert isinstance(model, ModernBertForMaskedLM)
        model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder, model_max_length=model.config.max_position_embeddings)

    def _finish(self) -> Path:
        path = self.folder / "model"
        self._save_model(self.model, path)
        return path

    def _newest(self) -> Path:
        latest = self.checkpoints.latest()
        assert latest is not None  # every phase ends with one
        return latest


def _crosses(every_tokens: int | None, before: Clock, after: Clock) -> bool:
    """Whether a multiple of `every_tokens` lies between two clocks."""
    return every_tokens is not None and before.tokens // every_tokens != after.tokens // every_tokens


def _shown(report: StepReport, evaluation: Evaluation | None) -> dict[str, str]:
    shown = {
        "phase": report.batch.setting.phase.name,
        "loss": f"{report.loss:.3f}",
        "accuracy": f"{report.accuracy:.1%}",
    }
    if evaluation is not None:
        shown["held-out"] = f"{evaluation.loss:.3f}"
    return shown
