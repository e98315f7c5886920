"""Who computes in `modernbert bench`, and the one checkpoint that all of them load."""

from __future__ import annotations

import contextlib
import itertools
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from modernbert import hub
from modernbert.data.tokenizer import Tokenizer
from modernbert.errors import CheckpointError, InputError
from modernbert.evaluate.workloads import Document
from modernbert.infer import sentence_folder
from modernbert.infer.embedding_head import EmbeddingConfig, EmbeddingHead
from modernbert.infer.engine import cut
from modernbert.infer.loading import DTYPES, ENGINES, load
from modernbert.infer.verify import load_encoder
from modernbert.model.checkpoint import read_config
from modernbert.model.config import PRESETS, EncoderConfig
from modernbert.runtime import uses_bf16

Shape = Literal["fixed", "variable", "single"]
"""What a compiler may rely on: all documents of one length, lengths that change, or one document alone."""

Run = Callable[[], object]
Prepare = Callable[[Sequence[Document], int, Shape], Run]
"""From documents, and how many places a batch may have, to what computes all of them once."""

SMALLEST_VOCABULARY = 320


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One way to compute a model's hidden states.

    Attributes:
        name: Who, and how.
        dtype: In which it computes.
        is_ours: Ours or a peer.
        load: Loads the model.
        is_compiled: Whether `torch.compile` has a part in it.
    """

    name: str
    dtype: str
    is_ours: bool
    load: Callable[[], Prepare]
    is_compiled: bool = False


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What all contenders load.

    Attributes:
        folder: The whole, with what sentence-transformers wants.
        encoder: Where the encoder's files are.
        config: The encoder's.
        remarks: What is not as it was found.
    """

    folder: Path
    encoder: Path
    config: EncoderConfig
    remarks: tuple[str, ...] = ()


@contextlib.contextmanager
def shared_checkpoint(model: str | Path) -> Iterator[Checkpoint]:
    """Give the folder of a model; for a preset or a model without a tokenizer, one that lasts for the block.

    Ids are drawn, not read from text, but every loader of text asks for a tokenizer.

    Raises:
        CheckpointError: Nothing found, or files that are damaged.
    """
    with tempfile.TemporaryDirectory(prefix="modernbert-bench-") as name:
        made = Path(name)
        if str(model) in PRESETS and not Path(model).is_dir():
            load_encoder(model).save_pretrained(made)
            _stand_in_tokenizer().save_pretrained(made)
            config = read_config(made)
            sentence_folder.write(made, EmbeddingHead(EmbeddingConfig(width=config.hidden_size)))
            remark = f"`{model}` is a preset: random weights"
            yield Checkpoint(folder=made, encoder=made, config=config, remarks=(remark,))
            return
        patterns = (*sentence_folder.FILES, "onnx/*")
        folder = hub.find(model, patterns=patterns)
        encoder = sentence_folder.read(folder).encoder
        config = read_config(encoder)
        if _has_tokenizer(encoder):
            yield Checkpoint(folder=folder, encoder=encoder, config=config)
            return
        for file in encoder.iterdir():
            (made / file.name).symlink_to(file.resolve())
        _stand_in_tokenizer().save_pretrained(made)
        remark = f"`{model}` has no tokenizer of its own; one stood in, which no figure depends on"
        yield Checkpoint(folder=made, encoder=made, config=config, remarks=(remark,))


def default_backends(device: torch.device) -> tuple[str, ...]:
    """Choose what of ours is measured if nothing is named.

    On a GPU each engine but the definition, and the file for CPUs; elsewhere, where time is dear, what
    `load` chooses.
    """
    return tuple(it for it in ENGINES if it not in ("plain", "onnx")) if device.type == "cuda" else ("auto",)


def dtype_of(dtype: str, device: torch.device) -> str:
    """Say what a dtype is called, and `auto` comes to."""
    named = DTYPES.get(dtype, dtype)
    return ("bf16" if uses_bf16(device, "auto") else "fp32") if named == "auto" else named


def find_ours(
    checkpoint: Checkpoint, device: torch.device, dtype: str, backends: Sequence[str]
) -> list[Contender]:
    """Name our contenders: an engine each. Whether it serves shows when it is loaded."""
    return [
        Contender(
            name=f"modernbert {backend}",
            dtype=dtype_of(dtype, device),
            is_ours=True,
            load=partial(_load_ours, checkpoint.folder, device, dtype, backend),
        )
        for backend in backends
    ]


def _load_ours(folder: Path, device: torch.device, dtype: str, backend: str) -> Prepare:
    """Load as everybody does. A batch is filled to its places: nothing is padded."""
    encoder = load(folder, device=str(device), dtype=dtype, backend=backend, batch_tokens=1)
    runner: Any = encoder.encoder_runner
    if runner is None:
        raise InputError(
            f"`{folder}` was exported with its head; its hidden states must be had; export the encoder alone"
        )

    def prepare(documents: Sequence[Document], places: int, shape: Shape) -> Run:
        rest = iter(documents)
        sizes = cut([len(document) for document in documents], places)
        batches = [list(itertools.islice(rest, size)) for size in sizes]

        def run() -> None:
            for batch in batches:
                runner(batch)

        return run

    return prepare


def _has_tokenizer(folder: Path) -> bool:
    try:
        Tokenizer.from_pretrained(folder)
    except (InputError, CheckpointError):
        return False
    return True


def _stand_in_tokenizer() -> Tokenizer:
    return Tokenizer.train(["a text"], vocab_size=SMALLEST_VOCABULARY, min_frequency=1)
