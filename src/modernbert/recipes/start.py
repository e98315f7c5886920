"""Beginning a run with the weights of a checkpoint: continued pretraining, a new language, another shape.

The run file's `start` names the checkpoint. What the file does not say itself is the checkpoint's: the shape,
the tokenizer, the RoPE bases of the phases. `complete` fills them in, so that `run.yaml` says everything.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from modernbert import config, hub
from modernbert.data.shards import TokenShards
from modernbert.data.tokenizer import Tokenizer
from modernbert.data.tokenizer_training import round_up
from modernbert.data.vocabulary import (
    Origins,
    origins,
    tokens_per_character,
    with_new_words,
)
from modernbert.errors import CheckpointError, ConfigError, InputError
from modernbert.model.checkpoint import CONFIG, DOWNLOADED, read_config
from modernbert.model.config import EncoderConfig, HeadConfig
from modernbert.model.heads import ModernBertForMaskedLM
from modernbert.model.tiling import resize
from modernbert.model.vocabulary import transfer_rows

_SHAPE = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
_THETAS = ("global_rope_theta", "local_rope_theta")
_SAMPLED_DOCUMENTS = 64  # of each source
_SAMPLED_TOKENS = 4096  # of each document


@dataclass(frozen=True, kw_only=True)
class StartSettings:
    """Which checkpoint a run begins with, and what becomes of its weights and words.

    Attributes:
        model: Folder or hub id: a published model, or a run's `model` or one of its `checkpoints`. Its
            masked-LM head is kept; where it has another or none, a new one is drawn.
        revision: Branch, tag or commit on the hub; None: its main branch.
        how: `copy` keeps the shape. `tile` and `shrink` fill the shape that `model` gives with the
            checkpoint's weights, centred and repeated, or picked in equal strides (paper 2.2.2; mmBERT).
        keep_layer_types: With `tile` or `shrink`, take global layers from global ones and local ones from
            local ones; published large took them as they came.
        new_words: Words that take the places of the tokenizer's `[unusedN]`. Each is one token after a
            space, and begins as the mean of the tokens that it was cut into.
    """

    model: str
    revision: str | None = None
    how: Literal["copy", "tile", "shrink"] = "copy"
    keep_layer_types: bool = False
    new_words: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.keep_layer_types and self.how == "copy":
            raise ConfigError(
                "`keep_layer_types` is true while `how` is 'copy', which keeps every layer; leave it out, or "
                "set `how` to tile or shrink"
            )


@dataclass(frozen=True)
class VocabularyReport:
    """What another tokenizer means for the checkpoint's words and the run's text.

    Attributes:
        shared: Tokens whose rows are copies.
        from_pieces: Tokens whose rows are the mean of the tokens that they were cut into.
        from_nothing: Tokens whose rows are the mean of all.
        tokens_per_character_before: Of a sample of the run's text, with the checkpoint's tokenizer.
        tokens_per_character: Of the same, with the run's.
    """

    shared: int
    from_pieces: int
    from_nothing: int
    tokens_per_character_before: float
    tokens_per_character: float


@dataclass(frozen=True)
class StartReport:
    """What a run began with.

    Attributes:
        model: The checkpoint.
        how: How its weights were taken.
        vocabulary: What became of its vocabulary; None if the tokenizer is the same.
    """

    model: str
    how: str
    vocabulary: VocabularyReport | None = None

    def summary(self) -> str:
        """Say it in a line."""
        line = f"begins with `{self.model}`" + ("" if self.how == "copy" else f" ({self.how})")
        if words := self.vocabulary:
            line += (
                f"; of its tokens {words.shared:,} are known, {words.from_pieces:,} are the mean of known "
                f"ones, {words.from_nothing:,} are new; tokens a character: "
                f"{words.tokens_per_character_before:.3f} before, {words.tokens_per_character:.3f} now"
            )
        return line


def complete(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Fill in a run file's tree what it leaves to the checkpoint that it starts from.

    These are the tokenizer and, unless another shape is to be filled, the shape and the phases' RoPE bases.
    A tree without `start` stays as it is. Where the run has begun and its checkpoint is gone, what the run's
    own folder says serves.

    Raises:
        ConfigError: Settings that contradict the checkpoint.
        CheckpointError: The checkpoint cannot be found or read.
        InputError: Its tokenizer cannot.
    """
    if not isinstance(tree.get("start"), Mapping):
        return dict(tree)
    start = config.build(StartSettings, tree["start"], "start")
    full = {"tokenizer": {"path": start.model}, **tree}
    if start.how != "copy":
        return full
    given = tree.get("model", {})
    if not isinstance(given, Mapping):
        return full
    if "preset" in given:
        raise ConfigError(
            f"`model.preset` is {given['preset']!r} beside `start.model`; the shape is the checkpoint's; "
            "leave it out, or set `start.how` to tile or shrink"
        )
    shape = _shape(start, full)
    full["model"] = {**config.to_tree(shape), **given}
    _check_shape(shape, EncoderConfig.from_tree(full["model"], "model"))
    if isinstance(full.get("phases"), list):
        thetas = {name: getattr(shape, name) for name in _THETAS}
        full["phases"] = [
            {**thetas, **phase} if isinstance(phase, Mapping) else phase for phase in full["phases"]
        ]
    return full


def open_tokenizer(path: str, start: StartSettings | None) -> Tokenizer:
    """Load a run's tokenizer: a folder, `tokenizer.json` or hub id, with the new words of `start`.

    Raises:
        CheckpointError: It cannot be found.
        InputError: Its file is damaged.
        ConfigError: The new words do not fit it.
    """
    if Path(path).is_file():
        tokenizer = Tokenizer.from_file(path)
    else:
        is_own = start is not None and path == start.model
        revision = start.revision if start is not None and is_own else None
        tokenizer = Tokenizer.from_pretrained(path, revision=revision)
    return with_new_words(tokenizer, start.new_words) if start is not None and start.new_words else tokenizer


def begin(
    model: ModernBertForMaskedLM,
    start: StartSettings,
    tokenizer: Tokenizer,
    shards: Iterable[TokenShards],
    *,
    seed: int,
) -> StartReport:
    """Give a new model, in place, the weights of the checkpoint.

    Args:
        model: Of the run's shape, on any device, not sharded yet.
        start: Which checkpoint, and how.
        tokenizer: The run's.
        shards: The run's text, for the tokens a character.
        seed: Fixes what is drawn where the checkpoint has no masked-LM head.

    Raises:
        CheckpointError: The checkpoint cannot be found, or does not fit the model.
        InputError: Its tokenizer cannot be read.
        ConfigError: The shape cannot be made from it.
    """
    folder = hub.find(start.model, patterns=DOWNLOADED, revision=start.revision)
    head = _head(read_config(folder))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # for a head that is drawn
        source = ModernBertForMaskedLM.from_pretrained(folder, dtype=torch.float32, new_head=head)
    old, report = Tokenizer.from_pretrained(folder), StartReport(start.model, start.how)
    if old.fingerprint != tokenizer.fingerprint:
        old.check_fits(source.config.vocab_size)
        found = origins(tokenizer, old)
        texts = [text for each in shards for text in _sample(each, tokenizer)]
        report = replace(report, vocabulary=_vocabulary_report(found, old, tokenizer, texts))
        source = _with_rows(source, found, model.config.vocab_size)
    elif source.config.vocab_size != model.config.vocab_size:
        kept = min(source.config.vocab_size, model.config.vocab_size)
        source = _with_rows(source, [(id,) for id in range(kept)], model.config.vocab_size)
    if start.how == "copy":
        _check_shape(source.config, model.config)
        model.load_state_dict(source.state_dict())
    else:
        resize(model, source, how=start.how, keep_layer_types=start.keep_layer_types)
    return report


def _shape(start: StartSettings, tree: Mapping[str, Any]) -> EncoderConfig:
    """Return the checkpoint's shape, with a row for each token of the run's tokenizer."""
    try:
        shape = read_config(hub.find(start.model, patterns=(CONFIG,), revision=start.revision))
        return _for_tokenizer(replace(shape, head=_head(shape)), start, tree["tokenizer"])
    except (CheckpointError, InputError):
        path = Path(str(tree.get("folder"))) / "run.yaml"
        begun = config.load(path) if path.exists() else {}
        if begun.get("start") != config.to_tree(start):
            raise
        return EncoderConfig.from_tree(begun["model"], "model")


def _for_tokenizer(shape: EncoderConfig, start: StartSettings, tokenizer: Any) -> EncoderConfig:
    """Give a shape the size of another tokenizer's vocabulary. Its ids are set once it is loaded."""
    given = tokenizer if isinstance(tokenizer, Mapping) else {}
    path, size = given.get("path"), given.get("vocab_size")
    if isinstance(path, str) and path != start.model:
        size = open_tokenizer(path, None).vocab_size
    if not isinstance(size, int):  # the checkpoint's own, or a mistake that is named where the run is built
        return shape
    return replace(
        shape,
        vocab_size=round_up(size),
        pad_token_id=0,
        cls_token_id=0,
        sep_token_id=0,
        bos_token_id=None,
        eos_token_id=None,
    )


def _head(shape: EncoderConfig) -> HeadConfig:
    """Return the masked-LM head of a checkpoint, whatever head it has."""
    return HeadConfig(bias=shape.head.bias)


def _check_shape(checkpoint: EncoderConfig, wanted: EncoderConfig) -> None:
    for name in _SHAPE:
        has, asked = getattr(checkpoint, name), getattr(wanted, name)
        if has != asked:
            raise ConfigError(
                f"`model.{name}` is {asked}; with `start.how` 'copy' it must be the checkpoint's, {has}; "
                "leave it out, or set `start.how` to tile or shrink"
            )


def _with_rows(
    source: ModernBertForMaskedLM, found: Sequence[Sequence[int]], num_rows: int
) -> ModernBertForMaskedLM:
    """Return a model with the same weights but other rows of the vocabulary."""
    tensors = transfer_rows(source.state_dict(), found, num_rows)
    with torch.device("meta"):
        model = ModernBertForMaskedLM(replace(source.config, vocab_size=num_rows, pad_token_id=0))
    model.load_state_dict(tensors, assign=True)
    model.tie_weights()
    return model


def _vocabulary_report(
    found: Origins, old: Tokenizer, new: Tokenizer, texts: Sequence[str]
) -> VocabularyReport:
    counts = [len(ids) for ids in found]
    return VocabularyReport(
        shared=counts.count(1),
        from_pieces=sum(count > 1 for count in counts),
        from_nothing=counts.count(0),
        tokens_per_character_before=tokens_per_character(old, texts),
        tokens_per_character=tokens_per_character(new, texts),
    )


def _sample(shards: TokenShards, tokenizer: Tokenizer) -> list[str]:
    """Return the text of documents that are evenly spread, of long ones the beginning."""
    chosen = range(0, shards.num_documents, max(1, shards.num_documents // _SAMPLED_DOCUMENTS))
    return [
        tokenizer.decode(shards.read(document)[:_SAMPLED_TOKENS], skip_special=False) for document in chosen
    ]
