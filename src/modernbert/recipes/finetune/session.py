"""A fine-tuning run from the first example to the report; the same call goes on where it was stopped."""

from __future__ import annotations

import contextlib
import logging
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from modernbert import config, runtime, telemetry
from modernbert.data.prefetch import prefetch
from modernbert.data.tokenizer import Tokenizer
from modernbert.errors import BackendError, ConfigError, InputError, did_you_mean
from modernbert.infer.runner import TorchRunner
from modernbert.model.adapter_files import save_adapter
from modernbert.model.adapters import is_adapted
from modernbert.model.checkpoint import Pretrained
from modernbert.recipes.finetune.data import log_remarks, open_texts, read_splits
from modernbert.recipes.finetune.evaluated import Sampling
from modernbert.recipes.finetune.findings import Findings
from modernbert.recipes.finetune.journal import Journal, Progress
from modernbert.recipes.finetune.metrics import cost
from modernbert.recipes.finetune.outcome import MODEL, write_outcome
from modernbert.recipes.finetune.settings import FinetuneRun
from modernbert.recipes.finetune.start import begin, check_packages
from modernbert.recipes.finetune.task import QUICK, TEST, TRAIN, VALIDATION, WHOLE, TuningTask
from modernbert.recipes.finetune.tasks import TASKS
from modernbert.recipes.run_folder import CHECKPOINTS, check_settings, hold, write_settings
from modernbert.train.examples import Example, digest, example_steps, examples_in, steps_in
from modernbert.train.parallel import Spread
from modernbert.train.ranks import Ranks, join
from modernbert.train.schedule import Clock
from modernbert.train.state import Checkpoints, load_weights, read_clock, read_loader_state, restore
from modernbert.train.supervised import tune, tuning_optimizer

log = logging.getLogger(__name__)

# What may differ when a run goes on; of files the path, not the examples.
_FREE_SETTINGS = re.compile(
    r"`(folder|device|micro_batch_tokens|distribution(\..*)?|data\.(train|validation|test))`:"
)


@dataclass(frozen=True, kw_only=True)
class FinetuneResult:
    """What a run came to.

    Attributes:
        model: Folder of the best checkpoint as a model; None: the run was stopped before its end.
        figures: By split, `validation` and perhaps `test`, what was measured of that model.
        metric: The figure by which it was chosen.
        score: That figure on the validation; None where there is none.
        steps: Optimizer steps that were taken.
        seconds: Time of the run, in all calls.
        stopped_by: The signal that ended the run early; None: nothing did.
    """

    model: Path | None
    figures: Mapping[str, Mapping[str, float]]
    metric: str
    score: float | None
    steps: int
    seconds: float
    stopped_by: str | None = None

    def facts(self) -> dict[str, Any]:
        """Return all of it as JSON can hold it."""
        return {**asdict(self), "model": None if self.model is None else str(self.model)}

    def summary(self) -> str:
        """Say in a few lines what came out."""
        if self.stopped_by is not None:
            return f"stopped by {self.stopped_by} after step {self.steps}; the same command goes on"
        lines = [
            f"{split}: {', '.join(f'{name} {value:.4f}' for name, value in figures.items())}"
            for split, figures in self.figures.items()
        ]
        return "\n".join([str(self.model), *lines])


def finetune(run: FinetuneRun) -> FinetuneResult:
    """Fine-tune a checkpoint for a task.

    The folder gets `run.yaml`, `metrics.jsonl`, `checkpoints/` and, at the end, `model/`, `report.html` and
    `report.json`. Ctrl-C and SIGTERM save a checkpoint and end the run; the same call goes on.
    In each process that `torchrun` started, it carries its part of the run.

    Raises:
        ConfigError: The folder holds a run with other settings, or settings do not fit each other.
        InputError: The examples cannot be used.
        CheckpointError: The model cannot be found or is damaged.
        DivergenceError: The loss is not finite.
        BackendError: There is no such device here, its memory is too small, or a package is missing.
        StorageError: The disk is full or not writable.
    """
    folder = Path(run.folder)
    with (
        runtime.deterministic(run.deterministic),
        join(run.device, timeout_seconds=2 * run.distribution.timeout_seconds) as (ranks, device),
    ):
        facts = {**runtime.machine_facts(device), "processes": ranks.size}
        with hold(folder) if ranks.is_first else contextlib.nullcontext():
            with ranks.first_before_others("prepare"):
                if ranks.is_first:
                    check_settings(folder, run, _FREE_SETTINGS)
                    write_settings(folder, run, facts)
            return _Session(run, folder, ranks, device, facts).execute()


class _Session:
    """The objects that one process needs to carry a run on."""

    def __init__(
        self, run: FinetuneRun, folder: Path, ranks: Ranks, device: torch.device, facts: dict[str, Any]
    ) -> None:
        self.run, self.folder, self.ranks, self.device, self.facts = run, folder, ranks, device, facts
        check_packages(run)
        kind = TASKS[run.task]
        self.words = Tokenizer.from_pretrained(run.model, revision=run.revision)
        self.task: TuningTask[Any] = kind(run, open_texts(run, self.words), read_splits(run, kind))
        self.examples, self.objective = self._make_examples(), self.task.objective()
        self.digest = digest([*self.examples, *(self.task.examples(VALIDATION) if self._can_look else [])])
        self.steps_in_epoch = steps_in(len(self.examples), run.tuning.batch_size, 1)
        self.num_steps = steps_in(len(self.examples), run.tuning.batch_size, run.tuning.epochs)
        self.model = begin(run, self.task.kind, self.task.head()).to(device)
        self.words.check_fits(self.model.config.vocab_size)
        self.spread = Spread(
            self.model,
            device=device,
            precision=run.precision,
            ranks=ranks,
            settings=run.distribution,
            compiles=run.compile,
        )
        self.optimizer = tuning_optimizer(self.model, run.tuning)
        self.checkpoints = self._open_checkpoints()
        self.journal = Journal(folder, self.steps_in_epoch, writes=ranks.is_first)
        self.metric = run.selection.metric or self.task.metric
        self.progress = Progress()
        self.began = time.monotonic()

    def execute(self) -> FinetuneResult:
        """Train to the end, to a signal, or until nothing gets better."""
        self._restore()
        done, total = (
            examples_in(steps, len(self.examples), self.run.tuning.batch_size)
            for steps in (self.progress.step, self.num_steps)
        )
        stopped_by = None
        with self._memory_errors():
            with (
                runtime.stop_signals() as stop,
                telemetry.progress("finetune", total, "examples", done=done) as meter,
            ):
                if not self._is_over():
                    stopped_by = self._train(stop, meter)
            return self._finish(stopped_by)

    def _make_examples(self) -> list[Example]:
        """Return what is learned from. What is wrong with other splits is found now too, and all remarked."""
        for split in self.task.splits:
            self.task.examples(split)
        log_remarks(self.task.splits)
        examples = self.task.examples(TRAIN)
        if not examples:
            raise InputError(
                f"`{self.run.data.train}` has no token that a label belongs to; there must be something to "
                "learn; check that it is the right file"
            )
        return examples

    @contextlib.contextmanager
    def _memory_errors(self) -> Iterator[None]:
        """Turn the device's want of memory into an error that says what to lower."""
        try:
            yield
        except torch.OutOfMemoryError as error:
            longest = max(example.num_tokens for example in self.examples)
            most = self.run.micro_batch_tokens
            remedy = f"lower `micro_batch_tokens`, now {most:,}"
            if longest >= most:
                remedy = f"lower `data.max_length`, as the longest example has {longest:,}"
            raise BackendError(
                f"the memory of `{self.device}` cannot hold a micro-batch of {max(longest, most):,} tokens "
                f"with all that training needs; {remedy}, or set `distribution.activation_checkpointing=true`"
            ) from error

    def _train(self, stop: runtime.StopRequest, meter: telemetry.Meter) -> str | None:
        """Take steps; return the signal that ended them, if one did."""
        tuning = self.run.tuning
        steps = example_steps(
            self.examples,
            self.objective,
            batch_size=tuning.batch_size,
            row_tokens=self.run.micro_batch_tokens,
            num_steps=self.num_steps,
            seed=self.run.seed,
            done=self.progress.step,
            ranks=self.ranks,
        )
        with contextlib.closing(prefetch(steps)) as ahead:
            for report in tune(
                self.optimizer,
                ahead,
                spread=self.spread,
                settings=tuning,
                num_steps=self.num_steps,
                seed=self.run.seed,
            ):
                self.progress = self.progress.after(report)
                self.journal.step(report)
                stops = self.ranks.any(stop.name is not None)
                looks = self._is_time_to_look()
                score = self._look() if looks else None
                if looks or stops:
                    self._save(score)
                meter.advance(report.step.num_examples, loss=f"{report.loss:.3f}", **self._shown())
                if stops and not self._is_over():
                    return stop.name or "a signal to another process"
                if self._is_over():
                    break
        return None

    def _is_time_to_look(self) -> bool:
        """Whether the validation is to be looked at, and a checkpoint saved, after this step."""
        looks, step = self.run.selection.times_an_epoch, self.progress.step
        before, after = ((it * looks) // self.steps_in_epoch for it in (step - 1, step))
        return before != after or step == self.num_steps

    @property
    def _can_look(self) -> bool:
        """Whether there is a validation."""
        return VALIDATION in self.task.splits

    def _is_over(self) -> bool:
        patience = self.run.selection.patience
        waits = patience is not None and self.progress.looks_since >= patience
        return waits or self.progress.step >= self.num_steps

    def _look(self) -> float | None:
        """Measure the model on the validation; return its score."""
        if not self._can_look:
            return None
        # Those of the first rank on all, lest they disagree on when to end.
        figures = self.ranks.from_first(self._measured(VALIDATION, QUICK).figures)
        self.journal.evaluation(self.progress.step, VALIDATION, figures)
        if self.metric not in figures:
            raise ConfigError(
                f"`selection.metric` is `{self.metric}`; it must be one of {', '.join(figures)}"
                f"{did_you_mean(self.metric, figures)}"
            )
        score = figures[self.metric]
        self.progress = self.progress.judged(self.metric, score)
        return score

    def _measured(self, split: str, sampling: Sampling = WHOLE) -> Findings:
        self.model.eval()
        findings = self.task.evaluate(TorchRunner(self.model, self.run.precision), split, sampling)
        self.spread.settle()
        return findings

    def _shown(self) -> dict[str, str]:
        best = self.progress.best
        return {} if best is None else {f"best {self.metric}": f"{best:.4f}"}

    def _save(self, score: float | None) -> None:
        now = time.monotonic()
        self.progress = replace(self.progress, seconds=self.progress.seconds + now - self.began)
        self.began = now
        self.checkpoints.save(
            self.model,
            self.optimizer,
            clock=Clock(step=self.progress.step, tokens=self.progress.tokens),
            loader_state={"examples": self.digest, **asdict(self.progress)},
            metrics={},
            settings_yaml=config.dump(self.run),
            facts=self.facts,
            score=None if score is None else cost(self.metric, score),
        )

    def _open_checkpoints(self) -> Checkpoints:
        folder = self.folder / CHECKPOINTS
        if self.ranks.size == 1:
            return Checkpoints(folder, self._save_model, keep_last=1, keep_best=1)
        from modernbert.train.distributed_state import SharedCheckpoints  # loads much of torch

        return SharedCheckpoints(
            folder, self._save_model, self.ranks, self.spread.gathered, keep_last=1, keep_best=1
        )

    def _save_model(self, model: torch.nn.Module, folder: Path) -> None:
        """Write model, or its adapter alone, and tokenizer, so that each checkpoint is usable as it is."""
        assert isinstance(model, Pretrained)
        if is_adapted(model):
            save_adapter(model, folder, base=self.run.model)
        else:
            model.save_pretrained(folder)
        self.words.save_pretrained(folder, model_max_length=model.config.max_position_embeddings)

    def _restore(self) -> None:
        """Go to the newest checkpoint, if there is one."""
        latest = self._from_first(self.checkpoints.latest())
        if latest is not None:
            progress = read_loader_state(latest)
            if progress.pop("examples") != self.digest:
                raise ConfigError(
                    f"`{self.folder}` holds a run with other examples than `{self.run.data.train}` and what "
                    "it is validated by hold now; to go on with it, bring those back; for a new run, choose "
                    "another `folder`"
                )
            restore(latest, self.model, self.optimizer, self.ranks)
            self.progress = Progress(**progress)
            log.info("going on from %s", latest)
        self.journal.cut(self.progress.step if latest else -1)

    def _from_first(self, path: Path | None) -> Path | None:
        """Return what the first rank found, lest one sees another."""
        name = self.ranks.from_first(str(path or ""))
        return Path(name) if name else None

    def _finish(self, stopped_by: str | None) -> FinetuneResult:
        """Take the best checkpoint for the model, measure it, and write what came out."""
        self.checkpoints.finish()
        self.ranks.meet()
        found: dict[str, Findings] = {}
        if stopped_by is None:
            best = self._from_first(self.checkpoints.best() or self.checkpoints.latest())
            assert best is not None  # the last step saved one
            load_weights(self.model, best)
            found = {it: self._measured(it) for it in (VALIDATION, TEST) if it in self.task.splits}
            self._write_outcome(found, read_clock(best).step)
        return FinetuneResult(
            model=None if stopped_by else self.folder / MODEL,
            figures={split: findings.figures for split, findings in found.items()},
            metric=self.metric,
            score=self.progress.best,
            steps=self.progress.step,
            seconds=self.progress.seconds,
            stopped_by=stopped_by,
        )

    def _write_outcome(self, found: Mapping[str, Findings], best_step: int) -> None:
        """Write the model, its card and the report."""
        whole = self.spread.gathered()
        if whole is not None:
            write_outcome(
                self.task,
                self.folder,
                whole,
                self.words,
                found,
                progress=self.progress,
                best_step=best_step,
                facts=self.facts,
            )
        self.ranks.meet()
