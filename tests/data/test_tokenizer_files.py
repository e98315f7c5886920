"""A tokenizer's files: found, judged, written, and read by transformers alike."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import huggingface_hub
import pytest
import tokenizers
import transformers
from tokenizers import AddedToken, models, pre_tokenizers, processors

from modernbert import files
from modernbert.data.tokenizer import Tokenizer
from modernbert.errors import CheckpointError, InputError, StorageError

TEXTS = [
    "The small river runs.",
    "the river is [MASK] .",
    "",
    "  two  spaces\n\tand a tab",
    "café 東京 👍🏽 \u202e",
]
TRAINED = Tokenizer.train(["The small river runs through the small town. " * 4] * 3, vocab_size=340)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    TRAINED.save_pretrained(tmp_path / "tokenizer", model_max_length=1024)
    return tmp_path / "tokenizer"


def dialect(folder: Path, config: dict[str, Any] | None, template: bool = True) -> Path:
    """Save a tokenizer with the names of another family."""
    names = ["<pad>", "<s>", "</s>", "<mask>", "<unused0>"]
    backend = tokenizers.Tokenizer(models.BPE({name: id for id, name in enumerate([*names, "a", "b"])}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.add_special_tokens([AddedToken(name, normalized=False) for name in names[:4]])
    backend.enable_truncation(3)
    backend.enable_padding(length=9)
    if template:
        backend.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
        )
    folder.mkdir()
    backend.save(str(folder / "tokenizer.json"))
    if config is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


DIALECT = {
    "cls_token": "<s>",
    "sep_token": {"content": "</s>", "lstrip": False, "special": True},
    "mask_token": "<mask>",
    "pad_token": "<pad>",
    "unk_token": None,
}


def test_what_was_saved_is_loaded(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == [
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    for loaded in (Tokenizer.from_pretrained(folder), Tokenizer.from_file(str(folder / "tokenizer.json"))):
        assert loaded.encode_batch(TEXTS) == TRAINED.encode_batch(TEXTS)
        assert loaded.mask_id == TRAINED.mask_id
    (folder / "tokenizer_config.json").unlink()
    assert Tokenizer.from_pretrained(folder).special_ids == TRAINED.special_ids


def test_transformers_reads_the_same_tokenizer(folder: Path) -> None:
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    assert theirs.model_input_names == ["input_ids", "attention_mask"]
    assert theirs.model_max_length == 1024
    assert len(theirs) == TRAINED.vocab_size
    for role in ("unk", "cls", "sep", "pad", "mask"):
        assert getattr(theirs, f"{role}_token_id") == getattr(TRAINED, f"{role}_id")
    assert theirs(TEXTS)["input_ids"] == TRAINED.encode_batch(TEXTS)
    pairs = TEXTS[::-1]
    assert theirs(TEXTS, pairs)["input_ids"] == TRAINED.encode_batch(TEXTS, pairs=pairs)
    for ids in TRAINED.encode_batch(TEXTS):
        assert theirs.decode(ids) == TRAINED.decode(ids, skip_special=False)
        assert theirs.decode(ids, skip_special_tokens=True) == TRAINED.decode(ids)


def test_we_read_what_transformers_saves(folder: Path, tmp_path: Path) -> None:
    transformers.AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path / "theirs")
    loaded = Tokenizer.from_pretrained(tmp_path / "theirs")
    assert loaded.encode_batch(TEXTS) == TRAINED.encode_batch(TEXTS)
    assert loaded.special_ids == TRAINED.special_ids


def test_saving_replaces_its_own_files_only(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "tokenizer.json").write_text("{")
    TRAINED.save_pretrained(folder)
    assert Tokenizer.from_pretrained(folder).fingerprint == TRAINED.fingerprint
    assert (folder / "model.safetensors").read_bytes() == b"weights"


def test_a_full_disk_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(StorageError, match="the disk is full; free space or choose a folder on another disk"):
        TRAINED.save_pretrained(tmp_path)


def test_a_tokenizer_cut_short_is_no_tokenizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = files.atomic_file

    def full_after_one(path: Path) -> AbstractContextManager[Path]:
        if any(tmp_path.iterdir()):
            raise StorageError("full")
        return whole(path)

    monkeypatch.setattr(files, "atomic_file", full_after_one)
    with pytest.raises(StorageError, match="full"):
        TRAINED.save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer_config.json"]


def test_roles_are_read_from_the_configuration(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_pretrained(dialect(tmp_path / "named", DIALECT))
    assert (tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id, tokenizer.pad_id) == (1, 2, 3, 0)
    assert tokenizer.unk_id is None
    assert tokenizer.ordinary_ids.tolist() == [5, 6]
    assert tokenizer.encode("abab") == [1, 5, 6, 5, 6, 2], "the file's truncation and padding are off"
    tokenizer.save_pretrained(tmp_path / "again")
    again = Tokenizer.from_pretrained(tmp_path / "again")
    assert (again.fingerprint, again.mask_id, again.unk_id) == (tokenizer.fingerprint, 3, None)


def test_begin_and_end_serve_as_cls_and_sep(tmp_path: Path) -> None:
    config = {"bos_token": "<s>", "eos_token": "</s>", "mask_token": "<mask>", "pad_token": "<pad>"}
    tokenizer = Tokenizer.from_pretrained(dialect(tmp_path / "begin", config))
    assert (tokenizer.cls_id, tokenizer.sep_id) == (1, 2)


def test_missing_tokens_are_named(tmp_path: Path) -> None:
    folder = dialect(tmp_path / "unnamed", None)
    message = (
        r"tokenizer.json` lacks `cls_token` \(`\[CLS\]`\), `sep_token` \(`\[SEP\]`\), `pad_token` "
        r"\(`\[PAD\]`\), `mask_token` \(`\[MASK\]`\); a tokenizer for masked language modelling must"
    )
    with pytest.raises(InputError, match=message):
        Tokenizer.from_pretrained(folder)


def test_a_configuration_of_another_tokenizer_is_noticed(tmp_path: Path) -> None:
    folder = dialect(tmp_path / "other", {**DIALECT, "mask_token": "[MASK]"})
    with pytest.raises(
        InputError, match=r"config.json` names `\[MASK\]` as `mask_token`, but .* has no such token"
    ):
        Tokenizer.from_pretrained(folder)


def test_a_configuration_that_is_no_mapping_is_refused(tmp_path: Path) -> None:
    folder = dialect(tmp_path / "list", None)
    (folder / "tokenizer_config.json").write_text("[]")
    with pytest.raises(InputError, match=r"tokenizer_config.json` holds no mapping"):
        Tokenizer.from_pretrained(folder)


def test_a_file_without_template_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Tokenizer.from_pretrained(dialect(tmp_path / "with", DIALECT))
    assert not caplog.records
    Tokenizer.from_pretrained(dialect(tmp_path / "without", DIALECT, template=False))
    assert r"puts [] around a text; ModernBERT was trained with ['<s>', '</s>']" in caplog.text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b'{"model": {"type": "B',
            r"tokenizer.json` is not valid JSON .* it may be cut short, write it again",
        ),
        (b"\x80\x02pickle", r"tokenizer.json` is not valid JSON"),
        (
            b"{}",
            r"tokenizer.json` is no tokenizer that tokenizers [\d.]+ can read \(Model missing.*\); it must",
        ),
        (b'{"model": {"type": "Unheard"}}', r"is no tokenizer that tokenizers .* write it again, or upgrade"),
    ],
)
def test_corrupt_files_are_named(folder: Path, content: bytes, message: str) -> None:
    (folder / "tokenizer.json").write_bytes(content)
    with pytest.raises(InputError, match=message):
        Tokenizer.from_pretrained(folder)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"tokenizer.json` is no file; it must be .*; check the path, or save"
    ):
        Tokenizer.from_pretrained(tmp_path)
    with pytest.raises(InputError, match="is no file"):
        Tokenizer.from_file(tmp_path)
    with pytest.raises(
        CheckpointError, match=r"no/such/folder` is no folder; it must be a folder, or a hub id"
    ):
        Tokenizer.from_pretrained("no/such/folder")


COMMIT = "0123456789abcdef0123456789abcdef01234567"


def test_the_hub_cache_is_read_without_network(tmp_path: Path) -> None:
    repository = tmp_path / "models--owner--name"
    snapshot = repository / "snapshots" / COMMIT
    TRAINED.save_pretrained(snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    options: dict[str, Any] = {"cache_dir": tmp_path, "local_files_only": True}
    assert Tokenizer.from_pretrained("owner/name", **options).fingerprint == TRAINED.fingerprint
    (snapshot / "tokenizer_config.json").unlink()
    assert Tokenizer.from_pretrained("owner/name", **options).fingerprint == TRAINED.fingerprint
    (snapshot / "tokenizer.json").unlink()
    with pytest.raises(InputError, match=f"name/snapshots/{COMMIT}/tokenizer.json` is no file; it must be"):
        Tokenizer.from_pretrained("owner/name", **options)
    with pytest.raises(
        CheckpointError, match=f"`owner/name` is no folder here, and not complete in `{tmp_path}`"
    ):
        Tokenizer.from_pretrained("owner/name", revision="v2", **options)


def test_the_hub_is_asked_only_for_what_is_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    download = Mock(return_value=str(folder))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    Tokenizer.from_pretrained("owner/name", revision="v9", cache_dir=folder, token="secret")
    download.assert_called_once_with(
        "owner/name",
        allow_patterns=["tokenizer.json", "tokenizer_config.json"],
        revision="v9",
        cache_dir=folder,
        local_files_only=False,
        token="secret",
    )
