"""The settings that fine-tuning and the training of retrievers share."""

from __future__ import annotations

from dataclasses import dataclass, field

from modernbert.errors import ConfigError
from modernbert.runtime import Precision
from modernbert.train.parallel import DistributionSettings
from modernbert.train.supervised import TuningSettings


@dataclass(frozen=True, kw_only=True)
class SelectionSettings:
    """When the validation is looked at, and which checkpoint is taken.

    Attributes:
        times_an_epoch: How often it is looked at; each time a checkpoint is saved.
        metric: By which the best is chosen; null: the task's own.
        patience: The run ends once so many looks in a row brought nothing better; null: it goes to its end.
    """

    times_an_epoch: int = 1
    metric: str | None = None
    patience: int | None = None

    def __post_init__(self) -> None:
        require("times_an_epoch", self.times_an_epoch, self.times_an_epoch >= 1, "at least 1")
        require("patience", self.patience, self.patience is None or self.patience >= 1, "at least 1, or null")

    def check_against(self, *, has_validation: bool) -> None:
        """Refuse what would be without effect, where nothing is held out.

        Raises:
            ConfigError: A setting compares checkpoints, and there is nothing to compare them by.
        """
        for key in ("metric", "patience"):
            given = getattr(self, key)
            require(
                f"selection.{key}", given, given is None or has_validation, "null where nothing is held out"
            )


@dataclass(frozen=True, kw_only=True)
class TuningRun:
    """What every run has that begins with a checkpoint and goes over examples in epochs.

    Attributes:
        folder: Where everything of the run goes.
        model: Checkpoint to begin with: folder or hub id.
        revision: Branch, tag or commit of `model` on the hub.
        tuning: How weights follow the examples.
        selection: Which checkpoint is taken.
        micro_batch_tokens: Most tokens of one packed row, which is one forward pass.
        seed: Fixes new weights, dropout and the order of the examples.
        device: Where to compute.
        precision: Of forward and backward; weights are always fp32.
        attention: Attention backend.
        compile: Let torch.compile fuse the steps of each layer.
        deterministic: Compute the same bits each time; on a CPU it does in any case.
        distribution: How the run is spread over several processes.
    """

    folder: str
    model: str
    revision: str | None = None
    tuning: TuningSettings = field(default_factory=TuningSettings)
    selection: SelectionSettings = field(default_factory=SelectionSettings)
    micro_batch_tokens: int = 16_384
    seed: int = 17
    device: str = "auto"
    precision: Precision = "auto"
    attention: str = "auto"
    compile: bool = False
    deterministic: bool = False
    distribution: DistributionSettings = field(default_factory=DistributionSettings)

    def __post_init__(self) -> None:
        require("micro_batch_tokens", self.micro_batch_tokens, self.micro_batch_tokens >= 1, "at least 1")
        require("seed", self.seed, 0 <= self.seed < 1 << 63, "at least 0 and below 2^63")


def require(key: str, value: object, is_right: bool, rule: str) -> None:
    """Check a setting.

    Raises:
        ConfigError: It is not right.
    """
    if not is_right:
        raise ConfigError(f"`{key}` is {value!r}; it must be {rule}")
