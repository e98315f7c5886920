"""The command line: what each verb prints where, and how it ends."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml
from safetensors.torch import load_file

from modernbert import cli, config, files
from modernbert.data.tokenizer import Tokenizer
from modernbert.model.config import EncoderConfig
from modernbert.model.heads import ModernBertForMaskedLM
from modernbert.model.init import initialise
from modernbert.recipes.settings import PretrainRun, read_run
from modernbert.train.state import Checkpoints

VERBS = ("pretrain", "tokenize", "fill-mask", "average", "tour", "tokenizer")
TEXT = "the [MASK] of words"


@pytest.fixture(scope="module")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    draw = random.Random(7)
    words = ["the", "of", "words", "über", "naïve", *("".join(draw.choices("abcd", k=4)) for _ in range(30))]
    path = tmp_path_factory.mktemp("text") / "text.txt"
    lines = [" ".join(draw.choices(words, k=20)) for _ in range(100)]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def write_model(folder: Path, tokenizer: Tokenizer, *, seed: int, spare: int = 0) -> Path:
    """A model with random weights, large enough that its guesses differ in more than the last digits."""
    torch.manual_seed(seed)
    ids = {
        "pad_token_id": tokenizer.pad_id,
        "cls_token_id": tokenizer.cls_id,
        "sep_token_id": tokenizer.sep_id,
    }
    size = {"vocab_size": tokenizer.vocab_size + spare, "hidden_size": 32, "intermediate_size": 48}
    model = ModernBertForMaskedLM(
        EncoderConfig.preset("tiny", **size, **ids, window=8, max_position_embeddings=64)
    )
    initialise(model, seed=seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(3)
        model.decoder.bias.normal_(std=2)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder, model_max_length=64)
    return folder


@pytest.fixture(scope="module")
def tokenizer(text_file: Path) -> Tokenizer:
    return Tokenizer.train(text_file.read_text(encoding="utf-8").splitlines(), vocab_size=384)


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"), tokenizer, seed=1)


class Printed(str):
    """What went to stdout; what went to stderr beside it."""

    err: str


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Any:
    """Run a command line that must end with this exit code; return what it printed."""

    def run(*arguments: object, code: int = 0) -> Printed:
        capsys.readouterr()
        found = cli.main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        assert found == code, (found, out, err)
        assert "Traceback" not in err
        printed = Printed(out)
        printed.err = err
        return printed

    return run


def error(printed: Printed) -> str:
    """The one line that says what is wrong; nothing else may be a result."""
    assert printed == ""
    (line,) = [line for line in printed.err.splitlines() if line.startswith("error: ")]
    return line.removeprefix("error: ")


# Usage.


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
        ["fill-mask", "-m", "model"],
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
    source = Path(cli.__file__).parents[1]
    code = [sys.executable, "-m", "modernbert", "tokenizer", "encode", "text", "-m", str(tmp_path)]
    done = subprocess.run(code, cwd=source, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith(f"error: `{tmp_path}/tokenizer.json` is no file;")
    assert len(done.stderr.splitlines()) == 1


def test_a_narrow_stdout_escapes_what_it_lacks(model: Path, tokenizer: Tokenizer) -> None:
    def printed(*options: str) -> str:
        code = [sys.executable, "-m", "modernbert", *options, "-m", str(model)]
        environment = {**os.environ, "PYTHONIOENCODING": "cp1252", "PYTHONPATH": str(source)}
        done = subprocess.run(code, env=environment, capture_output=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.decode("cp1252")

    source = Path(cli.__file__).parents[1]
    assert r"\u0120" in printed("tokenizer", "encode", "a b")
    filled = printed("fill-mask", "東 über [MASK] 👍", "--json")
    assert filled.isascii()
    assert "東 über" in json.loads(filled)[0]["sequence"]


# pretrain. What it trains, and how it fails: tests/recipes/test_pretrain.py.


@pytest.fixture
def run_file(text_file: Path, tmp_path: Path) -> Path:
    phase = {"tokens": 512, "batch_tokens": 256, "learning_rate": "1e-3", "local_rope_theta": "1e4"}
    short = {**phase, "name": "short", "sequence_length": 32, "global_rope_theta": "1e4"}
    long = {**phase, "name": "long", "sequence_length": 64, "global_rope_theta": "160e3"}
    shape = {"preset": "tiny", "vocab_size": 384, "hidden_size": 32, "max_position_embeddings": 64}
    tree = {
        "folder": str(tmp_path / "run"),
        "device": "cpu",
        "micro_batch_tokens": 256,
        "model": shape,
        "tokenizer": {"vocab_size": 384},
        "data": {"sources": [{"name": "text", "path": str(text_file)}]},
        "phases": [short, {**long, "decay": "one_minus_sqrt"}],
        "validation": {"fraction": 0.1},
    }
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return path


@pytest.mark.parametrize("where", ["last", "first"])
def test_a_dry_run_prints_the_run_and_does_nothing(
    where: str, run_file: Path, tmp_path: Path, command: Any
) -> None:
    before = sorted(tmp_path.rglob("*"))
    changes = ["phases.1.learning_rate=5e-4", "seed=3"]
    order = ["--dry-run", run_file, *changes] if where == "first" else [run_file, *changes, "--dry-run"]
    printed = command("pretrain", *order)
    assert sorted(tmp_path.rglob("*")) == before
    run = config.build(PretrainRun, yaml.safe_load(printed))
    assert run == read_run(run_file, changes)
    assert (run.seed, run.phases[1].learning_rate, run.phases[1].decay_floor) == (3, 5e-4, 0.001)
    again = tmp_path / "again.yaml"
    again.write_text(printed, encoding="utf-8")
    assert command("pretrain", again, "--dry-run") == printed
    table = printed.err.splitlines()
    assert table[0].strip() == "Phases"
    assert any("short" in line and "512" in line and "32" in line for line in table)
    assert any("long" in line and "160k" in line for line in table)


def test_a_dry_run_needs_neither_the_text_nor_the_device(run_file: Path, command: Any) -> None:
    elsewhere = ["data.sources.0.path=/none/text.txt", "device=cuda:7", "folder=/none"]
    assert "cuda:7" in command("pretrain", run_file, *elsewhere, "--dry-run")


def test_a_run_prints_how_it_ended(run_file: Path, tmp_path: Path, command: Any) -> None:
    printed = command("pretrain", run_file)
    first, second = printed.splitlines()
    assert first.startswith("held-out masked loss ")
    assert second == f"the model is in {tmp_path}/run/model"
    assert "Phases" in printed.err
    assert "train tokenizer: " in printed.err
    assert "pretrain: " in printed.err
    proposals = json.loads(command("fill-mask", TEXT, "-m", tmp_path / "run" / "model", "--json"))
    assert len(proposals) == 5


# fill-mask.

TEXTS = {
    "one mask": [TEXT],
    "several texts": [TEXT, "[MASK] abcd", "über naïve [MASK]."],
    "several masks": ["the [MASK] of [MASK] words [MASK]"],
    "masks side by side": ["[MASK][MASK] of words", "a [MASK] b"],
    "only a mask": ["[MASK]"],
}


def assert_alike(found: Any, expected: Any) -> None:
    """The same nesting, keys, tokens and texts, and nearly the same scores."""
    if isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_alike(one, other)
        return
    assert list(found) == list(expected)
    assert found["score"] == pytest.approx(expected["score"], abs=1e-5)
    assert {**found, "score": 0} == {**expected, "score": 0}


@pytest.mark.parametrize("top_k", [1, 5, 384])
@pytest.mark.parametrize("name", TEXTS)
def test_the_json_is_that_of_transformers(name: str, top_k: int, model: Path, command: Any) -> None:
    texts = TEXTS[name]
    pipeline = transformers.pipeline("fill-mask", str(model), device="cpu")
    expected = pipeline(texts[0] if len(texts) == 1 else texts, top_k=top_k)
    found = json.loads(
        command("fill-mask", *texts, "-m", model, "--top-k", top_k, "--json", "--device", "cpu")
    )
    assert_alike(found, expected)


def test_people_see_text_probability_and_token(model: Path, command: Any) -> None:
    fills = json.loads(command("fill-mask", TEXT, "-m", model, "--json"))
    lines = command("fill-mask", TEXT, "--model", model).splitlines()
    assert lines[0] == TEXT
    assert len(lines) == 6
    for line, fill in zip(lines[1:], fills, strict=True):
        assert line.split()[0] == f"{fill['score']:.1%}"
        assert repr(fill["token_str"]) in line
        assert line.endswith(fill["sequence"])
    both = command("fill-mask", TEXT, "[MASK] abcd", "-m", model, "--top-k", 2)
    assert [len(part.splitlines()) for part in both.split("\n\n")] == [3, 3]


def test_results_and_remarks_do_not_mix(model: Path, command: Any) -> None:
    quiet = command("fill-mask", TEXT, "-m", model, "--json")
    loud = command("--verbose", "fill-mask", TEXT, "-m", model, "--json")
    assert quiet == loud
    assert "über" in command("fill-mask", "über [MASK]", "-m", model, "--json")


def test_a_preset_takes_any_tokenizer(model: Path, command: Any) -> None:
    for preset in ("tiny", "17m"):
        fills = json.loads(command("fill-mask", TEXT, "-m", preset, "--tokenizer", model, "--json"))
        assert len(fills) == 5
        assert all(0 < fill["score"] < 0.1 for fill in fills)


def test_a_model_may_have_more_rows_than_the_tokenizer_tokens(
    tokenizer: Tokenizer, tmp_path: Path, command: Any
) -> None:
    folder = write_model(tmp_path / "model", tokenizer, seed=2, spare=64)
    fills = json.loads(command("fill-mask", TEXT, "-m", folder, "--json", "--top-k", 384))
    assert {fill["token"] for fill in fills} == set(range(384))
    assert 0.5 < sum(fill["score"] for fill in fills) < 0.999


def test_a_tokenizer_may_lie_elsewhere(model: Path, tmp_path: Path, command: Any) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((model / name).read_bytes())
    assert "tokenizer.json` is no file" in error(command("fill-mask", TEXT, "-m", tmp_path, code=1))
    own = command("fill-mask", TEXT, "-m", model, "--json")
    assert command("fill-mask", TEXT, "-m", tmp_path, "--tokenizer", model, "--json") == own


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["no mask here"],
            "`no mask here` has no mask; it must have at least one; write [MASK] where a word",
        ),
        ([TEXT, "none"], "`none` has no mask; it must have at least one"),
        ([""], "`` has no mask"),
        ([TEXT, "--top-k", "0"], "`top_k` is 0; it must be from 1 to 384"),
        ([TEXT, "--top-k", "385"], "`top_k` is 385; it must be from 1 to 384"),
        ([TEXT + " a b c" * 30], " tokens; this model takes at most 64; shorten it"),
        ([TEXT, "--device", "abacus"], "`abacus` is not a device; it must be `auto`, `cpu`"),
    ],
)
def test_what_cannot_be_filled(arguments: list[str], message: str, model: Path, command: Any) -> None:
    assert message in error(command("fill-mask", *arguments, "-m", model, code=1))


def test_models_that_cannot_be_used(model: Path, tokenizer: Tokenizer, tmp_path: Path, command: Any) -> None:
    def refused(*arguments: object) -> str:
        return error(command("fill-mask", TEXT, *arguments, code=1))

    assert f"`{tmp_path}/none`" in refused("-m", tmp_path / "none")
    assert "holds no `config.json`" in refused("-m", tmp_path, "--tokenizer", model)
    assert "the preset `tiny` has random weights and no tokenizer; name one" in refused("-m", "tiny")
    Tokenizer.train(["aa"], vocab_size=320).save_pretrained(tmp_path / "small")
    small = write_model(tmp_path / "fits", Tokenizer.from_pretrained(tmp_path / "small"), seed=1)
    assert "the tokenizer has ids up to 383, but the model's `vocab_size` is 320" in refused(
        "-m", small, "--tokenizer", model
    )


# tokenizer.


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


def test_text_becomes_token_shards_once(
    text_file: Path, model: Path, tokenizer: Tokenizer, tmp_path: Path, command: Any
) -> None:
    shards = tmp_path / "shards"
    arguments = ("tokenize", text_file, "--model", model, "--output", shards)
    printed = command(*arguments)
    tokens = sum(map(len, tokenizer.encode_batch(text_file.read_text("utf-8").splitlines(), special=False)))
    assert printed == f"{shards}: 100 documents, {tokens} tokens\n"
    assert "tokenize shards: " in printed.err
    assert command(*arguments) == printed  # all is there
    other = command(*arguments[:-1], shards, "--text-key", "body", code=1)
    assert "body" in other.err


def test_what_a_document_is_may_be_said(text_file: Path, model: Path, tmp_path: Path, command: Any) -> None:
    verbs = {"shards": ["tokenize", text_file, "-m", model], "bpe": ["tokenizer", "train", text_file]}
    for name, verb in verbs.items():
        arguments = [*verb, "-o", tmp_path / name, "--text-unit"]
        assert "`text_unit` is 'lines'" in error(command(*arguments, "lines", code=1))
        refused = command(*arguments, "file", "--max-document-bytes", 100, code=1)
        assert "it must be at most 100; split it" in error(refused)
    printed = command(*verbs["shards"], "-o", tmp_path / "one", "--text-unit", "file")
    assert ": 1 documents, " in printed


def test_tokenizers_that_cannot_be(text_file: Path, model: Path, tmp_path: Path, command: Any) -> None:
    def refused(*arguments: object) -> str:
        return error(command("tokenizer", *arguments, code=1))

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


# average.


def test_checkpoints_are_averaged(tokenizer: Tokenizer, tmp_path: Path, command: Any) -> None:
    folders = [write_model(tmp_path / str(seed), tokenizer, seed=seed) for seed in (1, 2, 3)]
    output = tmp_path / "mean"
    assert command("average", *folders, "-o", output) == f"{output}\n"
    found = load_file(output / "model.safetensors")
    tensors = [load_file(folder / "model.safetensors") for folder in folders]
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, torch.stack([each[name] for each in tensors]).mean(0))
    assert len(json.loads(command("fill-mask", TEXT, "-m", output, "--json"))) == 5
    transformers.AutoModelForMaskedLM.from_pretrained(output)
    assert "exists already; it must be new" in error(command("average", *folders, "-o", output, code=1))


def test_averages_that_cannot_be(model: Path, tmp_path: Path, command: Any) -> None:
    missing = error(command("average", model, tmp_path / "none", "-o", tmp_path / "out", code=1))
    assert f"`{tmp_path}/none` holds neither" in missing
    assert not (tmp_path / "out").exists()


def test_a_runs_own_checkpoints_are_averaged(run_file: Path, tmp_path: Path, command: Any) -> None:
    command("pretrain", run_file, "checkpoint.every_tokens=128", "checkpoint.keep_last=9")
    other, *_, first, last = Checkpoints(tmp_path / "run" / "checkpoints", lambda *_: None).folders()
    refused = error(command("average", other, last, "--output", tmp_path / "mean", code=1))
    assert "`global_rope_theta`: 10000.0 → 160000.0" in refused
    command("average", first, last, "--output", tmp_path / "mean")
    theta = files.read_json(tmp_path / "mean" / "config.json")["global_rope_theta"]
    assert theta == 160_000
    assert len(json.loads(command("fill-mask", TEXT, "-m", tmp_path / "mean", "--json"))) == 5
