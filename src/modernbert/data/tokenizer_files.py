"""Files of a tokenizer: read, judged, written, fingerprinted."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import tokenizers

from modernbert.errors import InputError
from modernbert.files import read_json, write_json, write_text

TOKENIZER = "tokenizer.json"
CONFIG = "tokenizer_config.json"
SPECIAL_TOKENS = "special_tokens_map.json"

# ModernBERT's name for the token of each role, in the order of their ids.
ROLES = {"unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "pad": "[PAD]", "mask": "[MASK]"}
# Where a dialect names no token for a role, another of its names serves.
_ALIASES = {"cls": "bos_token", "sep": "eos_token"}


def read_backend(path: Path) -> tokenizers.Tokenizer:
    """Read a `tokenizer.json` into the library's tokenizer.

    Raises:
        InputError: The file is missing, is not JSON or holds no tokenizer.
    """
    if not path.is_file():
        raise InputError(
            f"`{path}` is no file; it must be the `{TOKENIZER}` of a fast tokenizer; check the path, or save "
            "a slow tokenizer as a fast one first"
        )
    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # noqa: BLE001 - the library raises nothing narrower for what it cannot read
        read_json(path)  # says more of a file that is cut short
        raise InputError(
            f"`{path}` is no tokenizer that tokenizers {tokenizers.__version__} can read ({error}); it must "
            f"be the `{TOKENIZER}` of a fast tokenizer; write it again, or upgrade the library"
        ) from None


def find_roles(backend: tokenizers.Tokenizer, path: Path) -> dict[str, str]:
    """Say which token plays which role: as the configuration declares, or else by ModernBERT's names.

    Args:
        backend: What was read from `path`.
        path: A `tokenizer.json`; its `tokenizer_config.json` is looked for beside it.

    Returns:
        The text of the token of each role; `unk` may be absent, as byte-level vocabularies never need it.

    Raises:
        InputError: A token that masked language modelling needs is missing.
    """
    config = path.with_name(CONFIG)
    declared = read_json(config) if config.is_file() else {}
    if not isinstance(declared, dict):
        raise InputError(f"`{config}` holds no mapping; it must hold a tokenizer's settings; write it again")
    roles: dict[str, str] = {}
    for role, default in ROLES.items():
        text = _text(declared.get(f"{role}_token"))
        if text is not None and backend.token_to_id(text) is None:
            raise InputError(
                f"`{config}` names `{text}` as `{role}_token`, but `{path}` has no such token; "
                "the two files must belong together; take both from the same tokenizer"
            )
        for choice in (text, default, _text(declared.get(_ALIASES.get(role, "")))):
            if choice is not None and backend.token_to_id(choice) is not None:
                roles.setdefault(role, choice)
    missing = [f"`{role}_token` (`{text}`)" for role, text in ROLES.items() if role not in {*roles, "unk"}]
    if missing:
        raise InputError(
            f"`{path}` lacks {', '.join(missing)}; a tokenizer for masked language modelling must have "
            f"them; if they have other names there, give those in a `{CONFIG}` beside it"
        )
    return roles


def write(
    folder: Path, backend: tokenizers.Tokenizer, roles: Mapping[str, str], model_max_length: int
) -> None:
    """Write the files that older and newer transformers read alike.

    Raises:
        StorageError: The disk is full or not writable.
    """
    added = {id: _settings(token) for id, token in backend.get_added_tokens_decoder().items()}
    names = {f"{role}_token": text for role, text in roles.items()}
    config = {
        "added_tokens_decoder": {str(id): added[id] for id in sorted(added)},
        "clean_up_tokenization_spaces": False,
        **names,
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": model_max_length,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    by_text = {token["content"]: token for token in added.values()}
    special = {name: by_text.get(text, text) for name, text in names.items()}
    write_json(folder / CONFIG, config)
    write_json(folder / SPECIAL_TOKENS, special)
    # Last: where this file is, the tokenizer is whole.
    write_text(folder / TOKENIZER, backend.to_str(pretty=True))


def fingerprint(backend: tokenizers.Tokenizer, parts: Iterable[str] | None = None) -> str:
    """Hash what a tokenizer does, not how its file is written.

    Settings that are off are left out: a newer library that writes one more of them changes nothing.

    Args:
        backend: The library's tokenizer.
        parts: Keys of its JSON that count; None for all but version, truncation and padding.
    """
    document = json.loads(backend.to_str())
    keys = document.keys() - {"version", "truncation", "padding"} if parts is None else parts
    canonical = json.dumps(_without_off({key: document[key] for key in keys}), sort_keys=True)
    return hashlib.sha256(canonical.encode()).hexdigest()


def _without_off(value: Any) -> Any:
    """Drop what is null or false from nested mappings."""
    if isinstance(value, dict):
        # By identity: 0 is an id, though it equals False.
        on = {key: item for key, item in value.items() if item is not None and item is not False}
        return {key: _without_off(item) for key, item in on.items()}
    return [_without_off(item) for item in value] if isinstance(value, list) else value


def _text(token: Any) -> str | None:
    """Return the text of a special token, which configurations write as a string or as a mapping."""
    text = token.get("content") if isinstance(token, Mapping) else token
    return text if isinstance(text, str) else None


def _settings(token: tokenizers.AddedToken) -> dict[str, Any]:
    """Return an added token as transformers writes it."""
    names = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")
    return {name: getattr(token, name) for name in names}
