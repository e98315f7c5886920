"""One vocabulary in terms of another: which tokens are shared, of which pieces the others are made.

Tokens are compared as the bytes that they stand for, so that byte-level tokenizers, SentencePiece's and
WordPiece's understand each other.
"""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

import tokenizers
from tokenizers import decoders, models

from modernbert.data.tokenizer import Tokenizer
from modernbert.errors import ConfigError, InputError

Origins = tuple[tuple[int, ...], ...]
"""For each id of one tokenizer, the ids of another that it comes from: one, several, or none."""

_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")
_CONTINUES = "##"  # WordPiece's mark of a token inside a word
_SPACE = "▁"  # SentencePiece's

logger = logging.getLogger(__name__)


def origins(new: Tokenizer, old: Tokenizer) -> Origins:
    """Say which tokens of `old` each id of `new` comes from.

    A token of the same role (`[MASK]` …) or the same text is one that both share. Any other comes from the
    pieces into which `old` cuts its text; special and unused tokens that only `new` has come from none.
    """
    spelling, old_spelling = _Spelling(new), _Spelling(old)
    known: dict[bytes, int] = {}
    for id in old.ordinary_ids.tolist():
        known.setdefault(old_spelling.read(old.token(id)), id)
    ordinary = set(new.ordinary_ids.tolist())
    result: list[tuple[int, ...]] = [()] * new.vocab_size
    for token, id in new.backend.get_vocab(with_added_tokens=True).items():
        same = old.token_id(token)
        if same is not None and (id not in ordinary or spelling.kind == old_spelling.kind):
            result[id] = (same,)
        elif id in ordinary:
            text = spelling.read(token)
            result[id] = (known[text],) if text in known else old_spelling.pieces(text)
    for id, same in _by_role(new, old):
        result[id] = (same,)
    return tuple(result)


def _by_role(new: Tokenizer, old: Tokenizer) -> Iterator[tuple[int, int]]:
    for role in ("unk_id", "cls_id", "sep_id", "pad_id", "mask_id"):
        pair = getattr(new, role), getattr(old, role)
        if None not in pair:
            yield pair


class _Spelling:
    """How a tokenizer writes text in its vocabulary."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        decoder = tokenizer.backend.decoder
        self.kind = (
            "bytes"
            if isinstance(decoder, decoders.ByteLevel)
            else "wordpiece"
            if isinstance(decoder, decoders.WordPiece)
            else "sentencepiece"
        )

    def read(self, token: str) -> bytes:
        """Return the bytes that a token stands for."""
        if self.kind == "bytes":
            # Added tokens are written as they are, with characters that this alphabet lacks.
            known = all(character in _BYTES for character in token)
            return bytes(_BYTES[character] for character in token) if known else token.encode()
        if self.kind == "wordpiece":
            inside = token.startswith(_CONTINUES)
            return (token.removeprefix(_CONTINUES) if inside else f" {token}").encode()
        if byte := _BYTE_TOKEN.fullmatch(token):
            return bytes.fromhex(byte[1])
        return token.replace(_SPACE, " ").encode()

    def pieces(self, text: bytes) -> tuple[int, ...]:
        """Return the tokens into which bytes are cut; none of what is unknown."""
        if self.kind == "bytes":
            return self._cut("".join(_CHARACTERS[byte] for byte in text))
        try:
            plain = text.decode()
        except UnicodeDecodeError:  # a part of a character
            found = (self.tokenizer.token_id(f"<0x{byte:02X}>") for byte in text)
            return tuple(id for id in found if id is not None)
        return self._cut(plain.strip() if self.kind == "wordpiece" else plain.replace(" ", _SPACE))

    def _cut(self, spelled: str) -> tuple[int, ...]:
        # The model itself: what stands before it would not take a part of a character, or would add a space.
        found = self.tokenizer.backend.model.tokenize(spelled) if spelled else []
        return tuple(token.id for token in found if token.id != self.tokenizer.unk_id)


def _byte_alphabet() -> dict[int, str]:
    """Return the printable character with which byte-level vocabularies write each byte (GPT-2)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {
        byte: chr(256 + place) for place, byte in enumerate(others)
    }


_CHARACTERS = _byte_alphabet()
_BYTES = {character: byte for byte, character in _CHARACTERS.items()}


def with_new_words(tokenizer: Tokenizer, words: Iterable[str]) -> Tokenizer:
    """Put words in the places of unused tokens, each as one token where it stands after a space.

    Ids and the cutting of all other words stay. A word that is one token already needs no place.

    Args:
        tokenizer: A byte-level BPE with tokens `[unusedN]`; it stays as it is.
        words: Without spaces; the first takes the first unused token.

    Raises:
        ConfigError: Another kind of tokenizer, a word that its rules cut up in any case, or more words than
            unused tokens.
    """
    backend = tokenizer.backend
    if not isinstance(backend.model, models.BPE) or _Spelling(tokenizer).kind != "bytes":
        raise ConfigError(
            f"the tokenizer is a {type(backend.model).__name__} model; new words need a byte-level BPE, as "
            "ModernBERT's is; train a new tokenizer on the text instead"
        )
    spelled = dict.fromkeys(_spelled(tokenizer, word) for word in words)
    new = [word for word in spelled if tokenizer.token_id(word) is None]
    places = tokenizer.unused_ids.tolist()
    if len(new) > len(places):
        raise ConfigError(
            f"there are {len(new):,} new words; they must be at most {len(places):,}, the tokenizer's unused "
            "tokens; leave out the rarest, or train a new tokenizer"
        )
    logger.info("%d new words, %d are tokens already", len(new), len(spelled) - len(new))
    return _replaced(tokenizer, dict(zip(new, places, strict=False)))


def _spelled(tokenizer: Tokenizer, word: str) -> str:
    """Return a word after a space as the vocabulary would write it."""
    backend, text = tokenizer.backend, f" {word}"
    if backend.normalizer is not None:
        text = backend.normalizer.normalize_str(text)
    pieces = backend.pre_tokenizer.pre_tokenize_str(text) if backend.pre_tokenizer is not None else []
    if len(pieces) != 1 or not word.strip():
        cut = ", ".join(f"`{piece.replace('Ġ', ' ').strip()}`" for piece, _ in pieces)
        raise ConfigError(
            f"`{word}` cannot be a new word: the tokenizer's rules always cut it ({cut}); a new word must be "
            "letters only or digits only; leave it out, or give its parts"
        )
    return str(pieces[0][0])


def _replaced(tokenizer: Tokenizer, ids: dict[str, int]) -> Tokenizer:
    document = json.loads(tokenizer.backend.to_str())
    taken = set(ids.values())
    added = [token for token in document["added_tokens"] if token["id"] not in taken]
    kept = {token: id for token, id in document["model"]["vocab"].items() if id not in taken}
    # Added tokens stand in the model's vocabulary too: reading numbers those anew that do not.
    vocabulary = kept | ids | {token["content"]: token["id"] for token in added}
    document["added_tokens"] = added
    document["model"]["vocab"] = dict(sorted(vocabulary.items(), key=lambda item: item[1]))
    # A word that is in the vocabulary is that token, with no merges that would build it; those that merges
    # do build come out the same either way. As added tokens, words would be found within other words, and
    # would leave the space before them behind as a token.
    document["model"]["ignore_merges"] = True
    return Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(document)), tokenizer.roles)


def propose_words(
    texts: Iterable[str], tokenizer: Tokenizer, count: int, min_frequency: int = 5
) -> list[str]:
    """Return the words that would save most tokens as tokens of their own, the best first.

    Args:
        texts: Read once.
        tokenizer: A byte-level BPE.
        count: Words wanted.
        min_frequency: How often a word must occur after a space.

    Raises:
        InputError: No text at all.
    """
    found: Counter[str] = Counter()
    num_texts = 0
    for text in texts:
        num_texts += 1
        found.update(re.findall(r"(?<= )[^\W\d_]+", text))
    if not num_texts:
        raise InputError("there is no text to find words in; there must be at least one; check the files")
    frequent = [word for word, times in found.items() if times >= min_frequency]
    pieces = tokenizer.encode_batch([f" {word}" for word in frequent], special=False, literal=True)
    saved = {word: (len(ids) - 1) * found[word] for word, ids in zip(frequent, pieces, strict=True)}
    ranked = sorted((word for word in frequent if saved[word]), key=lambda word: (-saved[word], word))
    return ranked[:count]


def tokens_per_character(tokenizer: Tokenizer, texts: Sequence[str]) -> float:
    """Return how many tokens a character of these texts takes, special tokens aside."""
    encoded = tokenizer.encode_batch(texts, special=False, literal=True)
    return sum(map(len, encoded)) / max(1, sum(map(len, texts)))


def bytes_per_token(
    tokenizers: Mapping[str, Tokenizer], texts: Iterable[str], *, max_bytes: int
) -> dict[str, float]:
    """Return how many bytes of UTF-8 a token of each tokenizer stands for, special tokens aside.

    Args:
        tokenizers: By the names that the result has.
        texts: Read as far as `max_bytes` goes, and to the end of that text.
        max_bytes: How much text is enough.

    Raises:
        InputError: There is no text.
    """
    read: list[str] = []
    size = 0
    for text in texts:
        read.append(text)
        size += len(text.encode())
        if size >= max_bytes:
            break
    if not size:
        raise InputError("there is no text to measure; there must be at least one character; check the files")
    return {
        name: size / sum(map(len, tokenizer.encode_batch(read, special=False, literal=True)))
        for name, tokenizer in tokenizers.items()
    }
