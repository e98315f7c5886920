"""What others offer for the same weights: transformers and sentence-transformers, where installed."""

from __future__ import annotations

import contextlib
import importlib.util
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from typing import Any

import torch

from modernbert.evaluate.contenders import Checkpoint, Contender, Prepare, Run, Shape
from modernbert.evaluate.workloads import Document, in_batches
from modernbert.infer.onnx_runner import pad

TRANSFORMERS, SENTENCE_TRANSFORMERS = "transformers", "sentence-transformers"
SDPA, FLASH_4 = "sdpa", "flash_attention_4"
"""Names that transformers has for them."""
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
MOST_VERSIONS = 128
"""Compiled versions of one function; torch gives up at 8, and goes on uncompiled without a word."""


def find_peers(
    checkpoint: Checkpoint, device: torch.device, dtype: str, *, compiled: bool
) -> tuple[list[Contender], list[str]]:
    """Name the peers that are installed, and say which are not.

    Args:
        checkpoint: What they load.
        device: Where they compute.
        dtype: In which: `fp32`, `bf16` or `fp16`. For any other, which they lack, they compute in what they
            have.
        compiled: Whether each is measured compiled too.
    """
    if not _is_installed("transformers"):
        return [], ["peers: transformers is not installed (`pip install transformers`)"]
    own = dtype if dtype in DTYPES else "bf16" if device.type == "cuda" else "fp32"
    loaders: dict[str, Callable[..., Prepare]] = {TRANSFORMERS: _load_transformers}
    missing = []
    if _is_installed("sentence_transformers"):
        loaders[SENTENCE_TRANSFORMERS] = _load_sentence_transformers
    else:
        missing.append(f"peers: {SENTENCE_TRANSFORMERS} is not installed")
    attentions = [SDPA]
    why = _flash_refusal(device, own)
    if why is None:
        attentions.append(FLASH_4)
    else:
        missing.append(f"peers: without FlashAttention-4: {why}")
    return [
        Contender(
            name=" ".join([library, attention, *(["compiled"] if is_compiled else [])]),
            dtype=own,
            is_ours=False,
            load=partial(load, checkpoint, device, DTYPES[own], attention, is_compiled),
            is_compiled=is_compiled,
        )
        for library, load in loaders.items()
        for attention in attentions
        for is_compiled in ((False, True) if compiled else (False,))
    ], missing


@contextlib.contextmanager
def room_to_compile(is_wanted: bool) -> Iterator[None]:
    """Let a function be compiled for as many shapes as there are; where torch gives up, it says so."""
    if not is_wanted:
        yield
        return
    import torch._dynamo

    with torch._dynamo.config.patch(
        recompile_limit=MOST_VERSIONS,
        accumulated_recompile_limit=8 * MOST_VERSIONS,
        fail_on_recompile_limit_hit=True,
    ):
        yield


def _load_transformers(
    checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype, attention: str, is_compiled: bool
) -> Prepare:
    """Batches in the order given, padded to their longest, as its collators do."""
    import transformers

    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model: Any = transformers.AutoModel.from_pretrained(
            checkpoint.encoder, dtype=dtype, attn_implementation=attention
        )
    versions = _versions(model.to(device).eval(), is_compiled)

    def prepare(documents: Sequence[Document], places: int, shape: Shape) -> Run:
        batches = [
            _padded(batch, checkpoint.config.pad_token_id, may_drop_mask=attention != SDPA)
            for batch in in_batches(documents, max(1, places // max(map(len, documents))))
        ]
        version = versions(shape)

        @torch.inference_mode()
        def run() -> None:
            for batch in batches:
                version(**{name: array.to(device, non_blocking=True) for name, array in batch.items()})

        return run

    return prepare


def _load_sentence_transformers(
    checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype, attention: str, is_compiled: bool
) -> Prepare:
    """`SentenceTransformer.encode`, which sorts by length; its tokeniser is replaced by a table."""
    from sentence_transformers import SentenceTransformer

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model: Any = SentenceTransformer(
            str(checkpoint.folder),
            device=str(device),
            model_kwargs={"dtype": dtype, "attn_implementation": attention},
        )
    module: Any = model[0]
    tokenise = "preprocess" if hasattr(module, "preprocess") else "tokenize"  # since version 6; before
    versions = _versions(module.model if hasattr(module, "model") else module.auto_model, is_compiled)

    def prepare(documents: Sequence[Document], places: int, shape: Shape) -> Run:
        # Texts as long in characters, by which it sorts, as their documents in tokens.
        table = {f"{index:>{len(document)}}": document for index, document in enumerate(documents)}
        count = max(1, places // max(map(len, documents)))

        def tokenised(texts: Sequence[str], **_: Any) -> Any:
            rows = [table[text] for text in texts]
            if getattr(module, "can_flatten_inputs", False):  # as it does itself where attention allows
                features = module.data_collator([{"input_ids": row.tolist()} for row in rows])
                features.pop("labels", None)
                return features
            arrays = pad(rows, checkpoint.config.pad_token_id)  # type: ignore[arg-type]
            return {name: torch.from_numpy(array) for name, array in arrays.items()}

        version = versions(shape)

        def run() -> None:
            setattr(module, tokenise, tokenised)
            setattr(module, "model" if hasattr(module, "model") else "auto_model", version)
            model.encode(list(table), batch_size=count, show_progress_bar=False)

        return run

    return prepare


def _versions(model: Any, is_compiled: bool) -> Callable[[Shape], Any]:
    """Give the model for documents of a kind: compiled once for each kind, or always itself."""

    @cache
    def version(shape: Shape) -> Any:
        on_gpu = next(model.parameters()).device.type == "cuda"
        mode = "reduce-overhead" if shape == "single" and on_gpu else None  # with CUDA graphs
        return torch.compile(model, dynamic=shape == "variable", mode=mode)

    return version if is_compiled else lambda shape: model


def _padded(batch: Sequence[Document], pad_id: int, *, may_drop_mask: bool) -> dict[str, torch.Tensor]:
    """Lay documents below each other.

    A mask that hides nothing sends flash attention through a slower way; SDPA, compiled, was faster with it.
    """
    arrays = pad(batch, pad_id)  # type: ignore[arg-type]  # arrays of ids serve as lists of them do
    if may_drop_mask and arrays["attention_mask"].all():
        del arrays["attention_mask"]
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def _flash_refusal(device: torch.device, dtype: str) -> str | None:
    """Say why transformers cannot use FlashAttention-4 here, if it cannot."""
    if device.type != "cuda" or dtype not in ("bf16", "fp16"):
        return f"it computes in bf16 or fp16 on CUDA, not in {dtype} on {device.type}"
    import transformers

    is_there = getattr(transformers.utils, "is_flash_attn_4_available", None)
    if is_there is None or not is_there():
        return "it is not installed, or this transformers does not know it"
    return None


def _is_installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None
