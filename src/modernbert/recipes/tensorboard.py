"""The records of a run as TensorBoard draws them, against tokens."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modernbert.errors import BackendError

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

STEP_TAGS = {
    "loss": "train/loss",
    "accuracy": "train/accuracy",
    "objective": "train/objective",
    "divergence": "train/divergence",
    "hidden_distance": "train/hidden_distance",
    "gradient_norm": "train/gradient_norm",
    "learning_rate": "train/learning_rate",
    "batch_tokens": "train/batch_tokens",
    "tokens_per_second": "speed/tokens_per_second",
    "mfu": "speed/mfu",
    "utilisation": "speed/utilisation",
    "wait_seconds": "speed/wait_seconds",
    "memory_bytes": "speed/memory_bytes",
}
VALIDATION_TAGS = {"loss": "validation/loss", "accuracy": "validation/accuracy"}
SOURCE_TAG = "validation/loss_of"
LENGTH_TAGS = {"loss": "validation/loss_at", "pseudo_perplexity": "validation/pseudo_perplexity_at"}


class TensorBoard:
    """Writes records where TensorBoard reads; the axis that it calls step is tokens.

    Args:
        folder: For its files, which are made at the first record.

    Raises:
        BackendError: TensorBoard is not installed.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise BackendError(
                "`log.tensorboard` needs TensorBoard, which is not installed; "
                "run `pip install 'modernbert[tensorboard]'`, or set it to false"
            ) from None
        self._folder = folder
        self._new_writer = SummaryWriter
        self._writer: SummaryWriter | None = None

    def go_on_after(self, tokens: int) -> None:
        """Let TensorBoard forget what an interrupted run wrote after `tokens`."""
        self.close()
        self._writer = self._new_writer(str(self._folder), purge_step=tokens + 1)

    def write(self, record: Mapping[str, Any]) -> None:
        """Write one record of `metrics.jsonl`; it is on the disk when this returns."""
        if self._writer is None:
            self._writer = self._new_writer(str(self._folder))
        at = {"global_step": record["tokens"], "walltime": record["time"]}
        for tag, value in _scalars(record).items():
            self._writer.add_scalar(tag, value, **at)
        if "message" in record:
            self._writer.add_text(record["event"], record["message"], **at)
        self._writer.flush()

    def close(self) -> None:
        """Let go of the file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def _scalars(record: Mapping[str, Any]) -> dict[str, float]:
    """Pick a record's figures, each with the name under which TensorBoard files it."""
    tags = {"step": STEP_TAGS, "validation": VALIDATION_TAGS}.get(record["event"], {})
    scalars = {tag: record[key] for key, tag in tags.items() if record.get(key) is not None}
    scalars |= {f"{SOURCE_TAG}_{it['source']}": it["loss"] for it in record.get("by_source", ())}
    for length in record.get("by_length", ()):
        scalars |= {f"{tag}_{length['length']}": length[key] for key, tag in LENGTH_TAGS.items()}
    return scalars
