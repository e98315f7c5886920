"""How good is a plain BERT of the same size after the same time on the same GPU?

The anchor of `mini`: transformers' `BertForMaskedLM` (norms after each block, learned positions up to 512,
GELU, feed-forward four times as wide, dropout 0.1) on the run file's text, tokenizer, seed and held-out
documents, in padded batches, 15% of the tokens masked (80/10/10), AdamW, a learning rate that rises and then
falls in a line. So that it is no straw man: bf16, sdpa attention, a compiled encoder, fused AdamW, gradients
clipped, and the decoder on masked tokens alone, as BERT's own code had it. It has as many layers as come
nearest to the size of the run file's model. Try its learning rate first, as ours was tried.

Its speed is measured, then it takes the steps for which there is time. Its folder is that of a run of
`modernbert pretrain`, so that `modernbert report` draws both. A signal saves, and the same command goes on.
`model/` loads in transformers. At the end it and the models named by `--beside` are measured on the same
masked tokens, in sequences of at most 512.

    python -m benchmarks.plain_bert --output mini/bert --seconds 960 --beside mini/run/model
    python -m benchmarks.plain_bert --output mini/bert-2e-3 --seconds 40 --learning-rate 2e-3
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.common import save, show
from modernbert import config, files, runtime, telemetry
from modernbert.data.masking import Masker, MaskingSettings
from modernbert.data.prefetch import prefetch
from modernbert.errors import ConfigError
from modernbert.layout import SequenceLayout
from modernbert.model.config import EncoderConfig
from modernbert.model.heads import ModernBertForMaskedLM
from modernbert.ops.loss import linear_cross_entropy
from modernbert.recipes.history import read_history
from modernbert.recipes.metrics import RunMetrics
from modernbert.recipes.prepare import claim, prepare_shards, prepare_tokenizer
from modernbert.recipes.run_folder import has_begun, hold
from modernbert.recipes.settings import PretrainRun, read_run
from modernbert.recipes.supply import open_sources
from modernbert.recipes.validation import Findings, Validation
from modernbert.train.feed import StepBatch, step_batches
from modernbert.train.loop import StepReport, train
from modernbert.train.optim import OptimizerSettings, build_optimizer
from modernbert.train.parallel import Spread
from modernbert.train.schedule import Clock, Phase, Schedule, Setting
from modernbert.train.state import Checkpoints, restore

QUESTION = "How good is a plain BERT of the same size after the same time on the same GPU?"
RUN_FILE = Path(__file__).parents[1] / "runs" / "mini" / "mini.yaml"
POSITIONS, HEAD_WIDTH, WIDENING = 512, 64, 4
OPTIMIZER = OptimizerSettings(name="adamw", betas=(0.9, 0.98), eps=1e-6, clip_norm=1.0)
WEIGHT_DECAY = 0.01  # relative to the learning rate, as BERT has it
WARM_UP_SHARE = 0.06
STEPS, COLD_STEPS = 30, 15
"""By which the speed is measured, and how many of them do not count."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line, train as long as there is time, measure, write the result."""
    given = _parser().parse_intermixed_args(arguments)
    folder = Path(given.output)
    with hold(folder):
        anchor = Anchor(_settings(given, _planned_tokens(given)))
        if anchor.train():
            anchor.measure(given)


class PlainBert(nn.Module):
    """transformers' BERT at the door of packed rows: it pads them, and reads its guesses at masked places.

    Args:
        bert: transformers' `BertForMaskedLM`.
        width: To how many tokens sequences are padded.
        compiles: Whether torch.compile may fuse its encoder.
    """

    def __init__(self, bert: Any, width: int, *, compiles: bool) -> None:
        super().__init__()
        self.bert, self.width = bert, width
        if compiles:
            bert.bert.encoder.compile()  # for any number of sequences, once it has seen two

    @property
    def model(self) -> PlainBert:
        """What the loop tells of the RoPE bases."""
        return self

    def set_rope_thetas(self, **thetas: float) -> None:
        """Leave the positions as they are: they are learned."""

    def loss(
        self, input_ids: Tensor, layout: SequenceLayout, masked_positions: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        """See `ModernBertForMaskedLM.loss`."""
        shape = (layout.num_sequences, self.width)
        places = layout.sequence_ids.long() * self.width + layout.positions
        padded = input_ids.new_full(shape, self.bert.config.pad_token_id)
        padded.view(-1)[places] = input_ids
        mask = torch.zeros(shape, dtype=torch.int64, device=input_ids.device)
        mask.view(-1)[places] = 1
        hidden = self.bert.bert(input_ids=padded, attention_mask=mask).last_hidden_state
        head = self.bert.cls.predictions
        features = head.transform(hidden.flatten(0, 1).index_select(0, places[masked_positions]))
        return linear_cross_entropy(features, head.decoder.weight, head.decoder.bias, labels)


class LinearSchedule(Schedule):
    """One phase whose learning rate falls in a line from the end of its warm-up to 0."""

    def setting(self, clock: Clock) -> Setting | None:
        found = super().setting(clock)
        if found is None or clock.phase_tokens <= found.phase.warmup_tokens:
            return found
        phase = found.phase
        left = (phase.tokens - clock.phase_tokens) / (phase.tokens - phase.warmup_tokens)
        return replace(found, learning_rate=phase.learning_rate * left)


class BertShape:
    """Counts the operations of a forward pass as `EncoderConfig` does: products, on real tokens."""

    def __init__(self, bert: Any) -> None:
        self.layers, self.width, self.vocabulary = (
            getattr(bert.config, name) for name in ("num_hidden_layers", "hidden_size", "vocab_size")
        )

    def flops(self, layout: SequenceLayout, num_predictions: int) -> int:
        d = self.width
        linear = 2 * (4 + 2 * WIDENING) * d * d * layout.num_tokens
        attention = 4 * d * sum(length * length for length in layout.lengths)
        return int(self.layers * (linear + attention) + 2 * num_predictions * (d * d + d * self.vocabulary))


class Anchor:
    """One run of a plain BERT, carried on from wherever its folder says it is.

    Args:
        run: Its settings; `run.model` says vocabulary, width and layers.
    """

    def __init__(self, run: PretrainRun) -> None:
        self.run, self.folder = run, Path(run.folder)
        self.device = runtime.choose_device(run.device)
        self.facts = runtime.machine_facts(self.device)
        claim(self.folder, run, self.facts)
        self.words = prepare_tokenizer(run, self.folder)
        self.shards = prepare_shards(run, self.folder, self.words)
        self.phase = run.phases[0]
        self.validation = Validation(run, self.shards, self.words)
        self.checkpoints = Checkpoints(
            self.folder / "checkpoints", self._save_model, keep_last=1, keep_best=0
        )
        self.bert = self._new_bert()
        self.model = PlainBert(self.bert, self.phase.sequence_length, compiles=run.compile)
        self.spread: Spread[Any] = Spread(self.model, device=self.device, precision=run.precision)
        self.optimizer = build_optimizer(self.bert, run.optimizer, self.phase)

    def speed(self) -> float:
        """Return the tokens a second of some warm steps, which are not kept."""
        reports = list(islice(self._reports(self._batches(Clock(), None)), STEPS))
        return statistics.median(it.batch.num_tokens / it.seconds for it in reports[COLD_STEPS:])

    def train(self) -> bool:
        """Train to the end, and write the model; False if a signal came before."""
        metrics = RunMetrics(
            self.folder,
            self.run.log,
            shape=BertShape(self.bert),  # type: ignore[arg-type]
            device=self.device,
            precision=self.run.precision,
            total_tokens=self.phase.tokens,
        )
        clock, loader_state = self._restore()
        metrics.cut(clock.step if clock.step else -1)
        with (
            contextlib.closing(metrics),
            runtime.stop_signals() as stop,
            telemetry.progress("plain BERT", self.phase.tokens, "tokens", done=clock.tokens) as meter,
        ):
            for report in self._reports(self._batches(clock, loader_state)):
                before, clock = clock, report.batch.clock
                num_sequences = sum(row.layout.num_sequences for row in report.batch.rows)
                batch = replace(report.batch, capacity=num_sequences * self.model.width)
                metrics.step(replace(report, batch=batch))
                meter.advance(report.batch.num_tokens, **metrics.shown())
                is_over = clock.phase == 1
                if is_over or clock.passed(self.run.validation.every_tokens, before):
                    self._validate(metrics, clock)
                if is_over or stop.name or clock.passed(self.run.checkpoint.every_tokens, before):
                    metrics.flush()
                    self._save(report)
                if stop.name and not is_over:
                    telemetry.note(f"stopped by {stop.name} and saved; the same command goes on")
                    return False
        (self.folder / "model").mkdir(exist_ok=True)
        self._save_model(self.bert, self.folder / "model")
        return True

    def measure(self, given: argparse.Namespace) -> None:
        """Measure it and the models beside it on the same masked tokens, and write the result."""
        history = read_history(self.folder)
        seconds, tokens = float(history.columns["seconds"].sum()), history.spans[-1].end_tokens
        found = {"plain BERT": self._findings(self.model)}
        sizes = {"plain BERT": sum(weight.numel() for weight in self.bert.parameters())}
        for folder in given.beside:
            ours = ModernBertForMaskedLM.from_pretrained(folder, device=self.device)
            name = str(folder)
            found[name], sizes[name] = self._findings(ours), ours.config.num_parameters(head=True)
        rows = [
            {
                "model": name,
                "loss": it.evaluation.loss,
                "accuracy": it.evaluation.accuracy,
                "masked_tokens": it.evaluation.num_masked,
                "parameters": sizes[name],
            }
            for name, it in found.items()
        ]
        rows[0] |= {"tokens": tokens, "seconds": seconds, "tokens_per_second": tokens / seconds}
        facts = {
            "learning_rate": self.phase.learning_rate,
            "layers": self.run.model.num_hidden_layers,
            "width": self.run.model.hidden_size,
            "by_source": {
                name: {source: part.loss for source, part in it.by_source.items()}
                for name, it in found.items()
            },
        }
        save("plain_bert", QUESTION, rows, self.facts, given.results, **facts)
        show(QUESTION, rows)

    def _new_bert(self) -> Any:
        from transformers import BertConfig, BertForMaskedLM
        from transformers.utils import logging

        logging.disable_progress_bar()
        torch.manual_seed(self.run.seed)
        shape = self.run.model
        settings = BertConfig(
            vocab_size=shape.vocab_size,
            hidden_size=shape.hidden_size,
            num_hidden_layers=shape.num_hidden_layers,
            num_attention_heads=shape.num_attention_heads,
            intermediate_size=shape.intermediate_size,
            max_position_embeddings=POSITIONS,
            pad_token_id=self.words.pad_id,
            attn_implementation="sdpa",
        )
        return BertForMaskedLM(settings).to(self.device)

    def _batches(self, clock: Clock, loader_state: dict[str, Any] | None) -> Iterator[StepBatch]:
        return step_batches(
            LinearSchedule([self.phase]),
            partial(open_sources, self.run, self.shards, self.words),
            Masker(self.words, self.run.masking, seed=self.run.seed),
            row_tokens=self.run.micro_batch_tokens,
            clock=clock,
            loader_state=loader_state,
        )

    def _reports(self, batches: Iterator[StepBatch]) -> Iterator[StepReport]:
        with contextlib.closing(prefetch(batches)) as ahead:
            yield from train(
                self.model,  # type: ignore[arg-type]
                self.optimizer,
                ahead,
                device=self.device,
                spread=self.spread,
                seed=self.run.seed,
            )

    def _restore(self) -> tuple[Clock, dict[str, Any] | None]:
        latest = self.checkpoints.latest()
        if latest is None:
            return Clock(), None
        state = restore(latest, self.bert, self.optimizer)
        return state.clock, state.loader_state

    def _save(self, report: StepReport) -> None:
        self.checkpoints.save(
            self.bert,
            self.optimizer,
            clock=report.batch.clock,
            loader_state=report.batch.loader_state,
            metrics={},
            settings_yaml=config.dump(self.run),
            facts=self.facts,
        )

    def _save_model(self, bert: Any, folder: Path) -> None:
        bert.save_pretrained(folder)
        self.words.save_pretrained(folder, model_max_length=POSITIONS)

    def _validate(self, metrics: RunMetrics, clock: Clock) -> None:
        found = self._findings(self.model)
        metrics.validation(found.evaluation, self.phase, clock, by_source=found.by_source)

    def _findings(self, model: Any) -> Findings:
        found = self.validation.measure(model, self.phase, device=self.device)
        assert found is not None  # `_settings` holds something out
        return found


def _planned_tokens(given: argparse.Namespace) -> int:
    """Return the tokens for which there is time: as measured at the run's beginning."""
    path = Path(given.output) / "plan.json"
    plan = files.read_json(path) if path.exists() else {}
    if plan.get("seconds") != given.seconds:
        if has_begun(path.parent):
            raise ConfigError(
                f"`--seconds` is {given.seconds}; the run in `{given.output}` was begun with "
                f"{plan['seconds']}, which it must keep; give these, or another `--output`"
            )
        folder = Path(given.output) / "speed"
        speed = Anchor(replace(_settings(given, 1 << 40), folder=str(folder))).speed()
        plan = {"seconds": given.seconds, "tokens_per_second": speed, "tokens": int(given.seconds * speed)}
        torch._dynamo.reset()
        files.write_json(path, plan)
    return int(plan["tokens"])


def _settings(given: argparse.Namespace, tokens: int) -> PretrainRun:
    """Turn the run file of ours into the anchor's."""
    run = read_run(given.run, given.overrides)
    row = min(run.micro_batch_tokens, given.batch_tokens)
    length = min(POSITIONS, row, run.phases[0].sequence_length)
    shares: dict[str, float] = {}  # of the whole run: what ours reads, over all its phases
    for phase in run.phases:
        weights = phase.mixture or {source.name: source.weight for source in run.data.sources}
        for name, weight in weights.items():
            shares[name] = shares.get(name, 0.0) + phase.tokens * weight / sum(weights.values())
    only = Phase(
        name="bert",
        tokens=tokens,
        sequence_length=length,
        batch_tokens=given.batch_tokens,
        learning_rate=given.learning_rate,
        warmup_tokens=int(WARM_UP_SHARE * tokens),
        weight_decay=WEIGHT_DECAY * given.learning_rate,
        mask_rate=0.15,
        mixture=shares,
        global_rope_theta=10_000,  # of no use here
        local_rope_theta=10_000,
    )
    return replace(
        run,
        folder=str(given.output),
        model=_shape(run.model),
        phases=(only,),
        micro_batch_tokens=row,
        masking=MaskingSettings(mask_share=0.8, random_share=0.1),
        optimizer=OPTIMIZER,
        validation=replace(run.validation, by_length=None),
        checkpoint=replace(run.checkpoint, average_best=0),
        start=None,
        distillation=None,
        fp8=False,
    )


def _shape(ours: EncoderConfig) -> EncoderConfig:
    """Return layers, width and heads of a BERT that is as large as a model of ours."""
    width = ours.hidden_size
    layer = (4 + 2 * WIDENING) * width * width
    rest = ours.vocab_size * width + POSITIONS * width + width * width
    return replace(
        ours,
        num_hidden_layers=max(1, round((ours.num_parameters(head=True) - rest) / layer)),
        num_attention_heads=max(1, width // HEAD_WIDTH),
        intermediate_size=WIDENING * width,
        layer_types=(),
        max_position_embeddings=POSITIONS,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--run", type=Path, default=RUN_FILE, help="the run file of ours")
    parser.add_argument("--output", required=True, help="the run's folder")
    parser.add_argument("--seconds", type=float, required=True, help="of training steps")
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="at the peak")
    parser.add_argument("--batch-tokens", type=int, default=131_072, help="256 sequences of 512")
    parser.add_argument(
        "--beside",
        type=Path,
        action="append",
        default=[],
        help="a model of ours, measured alike; again for more",
    )
    parser.add_argument("--results", type=Path, help="folder of the result; none: benchmarks/results")
    parser.add_argument("overrides", nargs="*", help="changes of the run file, such as data.root=FOLDER")
    return parser


if __name__ == "__main__":
    main()
