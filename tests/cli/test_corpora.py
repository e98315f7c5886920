from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from modernbert.data.shards import write_shards
from modernbert.data.tokenizer import Tokenizer

RUN = {
    "folder": "run",
    "model": {"preset": "tiny", "vocab_size": 384},
    "tokenizer": {"vocab_size": 320},
    "data": {"root": "shards", "sources": [{"name": "a"}, {"name": "b", "weight": 3}]},
    "micro_batch_tokens": 256,
    "phases": [
        {
            "name": "short",
            "tokens": 1_000,
            "sequence_length": 32,
            "batch_tokens": 256,
            "learning_rate": 1e-3,
            "global_rope_theta": 10_000,
            "local_rope_theta": 10_000,
        }
    ],
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a run file and the shards of one of its two sources."""
    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_text("".join(f"line {number} of a text\n" for number in range(50)))
    Path("run.yaml").write_text(yaml.safe_dump(RUN))
    words = Tokenizer.train(["line of a text"], vocab_size=320)
    words.save_pretrained("words")
    write_shards("a.txt", words, Path("shards/a"), shard_tokens=100)
    return tmp_path


def test_inspect_says_what_shards_hold(folder: Path, command: Any) -> None:
    (row,) = json.loads(command("data", "inspect", "shards/a", "--verify", "--json"))
    assert row["documents"] == 50
    assert row["mean length"] == pytest.approx(row["tokens"] / 50)
    assert command("data", "inspect", "shards/a").startswith("shards/a: documents 50, tokens ")
    path = folder / "shards" / "a" / "00001.tokens"
    whole = path.read_bytes()
    path.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    command("data", "inspect", "shards/a")
    refused = command("data", "inspect", "shards/a", "--verify", code=1)
    assert "00001.tokens` is damaged: it does not match its checksum" in refused.err


@pytest.mark.usefixtures("folder")
def test_shares_says_what_a_run_wants_and_what_is_there(command: Any) -> None:
    first, second = command("data", "shares", "run.yaml").splitlines()
    assert first.startswith("short: a 25.0%, 314 wanted, ")
    assert first.endswith(" epochs")
    assert second == "short: b 75.0%, 942 wanted, not tokenised yet"
    rows = json.loads(command("data", "shares", "run.yaml", "phases.short.tokens=2000", "--json"))
    assert [row["wanted"] for row in rows] == [564, 1692]
    assert rows[1]["epochs"] is None


def test_tokenize_takes_urls_and_a_limit(folder: Path, command: Any) -> None:
    url = f"file://{folder}/a.txt"
    command("tokenize", url, "-m", "words", "-o", "out", "--max-tokens", 50)
    index = json.loads((folder / "out" / "index.json").read_text())
    assert index["inputs"][0]["path"] == url
    assert 50 <= sum(shard["tokens"] for shard in index["shards"]) < 70
