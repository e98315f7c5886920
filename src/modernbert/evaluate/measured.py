"""What a measure of a masked language model found, and the model that is measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modernbert import files, telemetry
from modernbert.errors import BackendError, ConfigError, InputError
from modernbert.evaluate.written import Rows
from modernbert.infer.encoder import Encoder
from modernbert.infer.loading import load
from modernbert.model.heads import ModernBertForMaskedLM

NOTHING = "–"


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One measure of one model.

    Attributes:
        name: Of the measure, and of its files.
        headline: A line that says what was measured.
        tables: Rows of equal keys, all text, by their title.
        remarks: What a reader of the tables must know.
        figures: All of it as plain values.
        draw: Draws a picture into a folder; None: there is none to draw.
    """

    name: str
    headline: str
    tables: Mapping[str, Rows]
    remarks: Sequence[str]
    figures: Mapping[str, Any]
    draw: Callable[[Path], None] | None = None

    def save(self, folder: Path) -> None:
        """Write the figures as JSON, and the picture; where matplotlib is not installed, a note says so.

        Raises:
            StorageError: The disk is full or not writable.
        """
        files.write_json(folder / f"{self.name}.json", self.figures)
        if self.draw is not None:
            try:
                self.draw(folder)
            except BackendError as error:
                telemetry.note(f"no picture: {error}")


def load_masked_lm(name: str, *, device: str = "auto", dtype: str = "float32") -> Encoder:
    """Load a model that fills masks; in bfloat16 many of its scores would be the same.

    Raises:
        CheckpointError: It cannot be loaded.
        InputError: It has another head.
    """
    model = load(name, device=device, dtype=dtype)
    if model.architecture != ModernBertForMaskedLM.__name__:
        raise InputError(
            f"`{name}` is a `{model.architecture}`; to be measured it must fill masks; give a "
            f"`{ModernBertForMaskedLM.__name__}`"
        )
    return model


def check_length(length: int, model: Encoder) -> None:
    """Make sure that a model takes sequences of this length.

    Raises:
        ConfigError: It does not.
    """
    if length > model.max_length:
        raise ConfigError(
            f"`length` is {length:,}; `{model.name}` takes {model.max_length:,} tokens at most; lower it"
        )


def percent(share: float | None) -> str:
    """Write a share as people read it; None: there is none."""
    return NOTHING if share is None else f"{share:.1%}"
