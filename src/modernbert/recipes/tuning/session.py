"""A run of tuning from the first example to the outcome; the same call goes on where it was stopped.

Fine-tuning and the training of a retriever differ in what an example is, what is measured and what is written
at the end; they share all that lies between: steps, looks at the validation, checkpoints, going on.
"""

from __future__ import annotations

import contextlib
import logging
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import torch

from modernbert import config, runtime, telemetry
from modernbert.data.prefetch import prefetch
from modernbert.data.tokenizer import Tokenizer
from modernbert.errors import BackendError, ConfigError
from modernbert.model.checkpoint import Pretrained
from modernbert.recipes.run_folder import CHECKPOINTS, check_settings, hold, write_settings
from modernbert.recipes.tuning.journal import Journal, Progress
from modernbert.recipes.tuning.selection import cost
from modernbert.recipes.tuning.settings import TuningRun
from modernbert.train.examples import examples_in, steps_in
from modernbert.train.parallel import Spread
from modernbert.train.ranks import Ranks, join
from modernbert.train.schedule import Clock
from modernbert.train.state import Checkpoints, load_weights, read_clock, read_loader_state, restore
from modernbert.train.supervised import TuningStep, tune, tuning_optimizer

log = logging.getLogger(__name__)

Run = TypeVar("Run", bound=TuningRun)

MODEL = "model"
"""In a run's folder, the model that came out."""

# What may differ when a run goes on; of files the path, not the examples.
_FREE_SETTINGS = re.compile(
    r"`(folder|device|micro_batch_tokens|distribution(\..*)?"
    r"|data\.(train|validation|test|pairs(\..*)?|corpus(\..*)?))`:"
)


@dataclass(frozen=True, kw_only=True)
class TuningResult:
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


@dataclass(frozen=True, kw_only=True)
class Workplace:
    """Where one process carries a run on.

    Attributes:
        folder: The run's.
        ranks: This process among all of the run.
        device: Where it computes.
        facts: Of the machine.
    """

    folder: Path
    ranks: Ranks
    device: torch.device
    facts: dict[str, Any]


def carry_out(run: TuningRun, open_session: Callable[[Workplace], TuningSession[Any]]) -> TuningResult:
    """Carry a run out in its folder, in each process that `torchrun` started.

    Args:
        run: Its settings.
        open_session: Makes what one process needs for it.

    Raises:
        ModernBertError: As the recipe that calls it says.
    """
    with processes(run) as (ranks, device):
        return carry_out_on(run, ranks, device, open_session)


def carry_out_on(
    run: TuningRun,
    ranks: Ranks,
    device: torch.device,
    open_session: Callable[[Workplace], TuningSession[Any]],
) -> TuningResult:
    """Do the work of `carry_out` in processes that have joined."""
    facts = facts_of(ranks, device)
    with runtime.deterministic(run.deterministic), own_folder(run, ranks, facts):
        place = Workplace(folder=Path(run.folder), ranks=ranks, device=device, facts=facts)
        return open_session(place).execute()


def processes(run: TuningRun) -> contextlib.AbstractContextManager[tuple[Ranks, torch.device]]:
    """Join the processes of a run, see `train.ranks.join`."""
    return join(run.device, timeout_seconds=2 * run.distribution.timeout_seconds)


def facts_of(ranks: Ranks, device: torch.device) -> dict[str, Any]:
    """Return what is to be known of the machine that a run has."""
    return {**runtime.machine_facts(device), "processes": ranks.size}


@contextlib.contextmanager
def own_folder(run: TuningRun, ranks: Ranks, facts: dict[str, Any]) -> Iterator[None]:
    """Hold a run's folder, with its settings in it, while the block runs; the first rank does it for all.

    Raises:
        ConfigError: The folder is in use, or holds a run with other settings.
    """
    folder = Path(run.folder)
    with hold(folder) if ranks.is_first else contextlib.nullcontext():
        with ranks.first_before_others(f"prepare {folder}"):
            if ranks.is_first:
                check_settings(folder, run, _FREE_SETTINGS)
                write_settings(folder, run, facts)
        yield


def choose_metric(run: TuningRun, default: str, names: Callable[[], Sequence[str]]) -> str:
    """Return the figure by which the best checkpoint is chosen.

    Args:
        run: Its settings.
        default: The figure, if they name none.
        names: Gives the figures that there are; it is asked only if they name one.

    Raises:
        ConfigError: `selection.metric` is not one of the names of figures.
    """
    metric = run.selection.metric
    if metric is None:
        return default
    if metric not in (known := names()):
        raise ConfigError(f"`selection.metric` is `{metric}`; it must be one of {', '.join(known)}")
    return metric


class TuningSession(ABC, Generic[Run]):
    """The objects that one process needs to carry a run on.

    Args:
        run: Its settings.
        place: Where this is.
        words: The model's tokenizer.
        model: What is trained, on the CPU.
        num_examples: Of an epoch.
        source: Where they come from, for messages.
        digest: What tells them, and those of the validation, from others.
        metric: The figure by which the best checkpoint is chosen.
        can_look: Whether there is a validation.
    """

    title: ClassVar[str]
    """What the progress of such a run is called."""

    def __init__(
        self,
        run: Run,
        place: Workplace,
        *,
        words: Tokenizer,
        model: Pretrained,
        num_examples: int,
        source: str,
        digest: str,
        metric: str,
        can_look: bool,
    ) -> None:
        self.run, self.folder, self.ranks, self.device = run, place.folder, place.ranks, place.device
        self.facts, self.words, self.metric, self.can_look = place.facts, words, metric, can_look
        self.num_examples, self.source, self.digest = num_examples, source, digest
        self.steps_in_epoch = steps_in(num_examples, run.tuning.batch_size, 1)
        self.num_steps = steps_in(num_examples, run.tuning.batch_size, run.tuning.epochs)
        self.model = model.to(self.device)
        self.words.check_fits(self.model.config.vocab_size)
        self.spread = Spread(
            self.model,
            device=self.device,
            precision=run.precision,
            ranks=self.ranks,
            settings=run.distribution,
            compiles=run.compile,
        )
        self.optimizer = tuning_optimizer(self.model, run.tuning)
        self.checkpoints = self._open_checkpoints()
        self.journal = Journal(self.folder, self.steps_in_epoch, writes=self.ranks.is_first)
        self.progress = Progress()
        self.began = time.monotonic()

    @abstractmethod
    def steps(self, done: int) -> Iterator[TuningStep]:
        """Yield what each optimizer step after the first `done` consumes."""

    @abstractmethod
    def look(self) -> Mapping[str, float]:
        """Return the figures of the model, which is set to evaluation, on the validation.

        All ranks must get the same, lest they disagree on when to end.
        """

    @abstractmethod
    def save_model(self, model: Pretrained, folder: Path) -> None:
        """Write all of a model but its tokenizer."""

    @abstractmethod
    def conclude(self, best_step: int) -> Mapping[str, Mapping[str, float]]:
        """Measure the best model, which was that of a step; write what came out; return figures by split."""

    @abstractmethod
    def longest(self) -> tuple[int, str]:
        """Return the tokens of the longest example, and the setting that limits them."""

    def execute(self) -> TuningResult:
        """Train to the end, to a signal, or until nothing gets better."""
        self._restore()
        done, total = (
            examples_in(steps, self.num_examples, self.run.tuning.batch_size)
            for steps in (self.progress.step, self.num_steps)
        )
        stopped_by = None
        with self._memory_errors():
            with (
                runtime.stop_signals() as stop,
                telemetry.progress(self.title, total, "examples", done=done) as meter,
            ):
                if not self._is_over():
                    stopped_by = self._train(stop, meter)
            return self._finish(stopped_by)

    @contextlib.contextmanager
    def _memory_errors(self) -> Iterator[None]:
        """Turn the device's want of memory into an error that says what to lower."""
        try:
            yield
        except torch.OutOfMemoryError as error:
            longest, limit = self.longest()
            most = self.run.micro_batch_tokens
            remedy = f"lower `micro_batch_tokens`, now {most:,}"
            if longest >= most:
                remedy = f"lower `{limit}`, as the longest example has {longest:,}"
            raise BackendError(
                f"the memory of `{self.device}` cannot hold a micro-batch of {max(longest, most):,} tokens "
                f"with all that training needs; {remedy}, or set `distribution.activation_checkpointing=true`"
            ) from error

    def _train(self, stop: runtime.StopRequest, meter: telemetry.Meter) -> str | None:
        """Take steps; return the signal that ended them, if one did."""
        with contextlib.closing(prefetch(self.steps(self.progress.step))) as ahead:
            for report in tune(
                self.optimizer,
                ahead,
                spread=self.spread,
                settings=self.run.tuning,
                num_steps=self.num_steps,
                seed=self.run.seed,
            ):
                self.progress = self.progress.after(report)
                self.journal.step(report)
                stops = self.ranks.any(stop.name is not None)
                looks = self._is_time_to_look()
                score = self._judge() if looks else None
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

    def _is_over(self) -> bool:
        patience = self.run.selection.patience
        waits = patience is not None and self.progress.looks_since >= patience
        return waits or self.progress.step >= self.num_steps

    def _judge(self) -> float | None:
        """Measure the model on the validation; return its score."""
        if not self.can_look:
            return None
        with self.measuring():
            figures = dict(self.look())
        self.journal.evaluation(self.progress.step, "validation", figures)
        score = figures[self.metric]
        self.progress = self.progress.judged(self.metric, score)
        return score

    @contextlib.contextmanager
    def measuring(self) -> Iterator[None]:
        """Set the model to evaluation, and let its parameters be the optimizer's again afterwards."""
        self.model.eval()
        yield
        self.spread.settle()

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
            return Checkpoints(folder, self.save_with_tokenizer, keep_last=1, keep_best=1)
        from modernbert.train.distributed_state import SharedCheckpoints  # loads much of torch

        return SharedCheckpoints(
            folder, self.save_with_tokenizer, self.ranks, self.spread.gathered, keep_last=1, keep_best=1
        )

    def save_with_tokenizer(self, model: torch.nn.Module, folder: Path) -> None:
        """Write model and tokenizer, so that each checkpoint is usable as it is."""
        assert isinstance(model, Pretrained)
        self.save_model(model, folder)
        self.words.save_pretrained(folder, model_max_length=model.config.max_position_embeddings)

    def _restore(self) -> None:
        """Go to the newest checkpoint, if there is one."""
        latest = self._from_first(self.checkpoints.latest())
        if latest is not None:
            progress = read_loader_state(latest)
            if progress.pop("examples") != self.digest:
                raise ConfigError(
                    f"`{self.folder}` holds a run with other examples than `{self.source}` and what it is "
                    "validated by hold now; to go on with it, bring those back; for a new run, choose "
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

    def _finish(self, stopped_by: str | None) -> TuningResult:
        """Take the best checkpoint for the model, measure it, and write what came out."""
        self.checkpoints.finish()
        self.ranks.meet()
        figures: Mapping[str, Mapping[str, float]] = {}
        if stopped_by is None:
            best = self._from_first(self.checkpoints.best() or self.checkpoints.latest())
            assert best is not None  # the last step saved one
            load_weights(self.model, best)
            figures = self.conclude(read_clock(best).step)
        return TuningResult(
            model=None if stopped_by else self.folder / MODEL,
            figures=figures,
            metric=self.metric,
            score=self.progress.best,
            steps=self.progress.step,
            seconds=self.progress.seconds,
            stopped_by=stopped_by,
        )
