"""Bad text, before a run and in mid-run: it ends by the written rule, nothing is lost, and it goes on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import yaml

from modernbert import files
from modernbert.data.shards import write_shards
from modernbert.data.tokenizer import Tokenizer
from modernbert.errors import ConfigError, InputError
from modernbert.recipes import prepare
from modernbert.recipes.prepare import prepare_shards
from modernbert.recipes.pretrain import pretrain
from modernbert.recipes.settings import read_run


@pytest.fixture
def shards(corpus: Path, tokenizer: Path, tmp_path: Path) -> Path:
    """A folder with the token shards `a` and `b`, of several files each."""
    words = Tokenizer.from_pretrained(tokenizer)
    for name in ("a", "b"):
        write_shards(corpus / f"{name}.txt", words, tmp_path / "shards" / name, shard_tokens=1_000)
    return tmp_path / "shards"


@pytest.fixture
def on_shards(plan: dict[str, Any], shards: Path, tmp_path: Path) -> Path:
    """A run file that reads those."""
    sources = [{"name": "a"}, {"name": "b", "weight": 2}]
    data = {"root": str(shards), "sources": sources}
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({**plan, "folder": str(tmp_path / "run"), "data": data}))
    return path


@pytest.fixture
def bucket() -> Iterator[Any]:
    store = fsspec.filesystem("memory")
    store.store.clear()
    yield store
    store.store.clear()


def weights(folder: str | Path) -> bytes:
    return (Path(folder) / "model" / "model.safetensors").read_bytes()


def refusal(call: Callable[[], Any], kind: type[Exception] = InputError) -> str:
    with pytest.raises(kind) as caught:
        call()
    return str(caught.value)


def spoil_after(monkeypatch: pytest.MonkeyPatch, num_reads: int, spoil: Callable[[], None]) -> None:
    """Let something happen to the files when so many pieces of text have been read."""
    from modernbert.data.source import Source

    read, count = Source.read_into, 0

    def counted(self: Source, *arguments: Any) -> None:
        nonlocal count
        count += 1
        if count == num_reads:
            spoil()
        read(self, *arguments)

    monkeypatch.setattr(Source, "read_into", counted)


def cut_short(folder: Path) -> None:
    for path in folder.glob("*.tokens"):
        path.write_bytes(path.read_bytes()[:10])


def overwrite(folder: Path) -> None:
    for path in folder.glob("*.tokens"):
        path.write_bytes(b"\xff" * path.stat().st_size)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [(cut_short, "is damaged: it ends after"), (overwrite, "is damaged: it holds token")],
)
def test_a_source_that_is_spoilt_in_mid_run(
    on_shards: Path,
    shards: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    spoil: Callable[[Path], None],
    message: str,
) -> None:
    undisturbed = read_run(on_shards, [f"folder={tmp_path}/undisturbed"])
    pretrain(undisturbed)
    run = read_run(on_shards)
    whole = shutil.copytree(shards, tmp_path / "whole")
    with monkeypatch.context() as patch:
        spoil_after(patch, 120, lambda: spoil(shards / "b"))
        found = refusal(lambda: pretrain(run))
    assert f"`{shards}/b/0000" in found
    assert message in found
    assert "put it back as it was" in found
    taken = [json.loads(line) for line in (Path(run.folder) / "metrics.jsonl").read_text().splitlines()]
    newest = max((Path(run.folder) / "checkpoints").glob("step-*"))
    assert newest.name == f"step-{taken[-1]['step']:09d}", "every step that was taken is kept"
    shutil.rmtree(shards)
    whole.rename(shards)
    pretrain(run)
    assert weights(run.folder) == weights(undisturbed.folder)


def test_a_source_that_is_gone_when_the_run_goes_on(
    on_shards: Path, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = read_run(on_shards, ["checkpoint.every_tokens=1"])
    with monkeypatch.context() as patch:
        spoil_after(patch, 120, lambda: overwrite(shards / "a"))
        refusal(lambda: pretrain(run))
    shutil.rmtree(shards / "b")
    kept = sorted((Path(run.folder) / "checkpoints").iterdir())
    assert f"`{shards / 'b'}` does not exist; give the path" in refusal(lambda: pretrain(run))
    assert sorted((Path(run.folder) / "checkpoints").iterdir()) == kept


def test_a_corrupt_shard_is_found_before_the_first_step(on_shards: Path, shards: Path) -> None:
    path = shards / "a" / "00001.tokens"
    whole = path.read_bytes()
    path.write_bytes(whole[:-2])
    assert f"`{path}` is damaged: it has {len(whole) - 2:,} bytes" in refusal(
        lambda: pretrain(read_run(on_shards))
    )
    path.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])  # of the right size: only the checksum tells
    checked = read_run(on_shards, ["data.verify_shards=true"])
    assert f"`{path}` is damaged: it does not match its checksum" in refusal(lambda: pretrain(checked))
    path.write_bytes(whole)
    assert pretrain(checked).model is not None


def test_a_phase_that_asks_for_more_than_there_is(on_shards: Path) -> None:
    more = ["phases.long.tokens=30000", "data.repeat=false"]
    assert "phase `long` asks source `a` for" in refusal(
        lambda: pretrain(read_run(on_shards, more)), ConfigError
    )
    run = read_run(on_shards, ["data.repeat=false"])
    assert pretrain(run).model is not None, "and one that does not runs"


def test_text_that_vanishes_while_it_is_tokenised(
    plan: dict[str, Any], corpus: Path, bucket: Any, tmp_path: Path
) -> None:
    for name in ("a", "b"):
        bucket.pipe(f"/text/{name}/1.txt", (corpus / f"{name}.txt").read_bytes())
    path = tmp_path / "run.yaml"
    data = {"root": "memory://text", "sources": [{"name": "a"}, {"name": "b"}]}
    path.write_text(yaml.safe_dump({**plan, "folder": str(tmp_path / "run"), "data": data}))
    run = read_run(path)
    gone = bucket.cat("/text/b/1.txt")
    bucket.rm("/text/b/1.txt")
    assert "`memory://text/b` could not be read" in refusal(lambda: pretrain(run))
    made = tmp_path / "run" / "shards" / "a" / "index.json"
    assert made.exists(), "what was tokenised is kept"
    before = made.stat().st_mtime_ns
    bucket.pipe("/text/b/1.txt", gone)
    pretrain(run)
    assert made.stat().st_mtime_ns == before
    bucket.store.clear()
    assert pretrain(run).model is not None, "once begun, the run has its text"


def test_shards_behind_a_url_are_copied_once(
    on_shards: Path, shards: Path, bucket: Any, tmp_path: Path
) -> None:
    for path in shards.rglob("*"):
        if path.is_file():
            bucket.pipe(f"/bucket/{path.relative_to(shards)}", path.read_bytes())
    undisturbed = read_run(on_shards, [f"folder={tmp_path}/undisturbed"])
    pretrain(undisturbed)
    run = read_run(on_shards, ["data.root=memory://bucket"])
    pretrain(run)
    assert weights(run.folder) == weights(undisturbed.folder)
    assert files.sha256(tmp_path / "run" / "shards" / "a" / "00000.tokens") == files.sha256(
        shards / "a" / "00000.tokens"
    )


def test_each_source_may_have_its_own_key_and_limit(
    plan: dict[str, Any], corpus: Path, tmp_path: Path
) -> None:
    lines = (corpus / "a.txt").read_text().splitlines()
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"body": line}) + "\n" for line in lines))
    sources = [
        {"name": "a", "path": str(tmp_path / "a.jsonl"), "text_key": "body", "max_tokens": 2_000},
        {"name": "b", "path": str(corpus / "b.txt")},
    ]
    path = tmp_path / "run.yaml"
    new = {"tokenizer": {"vocab_size": 320}, "data": {"sources": sources}}
    path.write_text(yaml.safe_dump({**plan, "folder": str(tmp_path / "run"), **new}))
    pretrain(read_run(path))
    index = files.read_json(tmp_path / "run" / "shards" / "a" / "index.json")
    assert index["max_tokens"] == 2_000
    assert sum(shard["tokens"] for shard in index["shards"]) == pytest.approx(2_000, abs=60)


def test_a_second_process_opens_what_the_first_has_made(
    run_file: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, words = read_run(run_file), Tokenizer.from_pretrained(tokenizer)
    made = prepare_shards(run, Path(run.folder), words)
    monkeypatch.setattr(prepare, "find_files", None)  # the text is not looked for
    opened = prepare_shards(run, Path(run.folder), words, are_made=True)
    assert {name: it.num_tokens for name, it in opened.items()} == {
        name: it.num_tokens for name, it in made.items()
    }
