"""A whole run, and everything that can go wrong with one: interruptions first, then each refusal."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml
from safetensors.torch import load_file

from modernbert import cli, config, files
from modernbert.data.tokenizer import Tokenizer
from modernbert.errors import (
    CheckpointError,
    ConfigError,
    DivergenceError,
    InputError,
    ModernBertError,
    StorageError,
)
from modernbert.layout import pack
from modernbert.model.heads import ModernBertForMaskedLM
from modernbert.recipes import pretrain as recipe
from modernbert.recipes.pretrain import PretrainResult, pretrain
from modernbert.recipes.run_folder import hold
from modernbert.recipes.settings import PretrainRun, read_run
from modernbert.recipes.validation import Findings, Validation
from modernbert.train.loop import Evaluation, StepReport, train
from modernbert.train.merging import average
from tests.recipes.commands import last_step, running, wait_for_step

NUM_STEPS = 8
ENDS_OF_PHASES = (4, 6, 8)
STRICT = ("guard.skips=0", "guard.rollbacks=0")
TIMES = {"seconds", "wait_seconds", "tokens_per_second", "seconds_left", "time", "memory_bytes"}


@dataclass
class Watch:
    """Takes the place of the training loop: notes each batch, and may act within a step.

    A step that is taken again must get the same batch again.
    """

    within: dict[int, Callable[[], None]] = field(default_factory=dict)
    reports: dict[int, StepReport] = field(default_factory=dict)
    batches: dict[int, list[list[int]]] = field(default_factory=dict)

    def __call__(self, *arguments: Any, **options: Any) -> Iterator[StepReport]:
        for report in train(*arguments, **options):
            step = report.batch.clock.step
            batch = [row.input_ids.tolist() for row in report.batch.rows]
            assert self.batches.setdefault(step, batch) == batch
            self.reports[step] = report
            self.within.get(step, lambda: None)()
            yield report


def watched(run: PretrainRun, watch: Watch) -> PretrainResult:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipe, "train", watch)
        return pretrain(run)


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


class Crash(BaseException):
    """Nothing in the house expects it."""


def crash() -> None:
    raise Crash


def records(folder: Path) -> list[dict[str, Any]]:
    """What was measured, but for the times."""
    path = folder / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [{k: v for k, v in json.loads(line).items() if k not in TIMES} for line in lines]


def outcome(folder: Path) -> dict[str, Any]:
    """All that an interruption must not change, bit for bit."""
    last = folder / "checkpoints" / f"step-{records(folder)[-1]['step']:09d}"
    state = files.read_json(last / "state.json")
    return {
        "weights": (folder / "model" / "model.safetensors").read_bytes(),
        "shape": (folder / "model" / "config.json").read_bytes(),
        "saved weights": (last / "model.safetensors").read_bytes(),
        "optimizer and random states": (last / "optimizer.safetensors").read_bytes(),
        "state": {key: state[key] for key in ("clock", "loader", "metrics", "score")},
        "records": records(folder),
    }


@dataclass
class Undisturbed:
    """A run to compare with."""

    folder: Path
    run: PretrainRun
    result: PretrainResult
    watch: Watch
    outcome: dict[str, Any]


@pytest.fixture(scope="module")
def undisturbed(plan: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    folder = tmp_path_factory.mktemp("undisturbed")
    run, watch = config.build(PretrainRun, {**plan, "folder": str(folder)}), Watch()
    result = watched(run, watch)
    return Undisturbed(folder, run, result, watch, outcome(folder))


def test_the_run_goes_through_everything(undisturbed: Undisturbed) -> None:
    """Or else the tests below would prove little."""
    steps = [record for record in records(undisturbed.folder) if record["event"] == "step"]
    assert [record["step"] for record in steps] == list(range(1, NUM_STEPS + 1))
    assert [record["phase"] for record in steps] == ["short"] * 4 + ["long"] * 2 + ["decay"] * 2
    assert [len(undisturbed.watch.batches[record["step"]]) for record in steps] == [1, 2, 3, 3, 2, 2, 2, 2]
    assert len({record["learning_rate"] for record in steps}) == 4
    longest = {
        step: max(row.layout.longest for row in report.batch.rows)
        for step, report in undisturbed.watch.reports.items()
    }
    assert max(longest[step] for step in range(1, 5)) == 32
    assert all(32 < longest[step] <= 64 for step in range(5, NUM_STEPS + 1))
    assert undisturbed.run.model.attn_out_dropout == 0.1
    shape = files.read_json(undisturbed.folder / "model" / "config.json")
    assert (shape["global_rope_theta"], shape["local_rope_theta"]) == (40_000, 10_000)
    assert all(0 < record["utilisation"] <= 1 and record["masked_tokens"] > 0 for record in steps)


def test_each_phase_ends_with_a_validation_and_a_checkpoint(undisturbed: Undisturbed) -> None:
    validations = [record for record in records(undisturbed.folder) if record["event"] == "validation"]
    assert [record["step"] for record in validations] == list(ENDS_OF_PHASES)
    assert [record["phase"] for record in validations] == ["short", "long", "decay"]
    names = sorted(path.name for path in (undisturbed.folder / "checkpoints").iterdir())
    assert names == [f"step-{step:09d}" for step in ENDS_OF_PHASES]
    evaluation = undisturbed.result.evaluation
    assert evaluation is not None
    assert {**validations[-1], **config.to_tree(evaluation)} == validations[-1]
    assert validations[-1]["loss"] < validations[0]["loss"]


def test_the_folder_says_what_the_run_was(undisturbed: Undisturbed) -> None:
    assert read_run(undisturbed.folder / "run.yaml") == undisturbed.run
    facts = files.read_json(undisturbed.folder / "facts.json")
    assert facts["device"] == "cpu"
    assert undisturbed.result.checkpoint == undisturbed.folder / "checkpoints" / "step-000000008"
    assert read_run(undisturbed.result.checkpoint / "run.yaml") == undisturbed.run
    assert files.read_json(undisturbed.result.checkpoint / "facts.json") == facts
    assert undisturbed.result.model == undisturbed.folder / "model"
    assert re.fullmatch(
        r"held-out masked loss \d\.\d{3}, accuracy \d+\.\d% \(always guessing the commonest token: .*%\)\n"
        rf"the model is in {undisturbed.folder}/model",
        undisturbed.result.summary(),
    )


@pytest.mark.parametrize("step", range(1, NUM_STEPS))
def test_a_run_stopped_at_any_step_goes_on_bit_for_bit(
    step: int, undisturbed: Undisturbed, run_file: Path
) -> None:
    run, watch = read_run(run_file), Watch({step: terminate})
    stopped = watched(run, watch)
    assert (stopped.stopped_by, stopped.model) == ("SIGTERM", None)
    assert stopped.checkpoint.name == f"step-{step:09d}"
    assert stopped.summary().endswith(
        f"stopped by SIGTERM, saved in {stopped.checkpoint}; the same command goes on"
    )
    watch.within.clear()
    assert watched(run, watch).stopped_by is None
    assert outcome(Path(run.folder)) == undisturbed.outcome
    assert watch.batches == undisturbed.watch.batches


def test_a_run_stopped_in_its_last_step_is_finished(undisturbed: Undisturbed, run_file: Path) -> None:
    run = read_run(run_file)
    result = watched(run, Watch({NUM_STEPS: terminate}))
    assert result.stopped_by is None
    assert result.model is not None
    assert outcome(Path(run.folder)) == undisturbed.outcome


def test_a_run_stopped_at_every_step_ends_as_if_never_stopped(
    undisturbed: Undisturbed, run_file: Path
) -> None:
    run, watch = read_run(run_file), Watch(dict.fromkeys(range(1, NUM_STEPS + 1), terminate))
    stops = [watched(run, watch).stopped_by for _ in range(NUM_STEPS)]
    assert stops == ["SIGTERM"] * (NUM_STEPS - 1) + [None]
    assert outcome(Path(run.folder)) == undisturbed.outcome
    assert watch.batches == undisturbed.watch.batches


def test_a_run_that_crashes_at_every_step_ends_as_if_it_had_not(
    undisturbed: Undisturbed, run_file: Path
) -> None:
    """Each time it goes on from the end of the last phase."""
    run, watch = read_run(run_file), Watch()
    for step in range(1, NUM_STEPS + 1):
        watch.within = {step: crash}
        with pytest.raises(Crash):
            watched(run, watch)
        assert records(Path(run.folder)) == [
            record for record in undisturbed.outcome["records"] if record["step"] < step
        ]
    watched(run, watch := Watch(batches=watch.batches))
    assert outcome(Path(run.folder)) == undisturbed.outcome
    assert watch.batches == undisturbed.watch.batches


def test_a_crash_while_a_record_was_written_leaves_no_half_of_it(
    undisturbed: Undisturbed, run_file: Path
) -> None:
    run = read_run(run_file)
    with pytest.raises(Crash):
        watched(run, Watch({6: crash}))
    with (Path(run.folder) / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"event": "step", "st')
    pretrain(run)
    assert outcome(Path(run.folder)) == undisturbed.outcome


def test_a_finished_run_stays_as_it_is(undisturbed: Undisturbed, tmp_path: Path) -> None:
    """Also if it was killed just before its model was written, and if its folder was moved."""
    folder = tmp_path / "moved"
    shutil.copytree(undisturbed.folder, folder)
    shutil.rmtree(folder / "model")
    run = config.build(PretrainRun, {**config.to_tree(undisturbed.run), "folder": str(folder)})
    watch = Watch()
    result = watched(run, watch)
    assert not watch.batches
    assert result.evaluation == undisturbed.result.evaluation
    assert outcome(folder) == undisturbed.outcome


def test_validating_and_saving_more_often_changes_nothing(undisturbed: Undisturbed, run_file: Path) -> None:
    run = read_run(run_file, ["validation.every_tokens=500", "checkpoint.every_tokens=300"])
    pretrain(run)
    folder = Path(run.folder)
    validated = {record["step"] for record in records(folder) if record["event"] == "validation"}
    assert validated > set(ENDS_OF_PHASES)
    mine, theirs = outcome(folder), undisturbed.outcome
    assert mine["weights"] == theirs["weights"]
    assert [r for r in mine["records"] if r["event"] == "step"] == [
        r for r in theirs["records"] if r["event"] == "step"
    ]


@pytest.mark.parametrize("optimizer", ["{name: adamw, clip_norm: 1.0}", "{name: muon}"])
def test_a_run_with_another_optimizer_resumes_exactly_too(
    optimizer: str, run_file: Path, tmp_path: Path
) -> None:
    given = [f"optimizer={optimizer}"]
    whole = read_run(run_file, [*given, f"folder={tmp_path / 'whole'}"])
    pretrain(whole)
    run = read_run(run_file, given)
    watched(run, Watch({5: terminate}))
    pretrain(run)
    assert outcome(Path(run.folder)) == outcome(Path(whole.folder))
    losses = [record["loss"] for record in records(Path(run.folder)) if record["event"] == "step"]
    assert losses[-1] < losses[0]


def finding(loss: float) -> Findings:
    return Findings(Evaluation(loss, 0.5, 0.1, 10), by_source={}, by_length=())


def test_the_last_and_the_best_checkpoints_are_kept(run_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = iter([5.0, 4.0, 1.0, 3.0, 2.0, 6.0, 7.0, 8.0])
    monkeypatch.setattr(Validation, "measure", lambda *_, **__: finding(next(losses)))
    every = ["validation.every_tokens=1", "checkpoint.every_tokens=1"]
    run = read_run(run_file, [*every, "checkpoint.keep_last=2", "checkpoint.keep_best=3"])
    result = pretrain(run)
    kept = sorted(int(path.name[-9:]) for path in (Path(run.folder) / "checkpoints").iterdir())
    assert kept == [3, 4, 5, 7, 8]
    assert result.evaluation == finding(8.0).evaluation


def test_the_finished_model_may_be_the_mean_of_the_last_phases_best_and_the_last(
    run_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([5.0, 4.0, 1.0, 3.0, 2.0, 2.0, 7.0, 8.0])
    monkeypatch.setattr(Validation, "measure", lambda *_, **__: finding(next(losses)))
    kept = [f"checkpoint.{key}" for key in ("every_tokens=1", "keep_last=9", "keep_best=3", "average_best=1")]
    result = pretrain(read_run(run_file, ["validation.every_tokens=1", *kept]))
    assert result.model is not None
    best, last = (run_file.parent / "run" / "checkpoints" / f"step-{step:09d}" for step in (7, 8))
    found = load_file(result.model / "model.safetensors")
    assert found.keys() == load_file(last / "model.safetensors").keys()
    for name, tensor in average([best, last]).items():
        assert torch.equal(found[name], tensor)


def test_checkpoint_settings_may_change_while_a_run_goes_on(undisturbed: Undisturbed, run_file: Path) -> None:
    run = read_run(run_file, ["checkpoint.every_tokens=1", "checkpoint.keep_last=9"])
    watched(run, Watch({5: terminate}))
    folder = Path(run.folder)
    assert len(list((folder / "checkpoints").iterdir())) == 5
    pretrain(read_run(run_file, ["checkpoint.keep_last=1", "checkpoint.keep_best=0"]))
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step-000000008"]
    assert outcome(folder) == undisturbed.outcome


@pytest.mark.parametrize("name", ["model", "checkpoints/step-000000004"])
def test_models_and_checkpoints_load_here_and_in_transformers(name: str, undisturbed: Undisturbed) -> None:
    folder = undisturbed.folder / name
    ours, theirs = Tokenizer.from_pretrained(folder), transformers.AutoTokenizer.from_pretrained(folder)
    ids = ours.encode("abc ade [MASK] ghi")
    assert theirs("abc ade [MASK] ghi")["input_ids"] == ids
    assert theirs.model_max_length == 64
    model = transformers.AutoModelForMaskedLM.from_pretrained(folder).eval()
    with torch.no_grad():
        expected = model(input_ids=torch.tensor([ids])).logits[0]
        found = ModernBertForMaskedLM.from_pretrained(folder)(*pack([ids]))
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)
    assert (model.config.pad_token_id, model.config.cls_token_id) == (ours.pad_id, ours.cls_id)


def test_a_tokenizer_is_trained_on_the_runs_own_text(run_file: Path) -> None:
    run = read_run(run_file, ["tokenizer={vocab_size: 384}"])
    pretrain(run)
    tokenizer = Tokenizer.from_pretrained(Path(run.folder) / "tokenizer")
    assert tokenizer.vocab_size == 384
    assert Tokenizer.from_pretrained(Path(run.folder) / "model").fingerprint == tokenizer.fingerprint


def test_token_shards_serve_as_a_source(undisturbed: Undisturbed, run_file: Path) -> None:
    shards = [f"data.sources.{i}.path={undisturbed.folder}/shards/{name}" for i, name in enumerate("ab")]
    run = read_run(run_file, shards)
    pretrain(run)
    assert not (Path(run.folder) / "shards").exists()
    assert outcome(Path(run.folder)) == undisturbed.outcome


def test_layers_in_fp8_learn_nearly_as_in_bf16(run_file: Path, tmp_path: Path) -> None:
    half, eighth = (
        pretrain(read_run(run_file, ["precision=bf16", f"fp8={fp8}", f"folder={tmp_path}/{fp8}"]))
        for fp8 in ("false", "true")
    )
    assert half.evaluation is not None
    assert eighth.evaluation is not None
    assert 0 < abs(eighth.evaluation.loss - half.evaluation.loss) < 0.05
    names = [load_file(it.model / "model.safetensors").keys() for it in (half, eighth) if it.model]
    assert names[0] == names[1]


def test_nothing_is_held_out_on_demand(run_file: Path) -> None:
    result = pretrain(run := read_run(run_file, ["validation.fraction=0"]))
    assert result.evaluation is None
    assert "held-out" not in result.summary()
    assert {record["event"] for record in records(Path(run.folder))} == {"step"}


def test_a_corpus_of_one_line_is_enough_without_validation(run_file: Path, tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("one line of text, and no end of it", encoding="utf-8")
    one = 'data.sources=[{name: one, path: "%s"}]' % (tmp_path / "one.txt")
    run = read_run(run_file, [one, "validation.fraction=0", "phases.2.mixture=null"])
    assert pretrain(run).model is not None


# Real signals, a real command.


@pytest.mark.slow
def test_a_command_that_is_killed_and_then_terminated_ends_as_if_undisturbed(
    run_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    longer = ["phases.0.tokens=20_000", "checkpoint.every_tokens=4_000", "checkpoint.keep_last=99"]
    pretrain(read_run(run_file, [*longer, f"folder={tmp_path}/quiet"]))
    command, folder = ["pretrain", str(run_file), *longer], tmp_path / "run"

    with running(*command) as process:
        wait_for_step(10, folder, process)
        process.kill()
        process.communicate()
    assert process.returncode == -signal.SIGKILL
    saved = max((folder / "checkpoints").glob("step-*"))
    assert not (folder / "model").exists()
    with (folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"event": "step", "st')  # as if it had been killed at that

    with running(*command) as process:
        wait_for_step(last_step(folder) + 2, folder, process)
        process.send_signal(signal.SIGTERM)
        stdout, stderr = process.communicate(timeout=600)
    assert process.returncode == 1, stderr
    assert f"goingonfrom{saved}," in "".join(stderr.split())  # the log is wrapped
    assert f"stopped by SIGTERM, saved in {folder}/checkpoints/step-{last_step(folder):09d};" in stdout
    assert "SIGTERM: saving after this step" in stderr
    assert "Traceback" not in stderr

    assert cli.main(command) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"the model is in {folder}/model"
    assert outcome(folder) == outcome(tmp_path / "quiet")


# What cannot be: the exact error, and what the command makes of it.


def refusal(
    kind: type[ModernBertError], capsys: pytest.CaptureFixture[str], run_file: Path, *overrides: str
) -> str:
    """Let a run fail, by function and by command, and return the message."""
    with pytest.raises(kind) as caught:
        pretrain(read_run(run_file, overrides))
    assert type(caught.value) is kind
    capsys.readouterr()
    code = cli.main(["pretrain", str(run_file), *overrides])
    printed = capsys.readouterr()
    assert code == 1
    assert printed.out == ""
    assert [line for line in printed.err.splitlines() if line.startswith("error: ")] == [
        f"error: {caught.value}"
    ]
    assert "Traceback" not in printed.err
    return str(caught.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.epss=1", r"unknown key `optimizer.epss`; did you mean `optimizer.eps`\?"),
        ("phases.1.tokns=8", r"unknown key `phases.1.tokns`; did you mean `phases.1.tokens`\?"),
        ("micro_batch_tokens=many", "`micro_batch_tokens` is 'many'; it must be an integer"),
        ("phases.0.tokens=1.5", "`phases.0.tokens` is 1.5; it must be an integer"),
        ("seed", "`seed` is not an override; it must read `path.to.key=value`"),
        ("=3", "`=3` is not an override; it must read `path.to.key=value`"),
        ("seed=[", r"`\[`, the value of `seed`, is not valid YAML; quote it"),
        ("phases.3.tokens=1", "`phases.3.tokens` names item `3` of a list of 3; count from 0"),
        ("seed.x=1", "`seed.x` is|`seed` is"),
        ("phases.1.mixture={c: 1}", r"`phases.1.mixture.c` names no source; it must be one of: a, b"),
        ("phases.1.batch_tokens=500", "`phases.1.batch_tokens` is 500; it must be a multiple of .*, 256"),
        ("device=abacus", "`abacus` is not a device; it must be `auto`, `cpu`"),
        ("tokenizer={vocab_size: 400}", "`tokenizer.vocab_size` is 400, in multiples of 64 448; it must be"),
    ],
)
def test_settings_that_cannot_be(
    override: str, message: str, run_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert re.search(message, refusal(ConfigError, capsys, run_file, override))
    assert not (run_file.parent / "run").exists()


def test_a_run_file_that_is_missing_or_no_run_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    absent = tmp_path / "none.yaml"
    assert refusal(ConfigError, capsys, absent) == (
        f"`{absent}` does not exist; give the path of a YAML run file"
    )
    assert "could not be read" in refusal(ConfigError, capsys, tmp_path)
    absent.write_bytes(b"\xff\xfe")
    assert "is not valid YAML" in refusal(ConfigError, capsys, absent)
    absent.write_text("- a\n- b\n", encoding="utf-8")
    assert "holds a list; it must hold a mapping" in refusal(ConfigError, capsys, absent)


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


LINE = b"a line of text with words\n"
TRAINED = "tokenizer={vocab_size: 384}"


@pytest.mark.parametrize("extra", [[], [TRAINED]], ids=["given tokenizer", "trained tokenizer"])
@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.txt", None, r"`.*none.txt` does not exist; give the path of a text file or of a folder"),
        ("data.doc", LINE, r"`.*data.doc` is of an unknown kind; its name must end in one of .txt, .jsonl"),
        ("empty.txt", b"", "the corpus is empty: there is no text|there is no text to learn from"),
        ("blank.txt", b" \n\n\t\n", "the corpus is empty: there is no text|there is no text to learn from"),
        ("line.txt", LINE, "source `a` has 1 document; to hold one out .* it must have at least 2"),
        ("huge.txt", LINE + b"x" * 5_000_000, r"huge.txt:2`: the line is 5,000,000 bytes long; .*4,000,000;"),
        ("latin.txt", LINE + b"caf\xe9\n", r"latin.txt:2`: byte 4 of the line \(0xe9\) is not UTF-8;.*iconv"),
        ("data.jsonl", b'{"txt": "a"}\n', "data.jsonl:1` has no key `text`; did you mean `txt`"),
    ],
)  # fmt: skip
def test_text_that_cannot_be_used(
    name: str,
    content: bytes | None,
    message: str,
    extra: list[str],
    run_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    only = [f'data.sources=[{{name: a, path: "{path}"}}]', "phases.2.mixture=null"]
    assert re.search(message, refusal(InputError, capsys, run_file, *only, *extra))
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_too_little_text_to_hold_any_out(
    run_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "two.txt", b"a\nb\n")
    only = [
        f'data.sources=[{{name: a, path: "{path}"}}]',
        "phases.2.mixture=null",
        "validation.mask_rate=1e-9",
    ]
    message = refusal(InputError, capsys, run_file, *only)
    assert message == (
        "of the 3 held-out tokens not one is masked; some must be, to be predicted; raise "
        "`validation.fraction`, or hold out nothing with 0"
    )


def test_a_later_phase_is_checked_before_the_first_step(
    run_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "one.txt", LINE)
    message = refusal(InputError, capsys, run_file, f"data.sources.1.path={path}", "phases.0.mixture={a: 1}")
    assert message.startswith("source `b` has 1 document; to hold one out")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_tokenizer_that_does_not_fit_the_model(
    run_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = refusal(ConfigError, capsys, run_file, "model.vocab_size=320")
    assert message == (
        "the tokenizer has ids up to 383, but the model's `vocab_size` is 320; it must be at least 384; "
        "raise it, or train or choose a smaller tokenizer"
    )
    assert not (tmp_path / "run" / "shards").exists()


def test_a_tokenizer_that_is_missing(
    run_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = refusal(CheckpointError, capsys, run_file, f"tokenizer.path={tmp_path}/none")
    assert message.startswith(f"`{tmp_path}/none` is no folder; it must be a folder, or a hub id")
    (tmp_path / "empty").mkdir()
    message = refusal(InputError, capsys, run_file, f"tokenizer.path={tmp_path}/empty")
    assert "empty/tokenizer.json` is no file" in message


def test_shards_of_another_tokenizer(
    undisturbed: Undisturbed, run_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = [f"data.sources.{i}.path={undisturbed.folder}/shards/{name}" for i, name in enumerate("ab")]
    Tokenizer.train(["aa bb"], vocab_size=320).save_pretrained(run_file.parent / "other")
    other = f"tokenizer.path={run_file.parent}/other"
    assert "were made with tokenizer" in refusal(InputError, capsys, run_file, *shards, other)


def test_a_folder_that_holds_another_run(run_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    watched(read_run(run_file), Watch({2: terminate}))
    written = run_file.parent / "run" / "run.yaml"
    settings = yaml.safe_load(written.read_text(encoding="utf-8"))
    del settings["fp8"]  # a release that did not know it began the run
    written.write_text(yaml.safe_dump(settings), encoding="utf-8")
    before = {path: path.read_bytes() for path in (run_file.parent / "run").rglob("*") if path.is_file()}
    message = refusal(ConfigError, capsys, run_file, "phases.1.learning_rate=1e-5", "seed=18")
    assert message == (
        f"`{run_file.parent}/run` holds a run with other settings (`phases.1.learning_rate`: 0.003 → 1e-05; "
        "`seed`: 17 → 18); to go on with it, use the same settings; for a new run, choose another `folder`"
    )
    after = {path: path.read_bytes() for path in (run_file.parent / "run").rglob("*") if path.is_file()}
    assert after == before


def test_a_folder_that_is_a_file(run_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(run_file.parent / "file", b"")
    message = refusal(ConfigError, capsys, run_file, f"folder={path}")
    assert message == f"`folder` is `{path}`, a file; it must be a folder or new; choose another name"


def test_settings_may_be_mended_until_the_first_checkpoint(
    undisturbed: Undisturbed, run_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A wrong path or size must not spoil the folder for the right one."""
    refusal(InputError, capsys, run_file, f"data.sources.0.path={tmp_path}/none.txt")
    refusal(InputError, capsys, run_file, f"data.sources.0.path={tmp_path}/none.txt", TRAINED)
    refusal(ConfigError, capsys, run_file, "model.vocab_size=320")
    with pytest.raises(Crash):
        watched(read_run(run_file, ["phases.0.learning_rate=1"]), Watch({2: crash}))
    pretrain(read_run(run_file))
    assert outcome(tmp_path / "run") == undisturbed.outcome


def test_another_tokenizer_replaces_that_of_a_run_not_begun(run_file: Path) -> None:
    smaller = ["tokenizer={vocab_size: 320}"]
    with pytest.raises(Crash):
        watched(read_run(run_file, smaller), Watch({1: crash}))
    pretrain(read_run(run_file))
    assert Tokenizer.from_pretrained(run_file.parent / "run" / "model").vocab_size == 384


def fill_disk(monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    """Let no file whose path has `part` in it reach the disk."""
    sync = files._sync

    def full(path: Path) -> None:
        if part in str(path):
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(path)

    monkeypatch.setattr(files, "_sync", full)


def test_a_disk_full_of_shards(
    undisturbed: Undisturbed,
    run_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fill_disk(monkeypatch, "/shards/b/")
    assert refusal(StorageError, capsys, run_file) == (
        f"could not write `{tmp_path}/run/shards/b/00000.tokens`: the disk is full; free space or choose a "
        "folder on another disk; nothing written before was lost"
    )
    monkeypatch.undo()
    pretrain(read_run(run_file))
    assert outcome(tmp_path / "run") == undisturbed.outcome


def test_a_disk_full_of_checkpoints(
    undisturbed: Undisturbed,
    run_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    checkpoints = tmp_path / "run" / "checkpoints"
    full = f"could not write `{checkpoints}/.*step-%09d.*`: the disk is full; free space .* was lost; "
    fill_disk(monkeypatch, "/checkpoints/")
    message = refusal(StorageError, capsys, run_file)
    assert re.fullmatch(full % 4 + "there is no earlier checkpoint", message)
    monkeypatch.undo()
    fill_disk(monkeypatch, "/.step-000000006.partial/optimizer")
    message = refusal(StorageError, capsys, run_file)
    last = checkpoints / "step-000000004"
    assert re.fullmatch(full % 6 + f"the last good checkpoint is `{last}`", message)
    assert [path.name for path in checkpoints.iterdir()] == [last.name]
    monkeypatch.undo()
    pretrain(read_run(run_file))
    assert outcome(tmp_path / "run") == undisturbed.outcome


def spoil(monkeypatch: pytest.MonkeyPatch, *spoilt: int) -> None:
    """Make the loss of some training rows not a number; rows are counted from 1, over all steps."""
    rows, loss = 0, ModernBertForMaskedLM.loss

    def spoiled(model: ModernBertForMaskedLM, *batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
        nonlocal rows
        rows += model.training
        value, correct = loss(model, *batch)
        return value * (float("nan") if model.training and rows in spoilt else 1.0), correct

    monkeypatch.setattr(ModernBertForMaskedLM, "loss", spoiled)


def test_a_loss_that_is_not_finite(
    undisturbed: Undisturbed, run_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = read_run(run_file, STRICT)
    spoil(monkeypatch, 2)
    with pytest.raises(DivergenceError) as caught:
        pretrain(run)
    identity = undisturbed.watch.reports[2].batch.identity
    assert identity.startswith("phase `short`")
    message = str(caught.value)
    assert message.startswith("step 2 is bad: its loss is nan")
    assert message.endswith(
        f"must be finite; the batch is {identity}; there is no checkpoint yet; begin a new run with a lower "
        "learning rate, or mend these documents"
    )
    monkeypatch.undo()
    spoil(monkeypatch, 12)  # of step 6
    with pytest.raises(DivergenceError, match=r"step 6 is bad: .*`long`.* checkpoint is `.*step-000000004`;"):
        pretrain(run)
    assert [record["step"] for record in records(tmp_path / "run")][-1] == 5
    monkeypatch.undo()
    pretrain(run)
    assert outcome(tmp_path / "run") == undisturbed.outcome


def test_the_command_says_that_a_loss_is_not_finite(
    run_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(monkeypatch, 1)
    assert cli.main(["pretrain", str(run_file), *STRICT]) == 1
    assert "error: step 1 is bad: its loss is nan" in capsys.readouterr().err


def test_the_update_of_a_bad_step_is_left_out(
    undisturbed: Undisturbed, run_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its tokens count as seen: data, schedule and the other steps are as planned."""
    spoil(monkeypatch, 4)  # of step 3
    watch = Watch()
    result = watched(read_run(run_file), watch)
    assert result.model is not None
    assert watch.batches == undisturbed.watch.batches
    assert [step for step, report in watch.reports.items() if report.fault] == [3]
    found = records(tmp_path / "run")
    (skipped,) = [record for record in found if record["event"] == "skip"]
    assert skipped["step"] == 3
    assert skipped["message"].startswith("the update of step 3 is left out: its loss is nan")
    assert [record["step"] for record in found if record["event"] == "step"] == [1, 2, 4, 5, 6, 7, 8]


def test_too_many_bad_steps_take_the_run_back_to_its_checkpoint_and_on_with_later_data(
    undisturbed: Undisturbed, run_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, 10, 12)  # of steps 5 and 6
    reports: list[StepReport] = []

    def noting(*arguments: Any, **options: Any) -> Iterator[StepReport]:
        for report in train(*arguments, **options):
            reports.append(report)
            yield report

    monkeypatch.setattr(recipe, "train", noting)
    pretrain(read_run(run_file, ["guard.skips=1", "guard.rollbacks=1"]))
    assert [report.batch.clock.step for report in reports] == [1, 2, 3, 4, 5, 6, 5, 6, 7, 8]
    rows = [row.input_ids.tolist() for report in reports[4:8] for row in report.batch.rows]
    assert len({str(row) for row in rows}) == len(rows) == 8, "no row of the phase came twice"
    first, again = reports[4].batch, reports[6].batch
    assert again.identity.startswith("phase `long`, 2 rows from row 4: ")
    assert (first.clock.phase, first.clock.step) == (again.clock.phase, again.clock.step)
    found = records(tmp_path / "run")
    skipped, back = [record for record in found if record["event"] not in ("step", "validation")]
    assert (skipped["event"], skipped["step"]) == ("skip", 5), "what happened stays said"
    assert (back["event"], back["step"], back["from_step"]) == ("rollback", 4, 6)
    assert "; back to step 4, and on with the data after phase `long`, 2 rows from row 2: " in back["message"]
    steps = [record["step"] for record in found if record["event"] == "step"]
    assert steps == list(range(1, NUM_STEPS + 1))
    state = files.read_json(tmp_path / "run" / "checkpoints" / "step-000000004" / "state.json")
    assert state["loader"] == reports[5].batch.loader_state
    assert state["metrics"]["guard"]["rollbacks"] == 1
    theirs = files.read_json(undisturbed.folder / "checkpoints" / "step-000000004" / "state.json")
    assert state["score"] == theirs["score"]


def test_checkpoints_that_are_damaged_are_passed_over(undisturbed: Undisturbed, tmp_path: Path) -> None:
    """The run goes on from the newest whole one."""
    folder = tmp_path / "run"
    shutil.copytree(undisturbed.folder, folder)
    for name in ("step-000000008/model.safetensors", "step-000000006/state.json"):
        path = folder / "checkpoints" / name
        path.write_bytes(path.read_bytes()[:-50])
    run = config.build(PretrainRun, {**config.to_tree(undisturbed.run), "folder": str(folder)})
    watch = Watch()
    watched(run, watch)
    assert list(watch.batches) == [5, 6, 7, 8]
    assert outcome(folder) == undisturbed.outcome


def test_a_run_that_has_begun_needs_its_text_no_more(
    undisturbed: Undisturbed, run_file: Path, corpus: Path, tmp_path: Path
) -> None:
    """Its token shards are its text: the files may be gone, and other shards are noticed."""
    path = write(tmp_path / "c.txt", (corpus / "a.txt").read_bytes())
    watched(read_run(run_file, [f"data.sources.0.path={path}"]), Watch({2: terminate}))
    path.unlink()
    moved = read_run(run_file, [f"data.sources.0.path={tmp_path}/moved.txt"])
    shards = tmp_path / "run" / "shards"
    shards.rename(tmp_path / "aside")
    write(tmp_path / "moved.txt", (corpus / "b.txt").read_bytes())
    with pytest.raises(CheckpointError, match="the loader's state is of another stream; these differ"):
        pretrain(moved)
    shutil.rmtree(shards)
    (tmp_path / "moved.txt").unlink()
    (tmp_path / "aside").rename(shards)
    pretrain(moved)
    assert outcome(tmp_path / "run") == undisturbed.outcome


def test_damaged_shards_are_found_if_asked_for(run_file: Path, tmp_path: Path) -> None:
    run = read_run(run_file, ["data.verify_shards=true"])
    watched(run, Watch({2: terminate}))
    tokens = next((tmp_path / "run" / "shards").rglob("*.tokens"))
    content = bytearray(tokens.read_bytes())
    content[7] ^= 1
    tokens.write_bytes(content)
    with pytest.raises(InputError, match="does not match its checksum"):
        pretrain(run)


def test_unreadable_checkpoints_do_not_begin_the_run_anew(run_file: Path, tmp_path: Path) -> None:
    run = read_run(run_file)
    watched(run, Watch({2: terminate}))
    for state in (tmp_path / "run" / "checkpoints").glob("*/state.json"):
        files.write_json(state, {**files.read_json(state), "format": 99})
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    with pytest.raises(CheckpointError, match="and all others of the run cannot be read"):
        pretrain(run)
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before


def test_half_of_a_launcher_is_refused(run_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="WORLD_SIZE is 2, but RANK is not set"):
        pretrain(read_run(run_file))


def test_a_folder_in_use_is_refused(run_file: Path, tmp_path: Path) -> None:
    with hold(tmp_path / "run"), pytest.raises(ConfigError, match=r"run` is in use by another process"):
        pretrain(read_run(run_file))


def test_no_tokenizer_can_be_trained_on_token_shards(run_file: Path, tmp_path: Path) -> None:
    files.write_json(tmp_path / "made" / "index.json", {})
    run = read_run(run_file, [TRAINED, f"data.sources.0.path={tmp_path}/made"])
    with pytest.raises(ConfigError, match=r"is token shards, .* `tokenizer.path` must name the tokenizer"):
        pretrain(run)


def test_the_dry_run_of_the_plan_reads_back(run_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["pretrain", str(run_file), "seed=3", "--dry-run"]) == 0
    resolved = capsys.readouterr().out
    assert config.build(PretrainRun, yaml.safe_load(resolved)) == read_run(run_file, ["seed=3"])
