"""Tokenizers made anew: byte-level BPE learned from text, and ModernBERT's own from OLMo's (paper 2.1.2).

Both end alike: the base ids first, then `[UNK] [CLS] [SEP] [PAD] [MASK]`, then `[unusedN]` up to a multiple
of 64, so that the embedding matrix tiles well.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers

from modernbert.data.tokenizer_files import ROLES, fingerprint, read_backend
from modernbert.errors import ConfigError, InputError

MIN_VOCAB_SIZE = 320  # 256 bytes and the special tokens, rounded up
MODERNBERT_SIZE = 50_368

OLMO_SIZE = 50_280
OLMO_LANDMARKS = {0: "|||IP_ADDRESS|||", 1: "<|padding|>", 50_279: "<|endoftext|>"}
OLMO_FINGERPRINT = "bbf515453333fa327476f787714329d9fdc71386c7b1d3379ad5a0cc0ee806da"
_OLMO_REMEDY = (
    "give the `tokenizer.json` of OLMo v1.5 (`allenai_gpt-neox-olmo-dolma-v1_5.json` in the OLMo repository)"
)
# What decides how a text becomes base ids; the rest of a file adds special tokens and decodes.
_TEXT_TO_IDS = ("added_tokens", "normalizer", "pre_tokenizer", "model")
_LONG_RUN = re.compile(r"\S{1000}(?=\S)|\s{1000}(?=\s)")

logger = logging.getLogger(__name__)


def train_bpe(
    texts: Iterable[str], *, vocab_size: int, min_frequency: int, on_progress: Callable[[int], None] | None
) -> tokenizers.Tokenizer:
    """Learn a byte-level BPE with OLMo's normalisation; see `Tokenizer.train`.

    Raises:
        ConfigError: A setting out of range.
        InputError: No text at all.
    """
    if vocab_size < MIN_VOCAB_SIZE:
        raise ConfigError(
            f"`vocab_size` is {vocab_size:,}; it must be at least {MIN_VOCAB_SIZE}: 256 bytes and "
            f"{len(ROLES)} special tokens, rounded up to a multiple of 64; raise it"
        )
    if min_frequency < 1:
        raise ConfigError(f"`min_frequency` is {min_frequency}; it must be at least 1; 2 is usual")
    backend = tokenizers.Tokenizer(models.BPE())
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    wanted = vocab_size - len(ROLES)
    trainer = trainers.BpeTrainer(
        vocab_size=wanted,
        min_frequency=min_frequency,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(_counted(texts, on_progress), trainer)
    learned = backend.get_vocab_size()
    size = round_up(learned + len(ROLES))
    if size < round_up(vocab_size):
        logger.warning(
            f"the text yields {learned - 256:,} of the {wanted - 256:,} merges asked for; the vocabulary has "
            f"{size:,} entries, not {round_up(vocab_size):,}; give more text, or ask for less"
        )
    _append_special_tokens(backend, size)
    return backend


def build_modernbert(base: Path) -> tokenizers.Tokenizer:
    """Build ModernBERT's own tokenizer; see `Tokenizer.modernbert`.

    Raises:
        InputError: `base` is missing, or is not OLMo's tokenizer.
    """
    backend = read_backend(base)
    _check_olmo(backend, base)
    found = fingerprint(backend, _TEXT_TO_IDS)
    if found != OLMO_FINGERPRINT:
        raise InputError(
            f"`{base}` has the size of OLMo v1.5, but other tokens, merges or settings: its fingerprint is "
            f"{found[:12]}…; it must be {OLMO_FINGERPRINT[:12]}…; {_OLMO_REMEDY}, unchanged"
        )
    _append_special_tokens(backend, MODERNBERT_SIZE)
    return backend


def _append_special_tokens(backend: tokenizers.Tokenizer, size: int) -> None:
    """Append the special tokens, then `[unusedN]` up to `size` entries, and set the template."""
    first = backend.get_vocab_size()
    ids = {role: first + offset for offset, role in enumerate(ROLES)}  # the library numbers new tokens so
    backend.add_special_tokens(
        [AddedToken(text, lstrip=role == "mask", normalized=False) for role, text in ROLES.items()]
    )
    backend.add_tokens([f"[unused{index}]" for index in range(size - backend.get_vocab_size())])
    cls, sep = ROLES["cls"], ROLES["sep"]
    backend.post_processor = processors.TemplateProcessing(
        single=f"{cls} $A {sep}",
        pair=f"{cls} $A {sep} $B:1 {sep}:1",
        special_tokens=[(cls, ids["cls"]), (sep, ids["sep"])],
    )


def round_up(size: int) -> int:
    """Return the size of a vocabulary whose matrix tiles well: the next multiple of 64."""
    return -(-size // 64) * 64


def _counted(texts: Iterable[str], on_progress: Callable[[int], None] | None) -> Iterator[str]:
    """Pass texts on, report their characters, and complain at the end if there was none."""
    total = 0
    for text in texts:
        total += len(text)
        if on_progress is not None:
            on_progress(len(text))
        yield from _pieces(text)
    if total == 0:
        raise InputError(
            "there is no text to learn from; there must be at least one character; check the files"
        )


def _pieces(text: str) -> Iterator[str]:
    """Cut a text within runs that no word is as long as: learning takes time quadratic in a word's length."""
    start = 0
    for run in _LONG_RUN.finditer(text):
        yield text[start : run.end()]
        start = run.end()
    yield text[start:]


def _check_olmo(backend: tokenizers.Tokenizer, base: Path) -> None:
    """Refuse what is plainly not OLMo's tokenizer, by the difference that tells most."""
    kind = type(backend.model).__name__
    if kind != "BPE":
        raise InputError(f"`{base}` is a {kind} model; ModernBERT's base must be a BPE; {_OLMO_REMEDY}")
    tokens = {id: text for text, id in backend.get_vocab(with_added_tokens=True).items()}
    if sorted(tokens) != list(range(OLMO_SIZE)):
        raise InputError(
            f"`{base}` has {len(tokens):,} ids up to {max(tokens, default=-1):,}; ModernBERT's base must "
            f"have exactly {OLMO_SIZE:,}, up to {OLMO_SIZE - 1:,}; {_OLMO_REMEDY}"
        )
    for id, text in OLMO_LANDMARKS.items():
        if tokens[id] != text:
            raise InputError(
                f"`{base}` has `{tokens[id]}` as id {id:,}; ModernBERT's base must have `{text}` there; "
                f"{_OLMO_REMEDY}"
            )
