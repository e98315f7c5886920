"""What the README says of speed and accuracy is what the result files say."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import (
    changing_lengths,
    contenders,
    encode_cpu,
    encode_gpu,
    finetune,
    loader,
    tables,
    train_options,
)
from benchmarks.contenders import CONTENDERS, DETERMINISTIC, REFERENCE, Failure, Isolated
from benchmarks.encode_cpu import Figures
from benchmarks.finetune_trainer import seen
from modernbert.data.tokenizer import Tokenizer


def test_the_tables_of_the_readme_are_those_of_the_results() -> None:
    text = tables.README.read_text(encoding="utf-8")
    assert set(tables.TABLES) == {mark[2] for mark in tables.MARK.finditer(text)}
    assert tables.render(text) == text


def test_the_newest_result_is_shown_one_of_a_gpu_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "RESULTS", tmp_path)

    def result(date: str, device: str) -> dict[str, object]:
        record = {"date": date, "machine": {"device": device, "gpu": "H100"}}
        (tmp_path / f"speed_{device}_{date}.json").write_text(json.dumps(record))
        return record

    result("2026-01-01", "cpu")
    newer = result("2026-01-03", "cpu")  # a GPU stood beside it
    assert tables.newest("speed") == newer
    result("2026-01-01", "cuda")
    newer = result("2026-01-02", "cuda")
    assert tables.newest("speed") == newer
    with pytest.raises(SystemExit, match="there is no result of `memory` in"):
        tables.newest("memory")


def test_the_workloads_of_the_cpu_benchmark_are_those_that_it_names() -> None:
    lengths = {it.name: it.lengths for it in encode_cpu.workloads(quick=False)}
    assert lengths["fixed"] == (128,) * 32
    assert lengths["long"] == (8192,)
    assert len(lengths["mixed"]) == len(lengths["long_tailed"]) == 64
    assert np.mean(lengths["mixed"]) == pytest.approx(256, rel=0.05)
    assert np.median(lengths["long_tailed"]) == pytest.approx(40, rel=0.25)
    for it in encode_cpu.workloads(quick=True):
        assert [len(ids) for ids in it.ids()] == list(it.lengths)
        assert it.ids() == it.ids()


def _figures() -> list[Figures]:
    """All contenders, each by its place faster than the reference, with the reference's vectors."""
    mixed, tailed = (it for it in encode_cpu.workloads(quick=True) if it.name in ("mixed", "long_tailed"))
    vectors = np.eye(4, 8, dtype=np.float32)
    figures = [
        Figures(it, workload, [12.0 / (place + 1)], vectors)
        for workload in (mixed, tailed)
        for place, it in enumerate(CONTENDERS)
        if workload.name not in it.skips
    ]
    failed = next(it for it in figures if it.contender.name == "onnxruntime fp32")
    failed.vectors, failed.failure = None, "failed: out of memory"
    return figures


def test_the_table_of_the_cpu_benchmark_says_ratios_verdicts_and_failures() -> None:
    figures = _figures()
    worse = next(it for it in figures if it.contender.name == "modernbert onnx int8")
    worse.vectors = np.eye(4, 8, dtype=np.float32) + 0.1  # the fastest, and below the cosine that counts
    rows = list(encode_cpu.rows_of(figures))
    ratios = list(encode_cpu.ratios_of(rows, encode_cpu.workloads(quick=True)))
    found = {it["case"]: (it["ours"], it["peer"], round(it["ratio"], 4), it["verdict"]) for it in ratios}
    assert found["mixed, fp32"] == ("modernbert fp32", "sentence-transformers fp32", 2.3333, "met")
    assert found["mixed, int8"] == ("modernbert int8", "onnxruntime int8", 1.5, "missed")
    assert found["mixed, cosine >= 0.999"] == ("modernbert onnx fp32", REFERENCE, 11.0, "met")
    place = [it.name for it in CONTENDERS].index(DETERMINISTIC) + 1
    assert encode_cpu.cost_of_determinism(rows) == pytest.approx(1 - place / 7)

    machine = {"device": "cpu", "cpu": "One", "threads": 2, "torch": "2"}
    text = tables.encode_cpu(
        {
            "rows": rows,
            "ratios": ratios,
            "workloads": {it.name: it.lengths for it in encode_cpu.workloads(quick=False)},
            "versions": {"onnxruntime": "1"},
            "deterministic_costs": 0.25,
            "machine": machine,
            "date": "2026-01-01",
        }
    )
    assert "| 64 x 107 to 381, mean 260 | int8 |" in text
    assert "1.50 | 1.8, missed |" in text
    assert "onnxruntime fp32: failed: out of memory." in text
    assert "costs 25% of the speed" in text


def test_a_contender_that_fails_is_a_result() -> None:
    process = Isolated(timeout_seconds=1)
    assert process.call(int, "7") == 7
    failure = process.call(int, "seven")
    assert isinstance(failure, Failure)
    assert failure.reason.startswith("failed: ValueError: invalid literal")
    assert process.call(bytearray, 2**45) == Failure("failed: out of memory")
    assert process.call(time.sleep, 30) == Failure("timed out after 1 s")
    process.close()


def test_a_checkpoint_for_all_has_layers_that_count(tmp_path: Path) -> None:
    contenders.save_checkpoint(tmp_path, "tiny")
    ids = [[7, 8, 9], [7, *range(300, 340)]]
    mine = contenders.ours(tmp_path, dtype="float32")(ids)
    theirs = contenders.with_transformers(tmp_path, contenders.torch.float32)(ids)
    np.testing.assert_allclose(mine, theirs, atol=2e-5)


def test_the_loader_is_measured_at_both_lengths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["loader", "--quick", "--ranks", "2"])
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    loader.main()
    (path,) = tmp_path.glob("loader_*.json")
    record = json.loads(path.read_text())
    assert [row["sequence_length"] for row in record["rows"]] == [1024, 8192]
    for row in record["rows"]:
        assert row["slowest"] <= row["tokens_per_second"] <= row["fastest"]
        assert row["filled"] > 0.9
        assert 0 <= row["wait_share"] <= 1


def _quickly(module: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The rows of a benchmark of GPUs, tried on a CPU."""
    name = module.__name__.rpartition(".")[2]
    monkeypatch.setattr(sys, "argv", [name, "--device", "cpu", "--quick", *OPTIONS.get(name, ())])
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    module.main()
    (path,) = tmp_path.glob(f"{name}_*.json")
    rows: list[dict[str, Any]] = json.loads(path.read_text())["rows"]
    return rows


OPTIONS = {"encode_gpu": ("--peers", "eager")}


def test_encoders_are_measured_on_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = _quickly(encode_gpu, tmp_path, monkeypatch)
    assert {row["contender"] for row in rows} == {
        "modernbert fused",
        "modernbert plain",
        "transformers sdpa eager",
    }
    assert {row["workload"] for row in rows} == set(
        encode_gpu.workloads("base", is_quick=True, max_length=64)
    )
    for row in rows:
        assert row["slowest"] <= row["tokens_per_second"] <= row["fastest"]
        assert row["mfu"] > 0
    large = encode_gpu.workloads("large", is_quick=False, max_length=8192)
    assert {name: len(lengths) for name, lengths in large.items()} == {"fixed 512": 64, "mixed <= 512": 124}


def test_a_peer_that_fails_on_a_gpu_is_a_result(monkeypatch: pytest.MonkeyPatch) -> None:
    def runs_out(sequences: object) -> Any:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    ready = encode_gpu.prepare({"peer": runs_out}, [[5]], torch.device("cpu"))
    assert ready == {"peer": "failed: CUDA out of memory"}


def test_batches_of_changing_lengths_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = _quickly(changing_lengths, tmp_path, monkeypatch)
    assert [row["batches"] for row in rows] == [2, 3, 4, 5, 6, 7]
    assert {row["kernels_compiled"] for row in rows} == {0}
    drawn = changing_lengths.batches(8192, is_quick=False)
    for most in (4096, 65_536) * 3:
        lengths = next(drawn)
        assert min(lengths) >= 1
        assert max(lengths) <= 8192
        assert sum(lengths) <= most


def _task_folder(folder: Path) -> Path:
    """Two data sets of the benchmark of fine-tuning, made up: sentences and tags."""
    sentences = [{"sentence": f"number {place}", "label": place // 2 % 2} for place in range(20)]
    tagged = [
        {"tokens": ["Ada", "lived", "in", "Rome", str(place)], "tags": ["B-PER", "O", "O", "B-LOC", "O"]}
        for place in range(20)
    ]
    for name, test, rows in (("glue_sst2", "dev", sentences), ("wnut17", "test", tagged)):
        (folder / name).mkdir(parents=True)
        for split in ("train", test):
            (folder / name / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def _finetune_result(folder: Path, *options: str) -> dict[str, Any]:
    data, results = folder / "data", folder / "results"
    results.mkdir()
    model = ["--preset", "tiny", "--vocab-size", "320", "--device", "cpu", "--epochs", "1"]
    paths = ["--data", str(data), "--results", str(results)]
    finetune.main([*paths, *model, "--limit", "10", "--seeds", "2", *options])
    (path,) = results.glob("finetune*.json")
    record: dict[str, Any] = json.loads(path.read_text())
    return record


def _plain_bert(folder: Path) -> Path:
    """An encoder of transformers that is not ours, with random weights."""
    import transformers

    words = Tokenizer.train(["Ada lived in Rome, number 3"] * 2, vocab_size=320)
    shape = transformers.BertConfig(
        vocab_size=320,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        pad_token_id=words.pad_id,
    )
    transformers.BertForMaskedLM(shape).save_pretrained(folder)
    words.save_pretrained(folder, model_max_length=512)
    return folder


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # those of the peer are not ours
def test_fine_tuning_is_measured_beside_the_peer(tmp_path: Path) -> None:
    for package in ("accelerate", "transformers", "sklearn", "seqeval"):
        pytest.importorskip(package, reason="the benchmark needs it")
    _task_folder(tmp_path / "data")
    anchor = _plain_bert(tmp_path / "bert")
    record = _finetune_result(tmp_path, "--only", "glue_sst2", "wnut17", "--anchor", str(anchor))
    rows = {(row["set"], row["engine"]): row for row in record["rows"]}
    assert list(rows) == [
        (name, engine)
        for name in ("glue_sst2", "wnut17")
        for engine in (finetune.OURS, finetune.THEIRS, finetune.ANCHOR)
    ]
    for (name, _), row in rows.items():
        assert row["seeds"] == len(row["scores"]) == {"glue_sst2": 1, "wnut17": 2}[name]
        assert row["low"] <= row["score"] <= row["high"]
        assert row["examples_per_second"] > 0
    assert [it["set"] for it in record["ratios"]] == ["glue_sst2", "wnut17"]
    assert record["ratios"][0]["quality"] is None  # of one seed
    assert record["model"] == "random weights, tiny"
    assert record["anchor"] == str(anchor)
    assert set(record["versions"]) == {"transformers", "accelerate"}


def test_fine_tuning_on_a_cpu_is_measured_without_the_peer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("sklearn", reason="needs the extra `finetune`")
    monkeypatch.setattr(finetune, "CPU_THREADS", 1)
    monkeypatch.setattr(finetune, "PEER_PACKAGES", ("no_such_package",))
    _task_folder(tmp_path / "data")
    record = _finetune_result(tmp_path, "--cpu-time")
    assert record["benchmark"] == "finetune_cpu"
    rows = [row for row in record["rows"] if row["engine"] == "modernbert, 1 CPU threads"]
    assert [row["sentences"] for row in rows] == [10]
    assert "versions" not in record


def test_fine_tuning_is_not_begun_late_or_without_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finetune.main([])
    assert "`--data FOLDER` must say" in capsys.readouterr().err
    _task_folder(tmp_path / "data")
    record = _finetune_result(tmp_path, "--only", "glue_sst2", "--minutes", "0")
    assert (record["rows"], record["skipped"]) == ([], ["glue_sst2"])


def test_fine_tuning_is_compared_set_by_set() -> None:
    def row(name: str, engine: str, score: float, rate: float, deviation: float | None) -> dict[str, Any]:
        more = {"metric": "accuracy", "score": score, "examples_per_second": rate, "deviation": deviation}
        return {"set": name, "engine": engine, "seeds": 3, **more}

    rows = [
        row("a", finetune.OURS, 0.80, 900.0, 0.01),
        row("a", finetune.THEIRS, 0.815, 300.0, 0.02),
        row("b", finetune.OURS, 0.80, 800.0, 0.01),
        row("b", finetune.THEIRS, 0.83, 300.0, 0.02),
        row("c", finetune.OURS, 0.9, 1.0, None),
        {"set": "c", "engine": finetune.THEIRS, "seeds": 0},
    ]
    found = [(it["set"], it["quality"], it["speed"]) for it in finetune.ratios_of(rows)]
    assert found == [("a", "met", "met"), ("b", "missed", "missed")]
    assert [seen(step, 10, 4) for step in range(7)] == [0, 4, 8, 10, 14, 18, 20]


def test_an_option_is_compared_with_what_another_seed_does() -> None:
    def course(shift: float, rate: float) -> list[dict[str, Any]]:
        facts = {"tokens_per_second": rate, "mfu": None, "memory_bytes": 2**30}
        return [{"loss": 5 - step / 10 + shift, **facts} for step in range(40)]

    courses = {"plain": course(0, 10), "plain, another seed": course(-0.2, 10), "compiled": course(0.1, 30)}
    plain, seed, compiled = train_options.compared(courses)
    assert plain["loss_at_the_end"] == pytest.approx(5 - 3.75)
    assert [row["mean_gap_to_plain"] for row in (plain, seed, compiled)] == pytest.approx([0, 0.2, 0.1])
    assert (compiled["tokens_per_second"], compiled["memory_gib"], compiled["steps"]) == (30, 1, 40)
