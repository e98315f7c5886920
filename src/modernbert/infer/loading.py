"""`modernbert.load`: a folder or hub id as an `Encoder`, on the fastest exact path that the device has."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from modernbert import hub
from modernbert.data.tokenizer import Tokenizer
from modernbert.data.tokenizer_files import TOKENIZER
from modernbert.errors import BackendError, CheckpointError, ConfigError, InputError, did_you_mean
from modernbert.infer import fused, sentence_folder
from modernbert.infer.embedding_head import EmbeddingConfig, EmbeddingHead
from modernbert.infer.encoder import Encoder
from modernbert.infer.engine import Engine
from modernbert.infer.gpu import encoder as gpu
from modernbert.infer.gpu.encoder import GpuEncoder
from modernbert.infer.onnx_runner import FOLDER, INT8_FILE, OnnxRunner
from modernbert.infer.rank import activation_of
from modernbert.infer.runner import Runner, TorchRunner
from modernbert.infer.texts import Texts
from modernbert.model import adapter_files, heads
from modernbert.model.checkpoint import DOWNLOADED, Pretrained, read_config
from modernbert.model.config import PRESETS, EncoderConfig
from modernbert.model.encoder import ModernBertModel
from modernbert.model.init import initialise
from modernbert.ops.attention import BACKENDS
from modernbert.runtime import Precision, choose_device

log = logging.getLogger(__name__)

ENCODER = ModernBertModel.__name__
DTYPES: dict[Any, str] = {
    "auto": "auto",
    **dict.fromkeys(("float32", "fp32", torch.float32), "fp32"),
    **dict.fromkeys(("bfloat16", "bf16", torch.bfloat16), "bf16"),
    **dict.fromkeys(("float16", "fp16", torch.float16), "fp16"),
    **dict.fromkeys(("int8", torch.int8), "int8"),
}
"""What may be asked for as `dtype`, and what it is called here."""

ENGINES = ("auto", "fused", "onnx", *BACKENDS)
"""What may be asked for as `backend`; or a pair of `BACKENDS`, `fa3+varlen`."""

# More would drive activations out of the caches, most of all in int8.
CPU_BATCH_TOKENS = 2_048
# On a GPU: room for other work, and no more than keeps its units busy.
USED_MEMORY = 0.6
LARGEST_BATCH_TOKENS = 262_144
TRIAL = (16, 512)
# [CLS], one token, [SEP].
SHORTEST_LIMIT = 3


def load(
    name: str | Path,
    *,
    device: str | None = None,
    dtype: str | torch.dtype = "auto",
    backend: str = "auto",
    tokenizer: str | Path | None = None,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    token: str | bool | None = None,
    max_length: int | None = None,
    batch_tokens: int | None = None,
    deterministic: bool = False,
    threads: int | None = None,
) -> Encoder:
    """Load a model for use.

    Args:
        name: A folder or hub id of a ModernBERT with any head, of a sentence-transformers model on one, or of
            an adapter, which is merged into the base model that it names; or a preset's name (`tiny`, `base`
            …), which gives random weights and a masked-LM head, to try a shape out.
        device: `cpu`, `cuda`, `cuda:1`, `mps`; None: the best there is.
        dtype: Of the products: `float32`, `bfloat16`, `float16` (GPU), `int8` (CPU). `auto` is exact float32
            on a CPU, and bfloat16 on a GPU that computes in it natively.
        backend: `fused`: re-arranged weights for a CPU, or in bfloat16 for a Hopper GPU; `onnx`: the folder's
            exported file; or an attention backend for the plain model (`varlen`, `fa3`, `fa4`, `portable`,
            `plain`, or one for global and one for windowed layers: `fa3+varlen`). `auto` takes `fused` on a
            CPU that can, else the fastest attention backend that serves. A named one never falls back.
        tokenizer: Folder or hub id of the tokenizer; None: the model's own, which a preset has not.
        revision: Branch, tag or commit of `name` on the hub.
        cache_dir: Where downloads are kept; None: the hub's own cache.
        local_files_only: Use what the cache holds and ask nobody.
        token: Access token of the hub.
        max_length: Tokens beyond which texts are cut; None: what the model takes.
        batch_tokens: Tokens that share a forward pass; None: on a GPU what its memory holds, measured once.
        deterministic: The same bits for a text whatever its neighbours: each sequence runs alone.
        threads: Threads of torch in this process, or of onnxruntime; None: as they are. A short text on a
            machine of many cores is faster with few.

    Raises:
        CheckpointError: Nothing found, or files that are damaged or of another architecture; of an adapter,
            its base model too.
        ConfigError: An unknown dtype or backend, or a number out of range.
        BackendError: A named backend or dtype cannot serve here; or the extra for adapters is missing.
        InputError: A preset without a tokenizer, or one that cannot be read.
    """
    precision = _named("dtype", dtype, DTYPES)
    known = BACKENDS if "+" in backend else ENGINES
    for part in backend.split("+"):
        if part not in known:
            raise ConfigError(f"unknown `backend` `{part}`{did_you_mean(part, known)}")
    for argument, number in {"threads": threads, "batch_tokens": batch_tokens}.items():
        if number is not None and number < 1:
            raise ConfigError(f"`{argument}` is {number}; it must be at least 1, or None")
    chosen = choose_device("cpu" if backend == "onnx" else device)
    if threads is not None and backend != "onnx":
        torch.set_num_threads(threads)
    access: dict[str, Any] = {"cache_dir": cache_dir, "local_files_only": local_files_only, "token": token}
    if str(name) in PRESETS and not Path(name).is_dir():
        parts = _preset(str(name), tokenizer, access)
    else:
        parts = _checkpoint(name, backend == "onnx", tokenizer, revision, access)
    parts.tokenizer.check_fits(parts.config.vocab_size)
    if backend == "onnx":
        runner, encoder_runner = _onnx_runners(parts, device, precision, threads)
    else:
        runner, encoder_runner = _torch_runners(parts, chosen, precision, backend)
    limit = _max_length(max_length, parts)
    return Encoder(
        name=str(name),
        folder=parts.folder,
        architecture=ENCODER if runner is encoder_runner else parts.kind.__name__,
        runner=runner,
        encoder_runner=encoder_runner,
        texts=Texts(parts.tokenizer, limit),
        embedding_head=parts.embedding_head.eval(),
        activation=parts.activation,
        engine=Engine(
            batch_tokens or _batch_tokens(encoder_runner or runner, limit), deterministic=deterministic
        ),
    )


@dataclass(frozen=True, kw_only=True)
class _Parts:
    """What a name stands for, before it is put to work."""

    kind: type[Pretrained]
    config: EncoderConfig
    folder: Path | None
    tokenizer: Tokenizer
    embedding_head: EmbeddingHead
    activation: str | None = None
    base: Path | None = None
    """Where the weights are that the folder's adapter belongs to, if that is all it holds."""

    def model(self, *, mapped: bool = False) -> Pretrained:
        """Return the model in fp32 on the CPU: the folder's, or with random weights."""
        if self.folder is not None and self.base is not None:
            return adapter_files.load_merged(self.folder, self.base, dtype=torch.float32)
        if self.folder is not None:
            return self.kind.from_pretrained(self.folder, dtype=torch.float32, mapped=mapped)
        model = self.kind(self.config)
        initialise(model, seed=0)
        return model.eval()


def _preset(name: str, tokenizer: str | Path | None, access: dict[str, Any]) -> _Parts:
    if tokenizer is None:
        raise InputError(
            f"the preset `{name}` has random weights and no tokenizer; it must be given one; name one as "
            "`tokenizer`"
        )
    words = Tokenizer.from_pretrained(tokenizer, **access)
    ids = {"pad_token_id": words.pad_id, "cls_token_id": words.cls_id, "sep_token_id": words.sep_id}
    config = EncoderConfig.preset(name, vocab_size=words.vocab_size, **ids)
    head = EmbeddingHead(EmbeddingConfig(width=config.hidden_size))
    kind = heads.ModernBertForMaskedLM
    return _Parts(kind=kind, config=config, folder=None, tokenizer=words, embedding_head=head)


def _checkpoint(
    name: str | Path,
    has_onnx: bool,
    tokenizer: str | Path | None,
    revision: str | None,
    access: dict[str, Any],
) -> _Parts:
    patterns = (*sentence_folder.FILES, "onnx/*") if has_onnx else sentence_folder.FILES
    found = sentence_folder.read(hub.find(name, patterns=patterns, revision=revision, **access))
    base = _base(found.encoder, access) if adapter_files.is_adapter(found.encoder) else None
    own = found.encoder if base is None or (found.encoder / TOKENIZER).is_file() else base
    return _Parts(
        kind=heads.class_of(found.encoder),
        config=read_config(found.encoder),
        folder=found.encoder,
        tokenizer=Tokenizer.from_pretrained(tokenizer or own, **access),
        embedding_head=found.head,
        activation=activation_of(found.encoder),
        base=base,
    )


def _base(folder: Path, access: dict[str, Any]) -> Path:
    """Find the base model of an adapter."""
    name, revision = adapter_files.base_of(folder)
    try:
        return hub.find(name, patterns=DOWNLOADED, revision=revision, **access)
    except CheckpointError as error:
        raise CheckpointError(f"`{folder}` is an adapter, and its base model {error}") from error


def _torch_runners(
    parts: _Parts, device: torch.device, precision: str, backend: str
) -> tuple[Runner, Runner]:
    """Put a model to work in torch: itself, and its encoder alone."""
    if _is_fused(parts.config, device, precision, backend):
        return _fused_runners(parts.model(mapped=True), device, precision)
    model = parts.model().to(device)
    heads.encoder_of(model).backend = backend
    alone = TorchRunner(heads.encoder_of(model), cast(Precision, precision))
    if backend != "auto" or device.type == "cuda":
        # A named backend that cannot serve says so here, and `auto` measures, before memory is measured.
        alone([[parts.config.pad_token_id]])
    return (
        alone if heads.encoder_of(model) is model else TorchRunner(model, cast(Precision, precision))
    ), alone


def _fused_runners(model: Pretrained, device: torch.device, precision: str) -> tuple[Runner, Runner]:
    plain = heads.encoder_of(model)
    encoder: nn.Module
    if device.type == "cuda":
        around: Precision = "bf16"  # of the heads
        encoder = GpuEncoder(plain, device)
    else:
        around = "fp32"
        exact = "fp32" if precision == "auto" else precision
        encoder = fused.FusedEncoder(plain, cast(fused.FusedPrecision, exact))
    alone = TorchRunner(encoder, around)
    if isinstance(model, ModernBertModel):
        return alone, alone
    model.model = encoder
    model.tie_weights()
    copied = {id(parameter) for parameter in encoder.parameters()}
    for parameter in model.parameters():
        if id(parameter) not in copied:
            parameter.data = parameter.data.to(device, copy=True)  # out of the mapped file
    return TorchRunner(model, around), alone


def _is_fused(config: EncoderConfig, device: torch.device, precision: str, backend: str) -> bool:
    """Whether a fused encoder, the CPU's or the GPU's, is to serve.

    Raises:
        BackendError: Only it could, and it cannot.
    """
    if precision == "int8" and backend not in ("auto", "fused"):
        raise BackendError(f"the backend `{backend}` has no int8; choose `auto`, `fused` or `onnx`, on a CPU")
    if backend not in ("auto", "fused"):
        return False
    on_gpu = device.type == "cuda"
    why = gpu.refusal(device, precision, config) if on_gpu else fused.refusal(device, precision)
    if why is None and on_gpu and backend == "auto" and not gpu.IS_AUTOMATIC:
        why = "on a GPU it is taken by name alone, until all of its tests have run on one"
    if why is None:
        log.info("backend for %s, %s: fused", device, precision)
        return True
    if backend == "fused" or precision == "int8":
        raise BackendError(f"the `fused` backend cannot serve: {why}; choose `auto`, or another `dtype`")
    log.info("backend for %s, %s: not fused: %s", device, precision, why)
    return False


def _onnx_runners(
    parts: _Parts, device: str | None, precision: str, threads: int | None
) -> tuple[Runner, Runner | None]:
    """Put the folder's exported file to work: the whole model, and its encoder if that is what it holds."""
    if parts.folder is None:
        raise InputError("a preset has no ONNX file; export it first, or choose another `backend`")
    if device not in (None, "auto", "cpu") or precision not in ("auto", "fp32", "int8"):
        raise BackendError(
            f"the `onnx` backend serves on a CPU in float32 or int8, not on {device or 'cpu'} in {precision}"
        )
    path = parts.folder / FOLDER / INT8_FILE if precision == "int8" else parts.folder
    runner = OnnxRunner(path, threads=threads)
    return runner, runner if runner.gives_hidden_states else None


def _max_length(wanted: int | None, parts: _Parts) -> int:
    limit = parts.config.max_position_embeddings
    if wanted is None:
        return min(limit, parts.embedding_head.config.max_seq_length or limit)
    if not SHORTEST_LIMIT <= wanted <= limit:
        raise ConfigError(f"`max_length` is {wanted}; it must be from {SHORTEST_LIMIT} to {limit}")
    return wanted


def _batch_tokens(runner: Runner, max_length: int) -> int:
    """Choose how many tokens share a forward pass; on a GPU by the memory that a trial takes."""
    device = runner.device
    if device.type != "cuda":
        return CPU_BATCH_TOKENS
    rows, length = TRIAL[0], min(TRIAL[1], max_length)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    runner([[runner.config.pad_token_id] * length] * rows)
    a_token = (torch.cuda.max_memory_allocated(device) - before) / (rows * length)
    free, _ = torch.cuda.mem_get_info(device)
    fitting = int(USED_MEMORY * free / max(a_token, 1.0))
    # A power of two, so that little differences of free memory do not change what is computed together.
    chosen: int = 1 << max(CPU_BATCH_TOKENS, min(fitting, LARGEST_BATCH_TOKENS)).bit_length() - 1
    log.info("%s: %.0f kB a token, %d tokens a batch", device, a_token / 1e3, chosen)
    return chosen


def _named(argument: str, value: Any, table: Mapping[Any, str]) -> str:
    if value not in table:
        names = [name for name in table if isinstance(name, str)]
        raise ConfigError(f"unknown `{argument}` `{value}`{did_you_mean(str(value), names)}")
    return table[value]
