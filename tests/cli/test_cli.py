"""The command line as a whole: its verbs, wrong usage, what goes where."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from modernbert import cli

VERBS = [verb.__name__.replace("_", "-") for verbs in cli.VERBS.values() for verb in verbs]
TEXT = "the [MASK] of words"


def test_help_lists_the_verbs(command: Any) -> None:
    printed = command("--help")
    assert all(verb in printed for verb in VERBS)
    for verb in VERBS:
        assert "Usage:" in command(verb, "--help")
    assert {"train", "modernbert", "encode"} <= set(command("tokenizer", "--help").split())


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["pretrian"],
        ["pretrain"],
        ["pretrain", "run.yaml", "--dryrun"],
        ["fill-mask", TEXT],
        ["fill-mask", TEXT, "-m", "model", "--top-k", "many"],
        ["average", "folder"],
        ["tokenizer"],
        ["tokenizer", "train", "text.txt"],
        ["tokenizer", "encode", TEXT],
        ["tokenizer", "decode"],
    ],
    ids=" ".join,
)
def test_wrong_usage_ends_with_2(arguments: list[str], command: Any) -> None:
    printed = command(*arguments, code=2)
    assert "Usage:" in printed + printed.err
    assert "error: " not in printed.err


def test_the_module_is_the_command(tmp_path: Path) -> None:
    source = Path(cli.__file__).parents[2]
    code = [sys.executable, "-m", "modernbert", "tokenizer", "encode", "text", "-m", str(tmp_path)]
    done = subprocess.run(code, cwd=source, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith(f"error: `{tmp_path}/tokenizer.json` is no file;")
    assert len(done.stderr.splitlines()) == 1


def test_a_narrow_stdout_escapes_what_it_lacks(model: Path) -> None:
    def printed(*options: str) -> str:
        code = [sys.executable, "-m", "modernbert", *options, "-m", str(model)]
        environment = {**os.environ, "PYTHONIOENCODING": "cp1252", "PYTHONPATH": str(source)}
        done = subprocess.run(code, env=environment, capture_output=True, timeout=600, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.decode("cp1252")

    source = Path(cli.__file__).parents[2]
    assert r"\u0120" in printed("tokenizer", "encode", "a b")
    filled = printed("fill-mask", "東 über [MASK] 👍", "--json")
    assert filled.isascii()
    assert "東 über" in json.loads(filled)[0]["sequence"]
