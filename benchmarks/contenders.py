"""Who encodes in `benchmarks.encode_cpu`: ours and peers, on one checkpoint; token ids in, mean vectors out.

Each works in a process of its own, with a limit on memory and on time, so that a failure is a result too.
"""

from __future__ import annotations

import os
import random
import resource
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import modernbert
from modernbert.data.tokenizer import Tokenizer
from modernbert.infer.embedding import Embed
from modernbert.infer.embedding_head import EmbeddingConfig, EmbeddingHead
from modernbert.infer.encoder import Encoder
from modernbert.infer.export import export_onnx
from modernbert.infer.fused_linear import DnnLinear, Int8Linear
from modernbert.infer.fused_passes import NativePasses
from modernbert.infer.onnx_runner import pad
from modernbert.infer.sentence_folder import write as write_sentence_folder
from modernbert.infer.task import Prepared
from modernbert.model.config import EncoderConfig
from modernbert.model.encoder import ModernBertModel
from modernbert.model.init import initialise

BATCH = 32
"""Sequences that peers compute at once; it is the default of sentence-transformers."""
PLAIN, PLAIN_INT8 = "plain.onnx", "plain_int8.onnx"
USED_MEMORY = 0.8
VOCABULARY = 50_368
NUM_WORDS = 60_000
IN_SPREAD, OUT_SPREAD = 0.05, 0.02
"""Standard deviation of weights that read hidden states, and of those that add to them."""

Ids = list[list[int]]
Vectors = NDArray[np.float32]
Encode = Callable[[Ids], Vectors]


def save_checkpoint(folder: Path, preset: str) -> None:
    """Write random weights and a tokenizer of the published vocabulary's size, for all to load."""
    tokenizer = Tokenizer.train(_invented_words(), vocab_size=50_304, min_frequency=1)
    ids = {
        "pad_token_id": tokenizer.pad_id,
        "cls_token_id": tokenizer.cls_id,
        "sep_token_id": tokenizer.sep_id,
    }
    model = ModernBertModel(EncoderConfig.preset(preset, vocab_size=VOCABULARY, **ids))
    initialise(model, seed=0)
    spread_out(model)
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_sentence_folder(folder, EmbeddingHead(EmbeddingConfig(width=model.config.hidden_size)))


@torch.no_grad()
def spread_out(model: ModernBertModel) -> None:
    """Make each layer count, as training does.

    A fresh initialisation changes its embeddings so little (cosine 0.998 after all layers) that every
    precision would look exact.
    """
    for name, weight in model.named_parameters():
        if name.endswith(("Wqkv.weight", "Wi.weight", "Wo.weight")):
            weight.mul_((OUT_SPREAD if name.endswith("Wo.weight") else IN_SPREAD) / weight.std())


def _invented_words() -> Iterator[str]:
    choice = random.Random(0)
    for _ in range(NUM_WORDS):
        yield " " + "".join(choice.choices("abcdefghijklmnopqrstuvwxyz", k=choice.randint(3, 9)))


def export_ours(folder: Path) -> None:
    """Write `onnx/model.onnx` and `onnx/model_int8.onnx`."""
    model = ModernBertModel.from_pretrained(folder)
    export_onnx(model, folder)
    export_onnx(model, folder, quantize="int8")


def export_plain(folder: Path) -> None:
    """Export transformers' model as anyone would; int8 as optimum's settings for AVX512-VNNI make it."""
    from onnxruntime import quantization

    class Hidden(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = _transformers_model(folder, torch.float32)

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            return self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state

    ids = torch.full((2, 100), 7)
    axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence")}
    torch.onnx.export(
        Hidden().eval(),
        (ids, torch.ones_like(ids)),
        folder / PLAIN,
        input_names=["input_ids", "attention_mask"],
        output_names=["last_hidden_state"],
        dynamic_shapes=(axes, axes),
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    quantization.quantize_dynamic(
        folder / PLAIN, folder / PLAIN_INT8, per_channel=True, weight_type=quantization.QuantType.QInt8
    )


class EmbedIds(Embed):
    """`Encoder.encode` without its tokeniser: inputs are token ids already."""

    def prepare(self, inputs: list[Any], first: int) -> list[Prepared]:
        return [Prepared([ids]) for ids in inputs]


def ours(folder: Path, **options: Any) -> Encode:
    """Load as everybody does, and encode as `Encoder.encode` does."""
    encoder: Encoder = modernbert.load(folder, device="cpu", threads=torch.get_num_threads(), **options)
    assert encoder.encoder_runner is not None
    task = EmbedIds(encoder.encoder_runner, encoder.texts, encoder.embedding_head)
    return lambda sequences: np.stack(list(encoder.engine.run(task, sequences)))  # type: ignore[arg-type]


def with_transformers(folder: Path, dtype: torch.dtype) -> Encode:
    """SDPA, batches in the order given, padded to their longest."""
    model = _transformers_model(folder, dtype)

    @torch.inference_mode()
    def encode(sequences: Ids) -> Vectors:
        vectors = []
        for start in range(0, len(sequences), BATCH):
            inputs = pad(sequences[start : start + BATCH], model.config.pad_token_id)
            ids, mask = (torch.from_numpy(inputs[name]) for name in ("input_ids", "attention_mask"))
            hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state
            vectors.append(_mean(hidden.float().numpy(), inputs["attention_mask"]))
        return np.concatenate(vectors)

    return encode


def with_sentence_transformers(folder: Path, dtype: torch.dtype) -> Encode:
    """`SentenceTransformer.encode`, which sorts by length; its tokeniser is replaced by a table."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(folder), device="cpu", model_kwargs={"dtype": dtype})
    pad_id = model.tokenizer.pad_token_id

    def encode(sequences: Ids) -> Vectors:
        # Texts as long in characters, by which it sorts, as their sequences in tokens.
        table = {f"{index:>{len(ids)}}": ids for index, ids in enumerate(sequences)}

        def tokenised(texts: Sequence[str], **_: Any) -> dict[str, torch.Tensor]:
            inputs = pad([table[text] for text in texts], pad_id)
            return {name: torch.from_numpy(array) for name, array in inputs.items()}

        model[0].preprocess = tokenised
        vectors: Vectors = model.encode(list(table), batch_size=BATCH, show_progress_bar=False)
        return np.asarray(vectors, dtype=np.float32)

    return encode


def with_onnxruntime(folder: Path, file: str) -> Encode:
    """The plain export, batches sorted by length and padded to their longest."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()  # as many as all others have
    session = onnxruntime.InferenceSession(str(folder / file), options, providers=["CPUExecutionProvider"])
    pad_id = Tokenizer.from_pretrained(folder).pad_id

    def encode(sequences: Ids) -> Vectors:
        order = sorted(range(len(sequences)), key=lambda index: -len(sequences[index]))
        vectors: list[Any] = [None] * len(sequences)
        for start in range(0, len(order), BATCH):
            batch = order[start : start + BATCH]
            inputs = pad([sequences[index] for index in batch], pad_id)
            (hidden,) = session.run(["last_hidden_state"], inputs)
            for index, vector in zip(batch, _mean(hidden, inputs["attention_mask"]), strict=True):
                vectors[index] = vector
        return np.stack(vectors)

    return encode


def _transformers_model(folder: Path, dtype: torch.dtype) -> Any:
    import transformers

    transformers.utils.logging.disable_progress_bar()
    return transformers.AutoModel.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa").eval()


def _mean(hidden: NDArray[np.float32], mask: NDArray[np.int64]) -> Vectors:
    return np.einsum("bsd,bs->bd", hidden, mask.astype(np.float32)) / mask.sum(1, keepdims=True)


@dataclass(frozen=True)
class Contender:
    """One way to encode.

    Attributes:
        name: Who, and how.
        precision: Its class: `fp32`, `bf16` or `int8`.
        load: From the checkpoint's folder to what encodes.
        is_ours: Ours or a peer.
        skips: Workloads that would say nothing new.
    """

    name: str
    precision: str
    load: Callable[[Path], Encode]
    is_ours: bool = False
    skips: tuple[str, ...] = ()


REFERENCE = "transformers fp32"
"""All vectors are compared with its."""
DETERMINISTIC = "modernbert fp32, deterministic"
ST = "sentence-transformers"

# The reference is first. On a single sequence, sentence-transformers does what transformers does.
CONTENDERS = tuple(
    Contender(*fields)
    for fields in (
        (REFERENCE, "fp32", partial(with_transformers, dtype=torch.float32)),
        ("transformers bf16", "bf16", partial(with_transformers, dtype=torch.bfloat16)),
        (f"{ST} fp32", "fp32", partial(with_sentence_transformers, dtype=torch.float32), False, ("long",)),
        (f"{ST} bf16", "bf16", partial(with_sentence_transformers, dtype=torch.bfloat16), False, ("long",)),
        ("onnxruntime fp32", "fp32", partial(with_onnxruntime, file=PLAIN)),
        ("onnxruntime int8", "int8", partial(with_onnxruntime, file=PLAIN_INT8)),
        ("modernbert fp32", "fp32", partial(ours, dtype="float32"), True),
        ("modernbert bf16", "bf16", partial(ours, dtype="bfloat16"), True),
        ("modernbert int8", "int8", partial(ours, dtype="int8"), True),
        ("modernbert portable fp32", "fp32", partial(ours, backend="portable"), True, ("long",)),
        ("modernbert onnx fp32", "fp32", partial(ours, backend="onnx"), True),
        ("modernbert onnx int8", "int8", partial(ours, dtype="int8", backend="onnx"), True),
        (DETERMINISTIC, "fp32", partial(ours, deterministic=True), True, ("fixed", "mixed", "long")),
    )
)


class Isolated:
    """A process of its own.

    Args:
        timeout_seconds: After which a call is ended, and the process with it.
    """

    def __init__(self, timeout_seconds: int) -> None:
        self._timeout = timeout_seconds
        self._process: Executor = ProcessPoolExecutor(
            1, mp_context=get_context("spawn"), initializer=_limit_memory
        )

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Return what the function returns there; or, as a `Failure`, why it did not."""
        began = time.monotonic()
        future = self._process.submit(_timed, self._timeout, function, *arguments)
        error = future.exception()
        if error is None:
            return future.result()
        if isinstance(error, BrokenProcessPool):
            late = time.monotonic() - began >= self._timeout
            return Failure(
                f"timed out after {self._timeout} s" if late else "killed: out of memory, it seems"
            )
        if isinstance(error, MemoryError) or "alloc" in str(error).lower():
            return Failure("failed: out of memory")
        return Failure(f"failed: {type(error).__name__}: {str(error).strip()[:200]}")

    def close(self) -> None:
        """End the process."""
        self._process.shutdown()


@dataclass(frozen=True)
class Failure:
    """Why there is no figure."""

    reason: str


def _limit_memory() -> None:
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    resource.setrlimit(resource.RLIMIT_AS, (int(USED_MEMORY * whole),) * 2)


def _timed(seconds: int, function: Callable[..., Any], *arguments: Any) -> Any:
    signal.alarm(seconds)  # nobody catches it: it ends the process, whatever that is doing
    try:
        return function(*arguments)
    finally:
        signal.alarm(0)


# What a process has loaded.
_loaded: dict[str, Encode] = {}


def load(index: int, folder: Path) -> None:
    """Load a contender in this process."""
    _loaded["encode"] = CONTENDERS[index].load(folder)


def run(sequences: Ids) -> tuple[float, Vectors]:
    """Encode with what was loaded; return the seconds and the vectors."""
    began = time.perf_counter()
    vectors = _loaded["encode"](sequences)
    return time.perf_counter() - began, vectors


PRODUCTS = ("linear_pointwise", "onednn::")
"""What the names of matrix products hold."""
PASSES = {"attended": "attention", "normed": "norms", "gated": "gates", "stored": "casts"}
"""Passes between products, and what each is called."""
ROWS, WIDTH_IN, WIDTH_OUT = 4096, 768, 2304


def profile(sequences: Ids) -> dict[str, float]:
    """Encode with what was loaded, of ours, and say which share of the time each kind of work takes."""
    plain = {name: getattr(NativePasses, name) for name in PASSES}
    for name, function in plain.items():
        setattr(NativePasses, name, _labelled(PASSES[name], function))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        seconds, _ = run(sequences)
    for name, function in plain.items():
        setattr(NativePasses, name, function)
    spent = dict.fromkeys(("matrix products", *PASSES.values(), "other"), 0.0)
    for event in profiler.events():
        spent[_kind(event)] += event.self_cpu_time_total / 1e6
    spent["other"] += seconds - sum(spent.values())  # Python between the operations
    return {kind: time / seconds for kind, time in spent.items()}


def _labelled(label: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def labelled(*arguments: Any) -> Any:
        with torch.profiler.record_function(label):
            return function(*arguments)

    return labelled


def _kind(event: Any) -> str:
    """Name the outermost pass that an event is part of."""
    kind, parent = "other", event
    while parent is not None:
        if parent.name in PASSES.values():
            kind = parent.name
        parent = parent.cpu_parent
    return "matrix products" if any(part in event.name for part in PRODUCTS) else kind


@torch.inference_mode()
def product_rate(precision: str) -> float:
    """FLOP/s of one large product through the kernels of our fused encoder."""
    weight, x = torch.randn(WIDTH_OUT, WIDTH_IN), torch.randn(ROWS, WIDTH_IN)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.uint8}[precision]
    layer: Any = (Int8Linear if precision == "int8" else DnnLinear)(weight, dtype)
    taken, seconds = NativePasses(1, 1e-5, dtype).stored(x), []
    for _ in range(10):
        began = time.perf_counter()
        layer(taken)
        seconds.append(time.perf_counter() - began)
    return 2 * ROWS * WIDTH_IN * WIDTH_OUT / sorted(seconds)[len(seconds) // 2]
