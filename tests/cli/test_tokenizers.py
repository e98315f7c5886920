"""The verbs of `modernbert tokenizer`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import transformers

from modernbert.data.tokenizer import Tokenizer


def test_a_tokenizer_is_trained_and_used(text_file: Path, tmp_path: Path, command: Any) -> None:
    folder = tmp_path / "tokenizer"
    printed = command("tokenizer", "train", text_file, "-o", folder, "--vocab-size", 350)
    assert printed == f"{folder}: 384 entries\n"
    tokenizer = Tokenizer.from_pretrained(folder)
    texts = ["the words", "über"]
    expected = [tokenizer.encode(text) for text in texts]
    assert json.loads(command("tokenizer", "encode", *texts, "-m", folder, "--json")) == expected
    assert json.loads(command("tokenizer", "encode", texts[0], "-m", folder, "--json")) == expected[0]
    first, second = command("tokenizer", "encode", *texts, "-m", folder).splitlines()
    assert first.split() == [f"{tokenizer.token(id)}:{id}" for id in expected[0]]
    assert first.startswith(f"[CLS]:{tokenizer.cls_id} ")
    assert second.endswith(f" [SEP]:{tokenizer.sep_id}")
    assert transformers.AutoTokenizer.from_pretrained(folder)(texts)["input_ids"] == expected


def test_a_tokenizer_is_trained_on_a_folder_of_json_lines(tmp_path: Path, command: Any) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.jsonl").write_text('{"body": "abc abc abc"}\n', encoding="utf-8")
    options = ["--vocab-size", 320, "--text-key", "body"]
    command("tokenizer", "train", tmp_path / "texts", "-o", tmp_path / "out", *options)
    assert Tokenizer.from_pretrained(tmp_path / "out").token_id("abc") is not None


def test_words_are_proposed_for_the_unused_tokens(model: Path, tmp_path: Path, command: Any) -> None:
    """As `pretrain` takes them: its overrides are YAML, of which JSON is a part."""
    (tmp_path / "text.txt").write_text("a xylophone, the xylophone and a zygote\n" * 5, encoding="utf-8")
    printed = command("tokenizer", "words", tmp_path / "text.txt", "-m", model, "--json")
    assert json.loads(printed)[:2] == ["xylophone", "zygote"]
    assert command("tokenizer", "words", tmp_path, "-m", model, "--count", 1) == "xylophone\n"


def test_tokenizers_are_compared_by_bytes_a_token(text_file: Path, tmp_path: Path, command: Any) -> None:
    small, large = tmp_path / "small", tmp_path / "large"
    for folder, size in ((small, 320), (large, 384)):
        command("tokenizer", "train", text_file, "-o", folder, "--vocab-size", size)
    (row,) = json.loads(command("tokenizer", "compare", text_file, "-m", small, "-m", large, "--json"))
    assert row["file"] == str(text_file)
    assert 1 <= row[str(small)] < row[str(large)]
    printed = command("tokenizer", "compare", text_file, "-m", large)
    assert printed == f"{text_file}: {large} {row[str(large)]:.3f}\n"


def test_tokenizers_that_cannot_be(text_file: Path, model: Path, tmp_path: Path, command: Any) -> None:
    def refused(*arguments: object) -> str:
        return command("tokenizer", *arguments, code=1).error

    small = refused("train", text_file, "-o", tmp_path / "out", "--vocab-size", 100)
    assert small.startswith("`vocab_size` is 100; it must be at least 320")
    assert "none.txt` does not exist" in refused("train", tmp_path / "none.txt", "-o", tmp_path / "out")
    (tmp_path / "empty.txt").touch()
    empty = refused("train", tmp_path / "empty.txt", "-o", tmp_path / "out")
    assert empty.startswith("there is no text to learn from")
    assert not (tmp_path / "out").exists()
    (tmp_path / "file").touch()
    a_file = refused("train", text_file, "-o", tmp_path / "file", "--vocab-size", 320)
    assert "file/tokenizer_config.json`: a part of this path is a file, not a folder; choose" in a_file
    other = refused("modernbert", model / "tokenizer.json", "-o", tmp_path / "out")
    assert "ModernBERT's base must have exactly 50,280" in other
