"""Text to token ids and back, on the `tokenizers` library (paper 2.1.2)."""

from __future__ import annotations

import logging
import re
import reprlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tokenizers

from modernbert import hub
from modernbert.data import tokenizer_files, tokenizer_training
from modernbert.data.tokenizer_files import ROLES
from modernbert.errors import ConfigError, InputError

_UNUSED = re.compile(r"\[unused\d+\]|<unused\d+>")

logger = logging.getLogger(__name__)


class Tokenizer:
    """A tokenizer, and which of its tokens play a role in masked language modelling.

    Made by `from_pretrained`, `from_file`, `train` or `modernbert`. It never truncates and never pads.

    Attributes:
        unk_id: Id of the unknown token; None if there is none, as byte-level vocabularies never need it.
        cls_id: Id of the first token of a sequence.
        sep_id: Id of the last token of a sequence.
        pad_id: Id of the token that fills padded tensors.
        mask_id: Id of the token to be predicted.
    """

    def __init__(self, backend: tokenizers.Tokenizer, roles: Mapping[str, str]) -> None:
        """Wrap the library's tokenizer.

        Args:
            backend: Belongs to this object from now on.
            roles: Text of the token of each role: `cls`, `sep`, `pad`, `mask` and perhaps `unk`.
        """
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self._roles = dict(roles)
        ids = {role: id for role, text in roles.items() if (id := backend.token_to_id(text)) is not None}
        self._role_ids = set(ids.values())
        self.unk_id = ids.get("unk")
        self.cls_id, self.sep_id, self.pad_id, self.mask_id = (ids[r] for r in ("cls", "sep", "pad", "mask"))

    @classmethod
    def from_file(cls, path: str | Path) -> Tokenizer:
        """Read a `tokenizer.json`; a `tokenizer_config.json` beside it says which token plays which role.

        Raises:
            InputError: The file is missing or corrupt, or lacks a token that masked language modelling needs.
        """
        path = Path(path)
        backend = tokenizer_files.read_backend(path)
        tokenizer = cls(backend, tokenizer_files.find_roles(backend, path))
        around = [tokenizer.token(id) for id in tokenizer.encode("")]
        expected = [tokenizer.token(tokenizer.cls_id), tokenizer.token(tokenizer.sep_id)]
        if around != expected:
            logger.warning(f"`{path}` puts {around} around a text; ModernBERT was trained with {expected}")
        return tokenizer

    @classmethod
    def from_pretrained(
        cls,
        name_or_folder: str | Path,
        *,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        token: str | bool | None = None,
    ) -> Tokenizer:
        """Load a tokenizer from a folder or from the hub.

        Args:
            name_or_folder: A folder with a `tokenizer.json`, or a hub id: `answerdotai/ModernBERT-base`.
            revision: Branch, tag or commit on the hub; the main branch if None.
            cache_dir: Where downloads are kept; the hub's own cache if None.
            local_files_only: Use what the cache holds and ask nobody.
            token: The hub's access token, for private models.

        Raises:
            CheckpointError: No such folder or hub id, no access, or no network.
            InputError: Its file is missing, corrupt or lacks a special token.
        """
        folder = hub.find(
            name_or_folder,
            patterns=(tokenizer_files.TOKENIZER, tokenizer_files.CONFIG),
            revision=revision,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            token=token,
        )
        return cls.from_file(folder / tokenizer_files.TOKENIZER)

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        *,
        vocab_size: int,
        min_frequency: int = 2,
        on_progress: Callable[[int], None] | None = None,
    ) -> Tokenizer:
        """Learn a byte-level BPE with ModernBERT's normalisation, special tokens and template.

        The same texts give the same tokenizer. If they yield fewer merges than asked for, the vocabulary is
        the smallest multiple of 64 that holds what was learned, and a warning is logged.

        Args:
            texts: Read once, in order; an iterator over files need not fit in memory.
            vocab_size: Entries with the special tokens, at least 320; rounded up to a multiple of 64.
            min_frequency: How often a pair must occur to be merged.
            on_progress: Called with the number of characters of each text as it is read.

        Raises:
            ConfigError: A setting out of range.
            InputError: No text at all, or an item that is not text.
        """
        backend = tokenizer_training.train_bpe(
            _checked(texts, "text"),
            vocab_size=vocab_size,
            min_frequency=min_frequency,
            on_progress=on_progress,
        )
        return cls(backend, ROLES)

    @classmethod
    def modernbert(cls, base: str | Path) -> Tokenizer:
        """Build ModernBERT's own tokenizer from that of OLMo v1.5 (paper 2.1.2).

        50,280 base ids, `[UNK] [CLS] [SEP] [PAD] [MASK]` = 50,280 to 50,284, `[unused0]` to `[unused82]`.

        Args:
            base: OLMo's `tokenizer.json`; anything else is refused, as its ids would mean other tokens.

        Raises:
            InputError: `base` is missing, or is not OLMo's tokenizer.
        """
        return cls(tokenizer_training.build_modernbert(Path(base)), ROLES)

    def save_pretrained(self, folder: str | Path, *, model_max_length: int = 8192) -> None:
        """Write the files that `from_pretrained` here and `AutoTokenizer` in transformers read.

        Args:
            folder: Made if it is missing; files of the same names are replaced.
            model_max_length: Tokens that the model can take, for readers that truncate.

        Raises:
            StorageError: The disk is full or not writable.
        """
        tokenizer_files.write(Path(folder), self._backend, self._roles, model_max_length)

    def encode(self, text: str, *, pair: str | None = None, special: bool = True) -> list[int]:
        """Return the ids of a text, or of two texts in one sequence.

        Args:
            text: Any string that UTF-8 can express.
            pair: A second text, to stand after the first one's `[SEP]`.
            special: Add `[CLS]` and `[SEP]`.

        Raises:
            InputError: A text is not a string, or holds a lone surrogate.
        """
        return self.encode_batch([text], pairs=None if pair is None else [pair], special=special)[0]

    def encode_batch(
        self,
        texts: Iterable[str],
        *,
        pairs: Iterable[str] | None = None,
        special: bool = True,
        literal: bool = False,
    ) -> list[list[int]]:
        """Return the ids of each text, computed in parallel.

        Args:
            texts: The texts, or the first of each pair.
            pairs: The second of each pair, as many as `texts`.
            special: Add `[CLS]` and `[SEP]`.
            literal: Take a special token that a text spells, such as `[MASK]`, for ordinary text.

        Raises:
            InputError: An item is not a string or holds a lone surrogate (the message names its index), or
                there are not as many `pairs` as `texts`.
        """
        firsts = list(_checked(texts, "text"))
        batch: Sequence[str | tuple[str, str]] = firsts
        if pairs is not None:
            seconds = list(_checked(pairs, "pair"))
            if len(firsts) != len(seconds):
                raise InputError(
                    f"there are {len(seconds)} `pairs` for {len(firsts)} `texts`; there must be one for each"
                )
            batch = list(zip(firsts, seconds))
        backend = self._literal_backend if literal else self._backend
        encodings = backend.encode_batch_fast(batch, add_special_tokens=special)
        return [encoding.ids for encoding in encodings]

    def encodings(self, texts: Iterable[str]) -> list[tokenizers.Encoding]:
        """Return each text's tokens, without special ones, with the characters and words they come from.

        Slower than `encode_batch`, which gives the ids alone.

        Raises:
            InputError: As for `encode_batch`.
        """
        return self._backend.encode_batch(list(_checked(texts, "text")), add_special_tokens=False)

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """Return the text of token ids.

        Args:
            ids: Ids of this tokenizer: a list, an array or a tensor.
            skip_special: Leave out special tokens.

        Raises:
            InputError: An id that no token has.
        """
        plain = [int(id) for id in ids]
        for id in plain:
            self.token(id)
        return self._backend.decode(plain, skip_special_tokens=skip_special)

    def token(self, id: int) -> str:
        """Return the token of an id, as the vocabulary spells it (`Ġ` is a space).

        Raises:
            InputError: No token has this id.
        """
        token = self._backend.id_to_token(id) if 0 <= id < self.vocab_size else None
        if token is None:
            raise InputError(
                f"{id:,} is the id of no token; it must be one of 0 to {self.vocab_size - 1:,}; use the "
                "tokenizer that the ids were made with"
            )
        return token

    def token_id(self, token: str) -> int | None:
        """Return the id of a token, as the vocabulary spells it; None if there is no such token."""
        return self._backend.token_to_id(token)

    @property
    def backend(self) -> tokenizers.Tokenizer:
        """The library's own tokenizer, to be looked at and not to be changed."""
        return self._backend

    @property
    def roles(self) -> Mapping[str, str]:
        """Text of the token of each role: `cls`, `sep`, `pad`, `mask` and perhaps `unk`."""
        return self._roles

    @cached_property
    def vocab_size(self) -> int:
        """Rows that an embedding matrix needs: the highest id, and one for id 0."""
        return max(self._backend.get_vocab(with_added_tokens=True).values()) + 1

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Ids of all special tokens, those of the base among them."""
        added = self._backend.get_added_tokens_decoder()
        marked = {id for id, token in added.items() if token.special}
        return frozenset(marked | self._role_ids)

    @cached_property
    def unused_ids(self) -> npt.NDArray[np.int64]:
        """Ids of `[unusedN]`, ascending: places for words of one's own."""
        vocabulary = self._backend.get_vocab(with_added_tokens=True)
        return np.array(sorted(id for token, id in vocabulary.items() if _UNUSED.fullmatch(token)), np.int64)

    @cached_property
    def longest_added(self) -> int:
        """Characters of the longest token that is looked for in the text itself, as `[MASK]` is."""
        added = self._backend.get_added_tokens_decoder().values()
        return max((len(token.content) for token in added), default=0)

    @cached_property
    def ordinary_ids(self) -> npt.NDArray[np.int64]:
        """Ids that stand for text, ascending: neither special nor `[unusedN]`."""
        vocabulary = self._backend.get_vocab(with_added_tokens=True)
        text_ids = {id for token, id in vocabulary.items() if not _UNUSED.fullmatch(token)}
        return np.array(sorted(text_ids - self.special_ids), dtype=np.int64)

    @cached_property
    def _literal_backend(self) -> tokenizers.Tokenizer:
        """A copy that cuts special tokens in a text like any text; the switch itself is not thread-safe."""
        backend = tokenizers.Tokenizer.from_str(self._backend.to_str())
        backend.encode_special_tokens = True
        return backend

    def __getstate__(self) -> dict[str, Any]:
        # The library's pickle forgets the switch of `_literal_backend`: let a copy make its own.
        return {name: value for name, value in self.__dict__.items() if name != "_literal_backend"}

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256, in hexadecimal, of what this tokenizer does: the same after saving and loading."""
        return tokenizer_files.fingerprint(self._backend)

    def check_fits(self, vocab_size: int) -> None:
        """Check that a model of this vocabulary has an embedding for each id.

        Raises:
            ConfigError: The tokenizer has ids that the model has not.
        """
        if vocab_size < self.vocab_size:
            raise ConfigError(
                f"the tokenizer has ids up to {self.vocab_size - 1:,}, but the model's `vocab_size` is "
                f"{vocab_size:,}; it must be at least {self.vocab_size:,}; raise it, or train or choose a "
                "smaller tokenizer"
            )


def _checked(texts: Iterable[str], name: str) -> Iterator[str]:
    """Yield texts up to the first that cannot be tokenised, which is an `InputError`."""
    if isinstance(texts, str | bytes):
        raise InputError(f"`{name}s` is {reprlib.repr(texts)}; it must be several texts; put it in a list")
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise InputError(
                f"{name} {index} is {reprlib.repr(text)} ({type(text).__name__}); it must be a string; "
                "convert it, or drop it"
            )
        try:
            text.isascii() or text.encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f"{name} {index} has the lone surrogate {text[error.start]!a} as character {error.start}; "
                "it must be what UTF-8 can express; `text.encode('utf-8', 'replace').decode()` repairs it"
            ) from None
        yield text
