"""The benchmarks that choose and judge the default model, at toy size."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from benchmarks import mini_card, mini_sweep, plain_bert, train_options
from benchmarks.finetune_trainer import PaddedRunner
from modernbert.data.tokenizer import Tokenizer
from modernbert.errors import ConfigError
from modernbert.layout import SequenceLayout
from modernbert.recipes.history import read_history
from modernbert.recipes.prepare import tokenize
from modernbert.recipes.settings import read_run

ROOT = Path(__file__).parents[1]
RUN_FILE = ROOT / "runs" / "mini" / "mini.yaml"
BF16_MEGABYTES = 40
PHASE = {
    "tokens": 4_000,
    "sequence_length": 64,
    "batch_tokens": 512,
    "learning_rate": 1e-3,
    "global_rope_theta": 1e4,
    "local_rope_theta": 1e4,
}


@pytest.fixture(scope="module")
def run_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run file with three phases, its tokenizer and two sources of token shards."""
    folder = tmp_path_factory.mktemp("mini")
    sources, words = [], None
    for name, letters in (("one", "abcdefgh"), ("two", "stuvwxyz")):
        draw = random.Random(name)
        made = ["".join(draw.choices(letters, k=draw.randint(1, 6))) for _ in range(60)]
        lines = [" ".join(draw.choices(made, k=draw.randint(10, 60))) for _ in range(80)]
        (folder / f"{name}.txt").write_text("\n".join(lines), encoding="utf-8")
        if words is None:
            words = Tokenizer.train(lines, vocab_size=384)
            words.save_pretrained(folder / "tokenizer")
        tokenize([folder / f"{name}.txt"], words, folder / "shards" / name)
        sources.append({"name": name, "path": str(folder / "shards" / name)})
    phases = [{"name": name, **PHASE} for name in mini_sweep.PHASES]
    phases[0] |= {"batch_warmup_start": 256, "batch_warmup_tokens": 1_000, "warmup_tokens": 600}
    phases[2] |= {"decay": "one_minus_sqrt", "mixture": {"two": 1.0}}
    tree = {
        "folder": str(folder / "run"),
        "model": {
            "preset": "tiny",
            "hidden_size": 32,
            "intermediate_size": 48,
            "vocab_size": 384,
            "max_position_embeddings": 64,
        },
        "tokenizer": {"path": str(folder / "tokenizer")},
        "data": {"sources": sources},
        "phases": phases,
        "micro_batch_tokens": 256,
        "validation": {"fraction": 0.1, "every_tokens": 2_000, "max_tokens": 1_000},
        "checkpoint": {"every_tokens": 2_000},
        "device": "cpu",
    }
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return path


def result_in(folder: Path) -> dict[str, Any]:
    (path,) = folder.iterdir()
    return dict(json.loads(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize("name", mini_sweep.VARIANTS)
def test_a_variant_is_a_run_of_at_most_40_megabytes(name: str) -> None:
    run = read_run(RUN_FILE, mini_sweep.VARIANTS[name])
    assert 2e-6 * run.model.num_parameters(head=True) < BF16_MEGABYTES
    short = mini_sweep._resized(run, 0.05)
    tokens, short_tokens = (it.schedule().total_tokens for it in (run, short))
    assert short_tokens == pytest.approx(0.05 * tokens, rel=0.01)
    assert short.phases[0].warmup_tokens == int(0.05 * short.phases[0].tokens)


def test_phases_take_the_time_that_they_are_given() -> None:
    run = read_run(RUN_FILE)
    rates = [2.0e6, 1.0e6, 1.1e6]
    short = mini_sweep._resized(run, mini_sweep._factor(run, rates, 40.0))
    assert sum(phase.tokens / rate for phase, rate in zip(short.phases, rates)) == pytest.approx(40.0)


def test_a_sweep_keeps_what_it_measured(
    run_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(mini_sweep, "STEPS", 2)
    monkeypatch.setattr(mini_sweep, "COLD_STEPS", 1)
    paths = ["--run", run_file, "--output", tmp_path / "sweep", "--results", tmp_path / "results"]

    def sweep(*options: str) -> dict[str, Any]:
        mini_sweep.main([*map(str, paths), "--seconds", "0.01", *options])
        return result_in(tmp_path / "results")

    first = sweep("--only", "as-it-is")
    (row,) = first["rows"]
    assert row["variant"] == "as-it-is"
    assert row["nats_per_byte"] < row["loss"]
    assert row["tokens_per_second"] == row["tokens"] / row["seconds"]
    assert row["steps"] >= 3
    assert not (tmp_path / "sweep" / "as-it-is").exists()

    def runs_out(run: object) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(mini_sweep, "pretrain", runs_out)
    assert sweep("--only", "muon", "as-it-is")["rows"] == [row]
    assert "muon failed" in capsys.readouterr().err
    monkeypatch.setattr(mini_sweep, "pretrain", lambda run: pytest.fail("it is late"))
    assert sweep("--only", "as-it-is", "muon", "--minutes", "0")["rows"] == [row]


def test_plain_runs_are_plain_whatever_the_run_file_says(
    run_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_options, "OPTIONS", {train_options.PLAIN: (), train_options.OTHER_SEED: ()})
    monkeypatch.setattr(train_options, "WARM_UP", 1)
    paths = ["--output", str(tmp_path / "runs"), "--results", str(tmp_path / "results")]
    train_options.main([str(run_file), *paths, "--steps", "10", "compile=true", "log.every_steps=5"])
    plain, other = result_in(tmp_path / "results")["rows"]
    assert min(plain["steps"], other["steps"]) >= 10
    assert plain["mean_gap_to_plain"] == 0 < other["mean_gap_to_plain"]
    settings = yaml.safe_load((tmp_path / "runs" / "plain" / "run.yaml").read_text(encoding="utf-8"))
    assert not settings["compile"]


def bert(run_file: Path, folder: Path, *options: str) -> None:
    """Train the anchor in `folder/bert` over 4,000 tokens, its speed being known."""
    (folder / "bert").mkdir(exist_ok=True)
    (folder / "bert" / "plan.json").write_text('{"seconds": 9.0, "tokens": 4000}')
    paths = ["--run", run_file, "--output", folder / "bert", "--results", folder / "results"]
    settings = ["--seconds", "9", "--batch-tokens", "512", "log.every_steps=1", "model.hidden_size=64"]
    plain_bert.main([*map(str, paths), *settings, *options])


@pytest.fixture(scope="module")
def anchor(run_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("anchor")
    bert(run_file, folder)
    return folder


def test_the_anchor_is_a_run_and_a_model_of_transformers(anchor: Path) -> None:
    import transformers

    history = read_history(anchor / "bert")
    assert history.spans[-1].end_tokens >= 4_000
    assert [span.name for span in history.spans] == ["bert"]
    rates = history.columns["learning_rate"]
    assert rates.argmax() == 1  # it rises over 240 tokens, then falls in a line
    assert rates[-1] < 0.2 * rates.max()
    assert history.columns["utilisation"].max() < 1  # it pads
    (row,) = result_in(anchor / "results")["rows"]
    assert row["loss"] == history.validations[-1]["loss"]
    found = transformers.AutoModelForMaskedLM.from_pretrained(anchor / "bert" / "model")
    assert found.config.model_type == "bert"
    assert sum(weight.numel() for weight in found.parameters()) == row["parameters"]
    words = transformers.AutoTokenizer.from_pretrained(anchor / "bert" / "model")
    assert found(**words("ab cd", return_tensors="pt")).logits.shape[-1] == 384


def test_a_stopped_anchor_goes_on_to_the_same_weights(
    anchor: Path, run_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, train = plain_bert.train, plain_bert.train

    def killed(*arguments: Any, **options: Any) -> Iterator[Any]:
        yield from islice(whole(*arguments, **options), 6)
        raise KeyboardInterrupt

    monkeypatch.setattr(plain_bert, "train", killed)
    with pytest.raises(KeyboardInterrupt):
        bert(run_file, tmp_path)
    monkeypatch.setattr(plain_bert, "train", train)
    bert(run_file, tmp_path)
    files = [folder / "bert" / "model" / "model.safetensors" for folder in (anchor, tmp_path)]
    assert files[0].read_bytes() == files[1].read_bytes()
    with pytest.raises(ConfigError, match="was begun with 9"):
        plain_bert.main(["--run", str(run_file), "--output", str(tmp_path / "bert"), "--seconds", "8"])
    losses = [read_history(folder / "bert").columns["loss"].tolist() for folder in (anchor, tmp_path)]
    assert losses[0] == losses[1]


def test_the_anchor_pads_without_a_change_to_what_it_says(anchor: Path) -> None:
    """Each sequence alone, as transformers sees it, costs what it costs among others of other lengths."""
    import transformers

    model = transformers.BertForMaskedLM.from_pretrained(anchor / "bert" / "model").eval()
    draw = torch.Generator().manual_seed(0)
    sequences = [torch.randint(300, (length,), generator=draw) for length in (5, 12, 9)]
    layout = SequenceLayout.of([len(ids) for ids in sequences])
    places = torch.tensor([2, 7, 16, 20])
    ids = torch.cat(sequences)
    with torch.no_grad():
        found, _ = plain_bert.PlainBert(model, 16, compiles=False).loss(ids, layout, places, ids[places])
        logits = torch.cat([model(input_ids=one[None]).logits[0] for one in sequences])
    expected = torch.nn.functional.cross_entropy(logits[places], ids[places], reduction="sum")
    torch.testing.assert_close(found, expected)
    at_places, _ = PaddedRunner(model)([one.tolist() for one in sequences], places)
    torch.testing.assert_close(at_places, logits[places])


def test_the_anchor_has_the_size_of_ours() -> None:
    ours = read_run(RUN_FILE).model
    shape = plain_bert._shape(ours)
    assert (shape.num_hidden_layers, shape.intermediate_size) == (6, 1536)
    layers = shape.num_hidden_layers * 12 * shape.hidden_size**2
    rest = (shape.vocab_size + 512 + shape.hidden_size) * shape.hidden_size
    assert layers + rest == pytest.approx(ours.num_parameters(head=True), rel=0.05)


def test_the_card_says_what_there_is_and_nothing_else(
    anchor: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    card = tmp_path / "README.md"
    card.write_text(mini_card.CARD.read_text(encoding="utf-8"), encoding="utf-8")
    before = card.read_text(encoding="utf-8")
    mini_card.main(["--card", str(card)])
    assert card.read_text(encoding="utf-8") == before

    rows = [
        {"set": name, "engine": engine, "metric": metric, "score": score, "deviation": 0.01, "seeds": 3}
        for name, metric, score in (("glue_rte", "accuracy", 0.625), ("stsb", "spearman", 0.8))
        for engine in (mini_card.OURS, mini_card.ANCHOR)
    ]
    finetuned = tmp_path / "finetune.json"
    finetuned.write_text(json.dumps({"rows": rows, "machine": {}, "date": "2026-01-01"}))
    (tmp_path / "needle.txt").write_text("found: all")
    (tmp_path / "results.md").write_text("# Retrieval\n\n## One set\n\n| nDCG@10 |")
    (result,) = (anchor / "results").iterdir()
    mini_card.main(
        [
            *("--card", str(card), "--run", str(anchor / "bert"), "--bert", str(anchor / "bert")),
            *("--finetune", str(finetuned), "--plain-bert", str(result)),
            *("--include", str(tmp_path / "needle.txt"), str(tmp_path / "results.md")),
        ]
    )
    text = card.read_text(encoding="utf-8")
    assert "| RTE, accuracy | 62.5 ± 1.0 | 62.5 ± 1.0 | 57.9 | 61.8 | – |" in text
    assert "| plain BERT |" in text
    assert "```text\nfound: all\n```\n\n### Retrieval\n\n#### One set\n\n| nDCG@10 |" in text
    assert "![" in text
    assert (tmp_path / "curves.png").stat().st_size > 10_000
    assert "<!-- table: sweep -->\n<!-- end of table -->" in text
