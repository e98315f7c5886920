"""Pretraining by phases (paper 2.2): from text files to a model that others load, resumable at any step."""

from __future__ import annotations

import contextlib
import logging
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from modernbert import config, runtime, telemetry
from modernbert.data.masking import Masker
from modernbert.data.prefetch import prefetch
from modernbert.data.shards import TokenShards
from modernbert.data.tokenizer import Tokenizer
from modernbert.errors import CheckpointError, DivergenceError, InputError
from modernbert.model.heads import ModernBertForMaskedLM
from modernbert.model.init import initialise
from modernbert.model.student import Student
from modernbert.model.tensor_files import write_tensors
from modernbert.recipes.distillation import load_distillation
from modernbert.recipes.metrics import RunMetrics
from modernbert.recipes.prepare import check_teacher, claim, prepare_shards, prepare_tokenizer
from modernbert.recipes.run_folder import hold
from modernbert.recipes.settings import PretrainRun
from modernbert.recipes.start import StartReport, begin
from modernbert.recipes.supply import open_sources
from modernbert.recipes.validation import Validation
from modernbert.train.distillation import Distillation
from modernbert.train.feed import step_batches
from modernbert.train.guard import Guard
from modernbert.train.loop import Evaluation, StepReport, train
from modernbert.train.merging import average, best_and_last
from modernbert.train.optim import build_optimizer
from modernbert.train.parallel import Spread
from modernbert.train.ranks import Ranks, join
from modernbert.train.schedule import Clock, Phase
from modernbert.train.state import BESIDE, Checkpoints, RestoredState, restore
from modernbert.train.watch import Watch

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
    In each process that `torchrun` started, it carries its part of the run.

    Raises:
        ConfigError: The folder holds a run with other settings, or settings do not fit each other.
        InputError: The text cannot be used.
        CheckpointError: The tokenizer cannot be found, or a checkpoint does not fit the data.
        DivergenceError: Steps are bad and the guard's rule says to stop.
        BackendError: There is no such device here.
        StorageError: The disk is full or not writable.
    """
    folder = Path(run.folder)
    # Whoever stays too long at one thing is named first; only if that fails, the operations themselves do.
    patience = 2 * run.distribution.timeout_seconds
    with (
        runtime.deterministic(run.deterministic),
        join(run.device, timeout_seconds=patience) as (ranks, device),
    ):
        facts = {**runtime.machine_facts(device), "processes": ranks.size}
        with hold(folder) if ranks.is_first else contextlib.nullcontext():
            with ranks.first_before_others("prepare"):
                if ranks.is_first:
                    check_teacher(run, folder)
                    claim(folder, run, facts)
                tokenizer = prepare_tokenizer(run, folder)
                shards = prepare_shards(run, folder, tokenizer, are_made=not ranks.is_first)
            return _Session(run, folder, ranks, device, facts, tokenizer, shards).execute()


class _Session:
    """The objects that one process needs to carry a run on."""

    def __init__(
        self,
        run: PretrainRun,
        folder: Path,
        ranks: Ranks,
        device: torch.device,
        facts: dict[str, Any],
        tokenizer: Tokenizer,
        shards: dict[str, TokenShards],
    ) -> None:
        self.run = run
        self.folder = folder
        self.ranks = ranks
        self.device = device
        self.facts = facts
        self.tokenizer = tokenizer
        self.shards = shards
        self.schedule = run.schedule()
        self.masker = Masker(tokenizer, run.masking, seed=run.seed)
        self.validation = Validation(run, shards, tokenizer)
        self.checkpoints = self._open_checkpoints()
        self.begun: StartReport | None = None
        self.distillation = self._open_distillation()
        self.model = self._new_model()
        self.spread = Spread(
            self.model,
            device=device,
            precision=run.precision,
            ranks=ranks,
            settings=run.distribution,
            compiles=run.compile,
            uses_fp8=run.fp8,
        )
        self.optimizer = build_optimizer(self.model, run.optimizer, run.phases[0])
        self.metrics = RunMetrics(
            folder,
            run.log,
            shape=self.model.config,
            teacher=self.distillation.teacher.config if self.distillation else None,
            device=device,
            precision=run.precision,
            total_tokens=self.schedule.total_tokens,
            writes=ranks.is_first,
        )
        self.guard = Guard(run.guard)
        self.watch = Watch(ranks, run.distribution.timeout_seconds)
        self.evaluation: Evaluation | None = None
        self.stopped_by: str | None = None
        self.unsaved: StepReport | None = None  # the last step, unless a checkpoint has it

    def execute(self) -> PretrainResult:
        """Train to the end, or to a signal."""
        clock, loader_state = self._restore()
        total = self.schedule.total_tokens
        with (
            contextlib.closing(self.metrics),
            runtime.stop_signals() as stop,
            self.watch,
            telemetry.progress("pretrain", total, "tokens", done=clock.tokens) as meter,
        ):
            try:
                while (bad := self._train_from(clock, loader_state, stop, meter)) is not None:
                    clock, loader_state = self._roll_back(bad)
                    meter.advance(clock.tokens - (bad.batch.clock.tokens - bad.batch.num_tokens))
            except InputError:  # the text is at fault: what was learned from it so far is kept
                if self.unsaved is not None:
                    self._save_report(self.unsaved, validated=False)
                    self._newest()
                raise
            model = None if self.stopped_by else self._finish()
            return PretrainResult(self._newest(), model, self.evaluation, self.stopped_by)

    def _train_from(
        self,
        clock: Clock,
        loader_state: dict[str, Any] | None,
        stop: runtime.StopRequest,
        meter: telemetry.Meter,
    ) -> StepReport | None:
        """Train to the end or to a signal; or to a step that is one bad one too many, which is returned."""
        batches = step_batches(
            self.schedule,
            partial(open_sources, self.run, self.shards, self.tokenizer),
            self.masker,
            row_tokens=self.run.micro_batch_tokens,
            clock=clock,
            loader_state=loader_state,
            ranks=self.ranks,
        )
        with contextlib.closing(prefetch(batches)) as ahead:
            for report in train(
                self.model,
                self.optimizer,
                ahead,
                device=self.device,
                precision=self.run.precision,
                spread=self.spread,
                guard=self.guard,
                distillation=self.distillation,
                seed=self.run.seed,
                on_stage=self.watch.enter,
            ):
                stops = self.ranks.any(stop.name is not None)
                if self.guard.is_exhausted:
                    return report
                self._after_step(report, clock, is_last=stops)
                meter.advance(report.batch.num_tokens, **self.metrics.shown())
                clock = report.batch.clock
                if stops and self.schedule.setting(clock) is not None:
                    self.stopped_by = stop.name or "a signal to another process"
                    break
        return None

    def _roll_back(self, bad: StepReport) -> tuple[Clock, dict[str, Any]]:
        """Go back to the last checkpoint, and on from there with the data that come after a bad step.

        The checkpoint is written again with that place in the data, so that a restart goes on there too.

        Raises:
            DivergenceError: There is no checkpoint, or the run went back to it as often as it may.
        """
        self.checkpoints.finish()
        latest, step = self._latest(), bad.batch.clock.step
        if latest is None or not self.guard.may_roll_back:
            last = f"the last good checkpoint is `{latest}`" if latest else "there is no checkpoint yet"
            raise DivergenceError(
                f"step {step} is bad: {bad.fault}; the batch is {bad.batch.identity}; {last}; begin a "
                "new run with a lower learning rate, or mend these documents"
            )
        state, self.unsaved = self._load(latest), None
        self.guard.rollbacks += 1
        phase = bad.batch.setting.phase
        message = (
            f"step {step} is bad: {bad.fault}; back to step {state.clock.step}, and on with the data after "
            f"{bad.batch.identity}"
        )
        log.warning("%s", message)
        self.metrics.cut(state.clock.step, keeps_events=True)
        self.metrics.event("rollback", phase, state.clock, message, from_step=step)
        self._save(state.clock, bad.batch.loader_state, state.metrics, state.score)
        return state.clock, bad.batch.loader_state

    def _new_model(self) -> ModernBertForMaskedLM:
        words = self.tokenizer
        words.check_fits(self.run.model.vocab_size)
        shape = replace(
            self.run.model, pad_token_id=words.pad_id, cls_token_id=words.cls_id, sep_token_id=words.sep_id
        )
        model = ModernBertForMaskedLM(shape, backend=self.run.attention)
        initialise(model, seed=self.run.seed)
        if self.run.start is not None and self._latest() is None:
            self.begun = begin(model, self.run.start, words, self.shards.values(), seed=self.run.seed)
        if self.distillation is not None:
            model = Student.of(model, bridge_dim=self.distillation.bridge_dim, seed=self.run.seed)
        return model.to(self.device)

    def _open_distillation(self) -> Distillation | None:
        if self.run.distillation is None:
            return None
        return load_distillation(
            self.run.distillation,
            device=self.device,
            precision=self.run.precision,
            backend=self.run.attention,
            compiles=self.run.compile,
        )

    def _open_checkpoints(self) -> Checkpoints:
        folder, settings = self.folder / "checkpoints", self.run.checkpoint
        kept = {"keep_last": settings.keep_last, "keep_best": settings.keep_best}
        if self.ranks.size == 1:
            return Checkpoints(folder, self._save_trained, **kept)
        from modernbert.train.distributed_state import SharedCheckpoints  # loads much of torch

        return SharedCheckpoints(
            folder, self._save_trained, self.ranks, lambda: self.spread.gathered(), **kept
        )

    def _restore(self) -> tuple[Clock, dict[str, Any] | None]:
        """Go to the newest checkpoint, if there is one."""
        latest = self._latest()
        if latest is None:
            unreadable = sorted(self.checkpoints.folder.glob("step-*"))
            if unreadable:
                raise CheckpointError(
                    f"`{unreadable[-1]}` and all others of the run cannot be read; a whole one is needed to "
                    "go on; use the release that wrote them, or move the folder away to begin anew"
                )
            self.metrics.cut(-1)
            self._measure_start()
            return Clock(), None
        state = self._load(latest)
        self.metrics.cut(state.clock.step)
        if state.metrics.get("validation"):
            self.evaluation = Evaluation(**state.metrics["validation"])
        log.info("going on from %s, %s tokens", latest, telemetry.human(state.clock.tokens))
        return state.clock, state.loader_state

    def _load(self, checkpoint: Path) -> RestoredState:
        """Take weights, optimizer and guard from a checkpoint."""
        self.spread.settle()
        state = restore(checkpoint, self.model, self.optimizer, self.ranks)
        phase = self.run.phases[min(state.clock.phase, len(self.run.phases) - 1)]
        self._take_thetas(phase)
        rollbacks = self.guard.rollbacks
        self.guard.restore(state.metrics.get("guard", {}))
        self.guard.rollbacks = max(self.guard.rollbacks, rollbacks)
        return state

    def _take_thetas(self, phase: Phase) -> None:
        """Give the model a phase's RoPE bases, as its first step will."""
        self.model.model.set_rope_thetas(
            global_rope_theta=phase.global_rope_theta, local_rope_theta=phase.local_rope_theta
        )

    def _measure_start(self) -> None:
        """Write down what the run begins with, and how well that predicts its held-out text."""
        if self.begun is None:
            return
        phase = self.run.phases[0]
        self._take_thetas(phase)
        log.info("the run %s", self.begun.summary())
        self.metrics.event("start", phase, Clock(), self.begun.summary(), **config.to_tree(self.begun))
        self._validate(phase, Clock())

    def _after_step(self, report: StepReport, before: Clock, *, is_last: bool) -> None:
        """Log, and validate and save where it is time."""
        after, phase = report.batch.clock, report.batch.setting.phase
        ends_phase = after.phase != before.phase
        if report.fault is None:
            self.metrics.step(report)
        else:
            message = f"the update of step {after.step} is left out: {report.fault}; {report.batch.identity}"
            log.warning("%s", message)
            self.metrics.event("skip", phase, after, message)
        validates = ends_phase or after.passed(self.run.validation.every_tokens, before)
        if validates:
            self._validate(phase, after)
        self.unsaved = report
        if is_last or ends_phase or after.passed(self.run.checkpoint.every_tokens, before):
            self._save_report(report, validated=validates)

    def _save_report(self, report: StepReport, *, validated: bool) -> None:
        """Save what a step led to. Only what was just validated has a score, and can be among the best."""
        score = self.evaluation.loss if self.evaluation and validated else None
        validation = config.to_tree(self.evaluation) if self.evaluation else None
        found = {"loss": report.loss, "accuracy": report.accuracy, "validation": validation}
        self.guard.rollbacks = 0  # they count from one checkpoint to the next
        self._save(report.batch.clock, report.batch.loader_state, found, score)

    def _validate(self, phase: Phase, clock: Clock) -> None:
        self.watch.enter(f"validates after step {clock.step}")
        found = self.validation.measure(self.model, phase, device=self.device, spread=self.spread)
        if found is not None:
            self.evaluation = found.evaluation
            self.metrics.validation(found.evaluation, phase, clock, found.by_length, found.by_source)

    def _save(
        self, clock: Clock, loader_state: dict[str, Any], found: dict[str, Any], score: float | None
    ) -> None:
        self.watch.enter(f"saves step {clock.step}")
        self.metrics.flush()
        self.checkpoints.save(
            self.model,
            self.optimizer,
            clock=clock,
            loader_state=loader_state,
            metrics={**found, "guard": self.guard.state()},
            settings_yaml=config.dump(self.run),
            facts=self.facts,
            score=score,
        )
        self.unsaved = None

    def _save_trained(self, model: torch.nn.Module, folder: Path) -> None:
        """Write the model, and what is trained beside it."""
        self._save_model(model, folder)
        if isinstance(model, Student) and (beside := model.beside()):
            write_tensors(folder / BESIDE, beside, {})

    def _save_model(self, model: torch.nn.Module, folder: Path) -> None:
        """Write model and tokenizer, so that each checkpoint is usable as it is."""
        assert isinstance(model, ModernBertForMaskedLM)
        (model.plain() if isinstance(model, Student) else model).save_pretrained(folder)
        self.tokenizer.save_pretrained(folder, model_max_length=model.config.max_position_embeddings)

    def _finish(self) -> Path:
        self.watch.enter("writes the model")
        path, whole = self.folder / "model", self.spread.gathered()
        if whole is not None:
            if count := self.run.checkpoint.average_best:
                self.checkpoints.finish()
                folders = best_and_last(self.checkpoints, len(self.run.phases) - 1, count)
                log.info("the model is the mean of %s", ", ".join(folder.name for folder in folders))
                whole.load_state_dict(average(folders), strict=False)  # the tied decoder has no tensor
            self._save_model(whole, path)
        self.ranks.meet()
        return path

    def _latest(self) -> Path | None:
        """Return the newest checkpoint; the first rank looks, lest one sees another."""
        name = self.ranks.from_first(str(self.checkpoints.latest() or ""))
        return Path(name) if name else None

    def _newest(self) -> Path:
        self.watch.enter("writes its last checkpoint")
        self.checkpoints.finish()
        self.ranks.meet()
        latest = self._latest()
        assert latest is not None  # every phase ends with one
        return latest
