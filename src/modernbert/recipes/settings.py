"""The schema of a pretraining run file."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from modernbert import config
from modernbert.data.corpus import TextUnit
from modernbert.data.masking import MaskingSettings
from modernbert.data.source import Overflow, SourceSettings
from modernbert.data.tokenizer_training import round_up
from modernbert.errors import ConfigError, did_you_mean
from modernbert.model.config import EncoderConfig
from modernbert.recipes.distillation import DistillationSettings
from modernbert.recipes.metrics import LogSettings
from modernbert.recipes.mixture import read_with_mixture
from modernbert.recipes.start import StartSettings, complete
from modernbert.runtime import Precision
from modernbert.telemetry import human
from modernbert.train.evaluation import LengthSettings
from modernbert.train.guard import GuardSettings
from modernbert.train.optim import OptimizerSettings
from modernbert.train.parallel import DistributionSettings
from modernbert.train.schedule import Phase, Schedule


@dataclass(frozen=True, kw_only=True)
class TokenizerSettings:
    """Which tokenizer: one that exists, or one to train on the run's own text.

    Attributes:
        path: Folder, `tokenizer.json` or hub id.
        vocab_size: Entries of a tokenizer to train; rounded up to a multiple of 64.
    """

    path: str | None = None
    vocab_size: int | None = None

    def __post_init__(self) -> None:
        if (self.path is None) == (self.vocab_size is None):
            raise ConfigError(
                f"`path` is {self.path!r} and `vocab_size` {self.vocab_size!r}; exactly one must be set: "
                "`path` to use a tokenizer, `vocab_size` to train one"
            )


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """Which text, and how documents become sequences.

    Attributes:
        sources: Text files, folders of them, or folders of token shards, each with its weight. In place of
            them a run file may name a `mixture` file, and a `root` that sources without a path lie below: see
            `recipes.mixture`.
        text_key: Name of the text in JSON lines and Parquet.
        text_unit: What a document is in a `.txt` file.
        max_document_bytes: A larger document is an error: it is mostly a file read in the wrong way.
        verify_shards: Whether token shards are compared with their checksums first, which reads them all.
        overflow: Whether a document longer than a sequence is cut into chunks or truncated (as published).
        repeat: Whether a phase may read a source again, in another order and with other masks, once it has
            read all of it. If not, a phase that asks for more than there is is refused before it begins.
    """

    sources: tuple[SourceSettings, ...]
    text_key: str = "text"
    text_unit: TextUnit = "line"
    max_document_bytes: int = 4_000_000
    verify_shards: bool = False
    overflow: Overflow = "chunk"
    repeat: bool = True

    def __post_init__(self) -> None:
        if not self.sources:
            raise ConfigError("`sources` is empty; it must hold at least one source with `name` and `path`")
        names = [source.name for source in self.sources]
        for name in names:
            if names.count(name) > 1:
                raise ConfigError(f"two sources are named `{name}`; each name must be its own; rename one")


@dataclass(frozen=True, kw_only=True)
class ValidationSettings:
    """What is held out, and how often it is looked at.

    Attributes:
        fraction: Share of each source's documents that is held out; 0 for no validation.
        mask_rate: Share of tokens to predict.
        every_tokens: Distance between validations; each phase ends with one in any case.
        max_tokens: At most so many held-out tokens are used, shared out among the sources by their size; of
            each at least as many as make a sequence.
        by_length: At which lengths long held-out documents are looked at besides; null: at none.
    """

    fraction: float = 0.01
    mask_rate: float = 0.15
    every_tokens: int | None = None
    max_tokens: int = 1_000_000
    by_length: LengthSettings | None = None

    def __post_init__(self) -> None:
        fraction, every = self.fraction, self.every_tokens
        _require("fraction", fraction, 0 <= fraction < 1, "at least 0 and below 1")
        _require("mask_rate", self.mask_rate, 0 < self.mask_rate < 1, "above 0 and below 1")
        _require("every_tokens", every, every is None or every >= 1, "at least 1, or null")
        _require("max_tokens", self.max_tokens, self.max_tokens >= 1, "at least 1")


@dataclass(frozen=True, kw_only=True)
class CheckpointSettings:
    """When the run is saved, and what is kept.

    Attributes:
        every_tokens: Distance between checkpoints; each phase ends with one in any case.
        keep_last: How many of the newest stay.
        keep_best: How many of the best by validation loss stay besides. Those that were validated when they
            were saved have one.
        average_best: How many of the last phase's best are averaged with the last of all into the finished
            model, as 3 were for ModernBERT-base (paper 2.2.2); 0: the finished model is the last.
    """

    every_tokens: int | None = None
    keep_last: int = 3
    keep_best: int = 1
    average_best: int = 0

    def __post_init__(self) -> None:
        every = self.every_tokens
        _require("every_tokens", every, every is None or every >= 1, "at least 1, or null")
        _require("keep_last", self.keep_last, self.keep_last >= 1, "at least 1")
        _require("keep_best", self.keep_best, self.keep_best >= 0, "at least 0")
        is_kept = 0 <= self.average_best <= self.keep_best
        _require("average_best", self.average_best, is_kept, f"from 0 to `keep_best`, {self.keep_best}")


@dataclass(frozen=True, kw_only=True)
class PretrainRun:
    """One pretraining run from first to last token.

    Attributes:
        folder: Where everything of the run goes.
        model: Shape, or `preset` and what differs from it. The special ids come from the tokenizer.
        tokenizer: Which one.
        data: Which text.
        phases: What happens when.
        micro_batch_tokens: Tokens of one packed row, which is one forward pass. It must divide all batches.
        masking: How masked tokens are treated.
        optimizer: Which one, and its constants.
        validation: What is held out.
        checkpoint: When the run is saved.
        log: What is written down while the run goes on.
        seed: Fixes weights, dropout, the order of the data and the masks.
        device: Where to compute.
        precision: Of forward and backward; weights are always fp32.
        attention: Attention backend, see `modernbert.ops.attention.BACKENDS`; `fa3+varlen` is that of the
            published runs.
        compile: Let torch.compile fuse the steps of each layer: the run begins later. It needs a C compiler.
        fp8: Let the products of the layers run in 8 bits, forward and backward but for the gradients of the
            weights; the rest stays bf16. Faster for wide models, on NVIDIA's Ada and Hopper GPUs and newer.
        deterministic: Compute the same bits each time, so that a stopped run goes on exactly on a GPU too,
            where it is slower. On a CPU it does in any case.
        start: Which checkpoint to begin with; None: with weights drawn anew.
        distribution: How the run is spread over several processes.
        guard: What happens on steps whose loss or gradient is not finite, or whose loss leaps.
        distillation: From which teacher the model learns besides; None: from none.
    """

    folder: str
    model: EncoderConfig
    tokenizer: TokenizerSettings
    data: DataSettings
    phases: tuple[Phase, ...]
    micro_batch_tokens: int
    masking: MaskingSettings = field(default_factory=MaskingSettings)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    validation: ValidationSettings = field(default_factory=ValidationSettings)
    checkpoint: CheckpointSettings = field(default_factory=CheckpointSettings)
    log: LogSettings = field(default_factory=LogSettings)
    seed: int = 17
    device: str = "auto"
    precision: Precision = "auto"
    attention: str = "auto"
    compile: bool = False
    fp8: bool = False
    deterministic: bool = False
    start: StartSettings | None = None
    distribution: DistributionSettings = field(default_factory=DistributionSettings)
    guard: GuardSettings = field(default_factory=GuardSettings)
    distillation: DistillationSettings | None = None

    def __post_init__(self) -> None:
        self.schedule()
        _require("micro_batch_tokens", self.micro_batch_tokens, self.micro_batch_tokens >= 1, "at least 1")
        _require("seed", self.seed, 0 <= self.seed < 1 << 63, "at least 0 and below 2^63")
        _require(
            "precision", self.precision, not self.fp8 or self.precision != "fp32", "auto or bf16 with `fp8`"
        )
        self._check_vocabulary()
        names = [source.name for source in self.data.sources]
        for index, phase in enumerate(self.phases):
            self._check_phase(f"phases.{index}", phase)
            for name in phase.mixture or {}:
                if name not in names:
                    raise ConfigError(
                        f"`phases.{index}.mixture.{name}` names no source{did_you_mean(name, names)}"
                    )

    def _check_vocabulary(self) -> None:
        """Check the size of a tokenizer to be trained now; of one that exists, once it is loaded."""
        size = round_up(self.tokenizer.vocab_size or 0)
        if size > self.model.vocab_size:
            raise ConfigError(
                f"`tokenizer.vocab_size` is {self.tokenizer.vocab_size}, in multiples of 64 {size}; it must "
                f"be at most `model.vocab_size`, {self.model.vocab_size}; lower it, or raise that"
            )
        if self.distillation is not None and size:
            raise ConfigError(
                f"`distillation` is set, but `tokenizer.vocab_size` {self.tokenizer.vocab_size} trains a "
                "tokenizer, which no teacher knows; the teacher's must be used; set `tokenizer.path` to "
                f"{self.distillation.teacher!r}"
            )
        if self.start is not None and self.start.new_words and size:
            raise ConfigError(
                f"`start.new_words` is set, but `tokenizer.vocab_size` {self.tokenizer.vocab_size} trains a "
                "tokenizer, which finds its own words; only one of them may be; leave the other out"
            )

    def _check_phase(self, where: str, phase: Phase) -> None:
        row, limit = self.micro_batch_tokens, self.model.max_position_embeddings
        for key in ("batch_tokens", "batch_warmup_start"):
            tokens = getattr(phase, key)
            if tokens is not None and tokens % row:
                raise ConfigError(
                    f"`{where}.{key}` is {tokens}; it must be a multiple of `micro_batch_tokens`, {row}"
                )
        if phase.sequence_length > min(row, limit):
            raise ConfigError(
                f"`{where}.sequence_length` is {phase.sequence_length}; it must be at most "
                f"`micro_batch_tokens`, {row}, and `model.max_position_embeddings`, {limit}"
            )

    def schedule(self) -> Schedule:
        """Return the phases as a schedule."""
        return Schedule(self.phases)

    @property
    def longest_sequence(self) -> int:
        """Tokens of the longest sequence of any phase."""
        return max(phase.sequence_length for phase in self.phases)


def read_run(path: Path, overrides: Iterable[str] = ()) -> PretrainRun:
    """Read a run file and apply `a.b=c` overrides.

    Raises:
        ConfigError: The file is missing, or a setting is unknown, missing or does not fit.
    """
    tree = complete(read_with_mixture(path, overrides))
    model = tree.get("model")
    if isinstance(model, dict) and "vocab_size" in model:
        # A preset's own ids may lie beyond this vocabulary; the tokenizer's take their place in any case.
        tree["model"] = {"pad_token_id": 0, **model}
    return config.build(PretrainRun, tree)


def phase_rows(run: PretrainRun) -> list[dict[str, str]]:
    """Describe the phases for people: the table of `--dry-run`."""
    return [
        {
            "phase": row["phase"],
            "tokens": human(row["tokens"]),
            "steps": f"{row['steps']:,}",
            "length": f"{row['sequence_length']:,}",
            "batch (tokens)": _path([human(size) for _, size in row["batch_sizes"]]),
            "full from": human(row["batch_sizes"][-1][0]),
            "learning rate": _path(
                [
                    f"{row[key]:.2g}"
                    for key in ("learning_rate_at_start", "learning_rate", "learning_rate_at_end")
                ]
            ),
            "mask": f"{row['mask_rate']:.0%}",
            "RoPE": f"{human(row['global_rope_theta'])} / {human(row['local_rope_theta'])}",
        }
        for row in run.schedule().table()
    ]


def _path(values: list[str]) -> str:
    """Write the stations of a value without repetitions, and only the outer ones where there are many."""
    stations = list(dict.fromkeys(values))
    if len(stations) > 3:
        stations = [stations[0], "…", stations[-1]]
    return " → ".join(stations)


def _require(key: str, value: object, is_right: bool, rule: str) -> None:
    if not is_right:
        raise ConfigError(f"`{key}` is {value!r}; it must be {rule}")
