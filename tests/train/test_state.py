from __future__ import annotations

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from modernbert import files
from modernbert.errors import CheckpointError, ConfigError, StorageError
from modernbert.model import tensor_files
from modernbert.model.config import EncoderConfig
from modernbert.model.dialects import to_published
from modernbert.train.optim import parameter_groups
from modernbert.train.schedule import Clock
from modernbert.train.stable_adamw import StableAdamW
from modernbert.train.state import Checkpoints, load_weights, restore


class Tiny(nn.Module):
    """Tied weights, a matrix, a vector, a scalar, dropout."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.embedding = nn.Embedding(6, width)
        self.norm = nn.LayerNorm(width, bias=False)
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.decoder = nn.Linear(width, 6)
        self.decoder.weight = self.embedding.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        hidden = functional.dropout(self.norm(self.embedding(ids)), 0.5) * self.scale
        logits: torch.Tensor = self.decoder(hidden)
        return logits


def save_model(model: nn.Module, folder: Path) -> None:
    tensors = {name: param.detach() for name, param in model.named_parameters()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text("{}", encoding="utf-8")


def build(kind: str = "StableAdamW") -> tuple[Tiny, torch.optim.Optimizer]:
    model = Tiny()
    groups = parameter_groups(model, weight_decay=1e-3)
    if kind == "StableAdamW":
        return model, StableAdamW(groups, lr=0.01)
    return model, torch.optim.AdamW(groups, lr=0.01)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> list[float]:
    losses = []
    for _ in range(steps):
        ids = torch.randint(6, (8,))
        loss = functional.cross_entropy(model(ids), ids)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def save(
    checkpoints: Checkpoints,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    step: int = 1,
    **changes: Any,
) -> Path:
    given: dict[str, Any] = {
        "clock": Clock(phase=1, phase_tokens=20 * step, tokens=100 * step, step=step),
        "loader_state": {"stream": {"epoch": 2, "next": [3, 4]}},
        "metrics": {"loss": 1.25},
        "settings_yaml": "seed: 1\n",
        "facts": {"machine": "here"},
    }
    return checkpoints.save(model, optimizer, **{**given, **changes})


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    return Checkpoints(tmp_path / "run", save_model)


@pytest.mark.parametrize("kind", ["StableAdamW", "AdamW"])
def test_a_restored_run_goes_on_bit_for_bit(kind: str, checkpoints: Checkpoints) -> None:
    model, optimizer = build(kind)
    train(model, optimizer, 5)
    path = save(checkpoints, model, optimizer, step=5)
    losses = train(model, optimizer, 7)

    torch.manual_seed(999)
    resumed, other = build(kind)
    train(resumed, other, 2)
    found = restore(path, resumed, other)
    assert train(resumed, other, 7) == losses
    for name, param in resumed.named_parameters():
        assert torch.equal(param, model.get_parameter(name))
    assert found.clock == Clock(phase=1, phase_tokens=100, tokens=500, step=5)
    assert found.loader_state == {"stream": {"epoch": 2, "next": [3, 4]}}
    assert found.metrics == {"loss": 1.25}


def test_options_of_the_optimizer_stay_those_of_the_settings(checkpoints: Checkpoints) -> None:
    model, optimizer = build()
    train(model, optimizer, 1)
    path = save(checkpoints, model, optimizer)
    resumed, _ = build()
    changed = StableAdamW(parameter_groups(resumed, weight_decay=0.5), lr=0.25)
    restore(path, resumed, changed)
    assert [(group["lr"], group["weight_decay"]) for group in changed.param_groups] == [
        (0.25, 0.5),
        (0.25, 0.0),
    ]


def test_a_checkpoint_holds_what_a_reader_looks_for(checkpoints: Checkpoints) -> None:
    model, optimizer = build()
    train(model, optimizer, 2)
    path = save(checkpoints, model, optimizer, step=123)
    assert path == checkpoints.folder / "step-000000123"
    assert {file.name for file in path.iterdir()} == {
        "model.safetensors",
        "config.json",
        "optimizer.safetensors",
        "state.json",
        "run.yaml",
        "facts.json",
    }
    assert (path / "run.yaml").read_text(encoding="utf-8") == "seed: 1\n"
    assert files.read_json(path / "facts.json") == {"machine": "here"}
    assert {"embedding.weight/exp_avg", "scale/exp_avg_sq", "rng/cpu"} <= load_file(
        path / "optimizer.safetensors"
    ).keys()


def saved(checkpoints: Checkpoints, scores: list[float | None]) -> list[int]:
    """Save one checkpoint a score, at steps 1, 2, …; return the steps that are kept."""
    model, optimizer = build()
    for step, score in enumerate(scores, start=1):
        save(checkpoints, model, optimizer, step=step, score=score)
    return [int(path.name[-9:]) for path in checkpoints.folders()]


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("keep_last", "keep_best", "scores", "kept", "best"),
    [
        (3, 1, [5.0, 4.0, 3.0, 2.0, 1.0], [3, 4, 5], 5),
        (3, 1, [1.0, 2.0, 3.0, 4.0, 5.0], [1, 3, 4, 5], 1),
        (1, 3, [2.0, 5.0, 1.0, 3.0, 9.0], [1, 3, 4, 5], 3),
        (1, 0, [1.0, 2.0, 3.0], [3], 3),
        (2, 1, [None, None, None, None], [3, 4], None),
        (1, 1, [NAN, 3.0, INF, None], [2, 4], 2),
        (1, 1, [2.0, 2.0, 2.0], [1, 3], 1),
    ],
)
def test_the_last_and_the_best_are_kept(
    keep_last: int,
    keep_best: int,
    scores: list[float | None],
    kept: list[int],
    best: int | None,
    tmp_path: Path,
) -> None:
    checkpoints = Checkpoints(tmp_path, save_model, keep_last=keep_last, keep_best=keep_best)
    assert saved(checkpoints, scores) == kept
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"step-{step:09d}" for step in kept]
    assert checkpoints.latest() == tmp_path / f"step-{len(scores):09d}"
    assert checkpoints.best() == (tmp_path / f"step-{best:09d}" if best else None)


def test_checkpoints_are_ranked_by_score(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, save_model, keep_last=9)
    saved(checkpoints, [3.0, None, 1.0, 2.0])
    assert [int(path.name[-9:]) for path in checkpoints.ranked()] == [3, 4, 1]


def test_no_checkpoint_yet(checkpoints: Checkpoints) -> None:
    assert checkpoints.folders() == []
    assert checkpoints.latest() is None
    assert checkpoints.best() is None


def test_after_a_rollback_the_latest_is_the_one_saved_last(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, save_model, keep_last=2)
    saved(checkpoints, [None, None])
    model, optimizer = build()
    save(checkpoints, model, optimizer, step=1, metrics={"loss": 0.5})
    assert checkpoints.latest() == tmp_path / "step-000000001"
    assert restore(tmp_path / "step-000000001", model, optimizer).metrics == {"loss": 0.5}
    assert [path.name for path in checkpoints.folders()] == ["step-000000002", "step-000000001"]


def test_half_written_folders_are_passed_over_and_swept_up(checkpoints: Checkpoints) -> None:
    model, optimizer = build()
    whole = save(checkpoints, model, optimizer, step=1)
    for name in (".step-000000002.partial", ".step-000000003.removed", "step-000000004"):
        (checkpoints.folder / name).mkdir()
    cut = save(checkpoints, model, optimizer, step=5)
    (cut / "model.safetensors").write_bytes((cut / "model.safetensors").read_bytes()[:-1])
    lost = save(checkpoints, model, optimizer, step=6)
    (lost / "optimizer.safetensors").unlink()
    assert checkpoints.folders() == [whole]
    assert checkpoints.latest() == whole
    assert not list(checkpoints.folder.glob(".*"))


def test_a_kill_between_the_two_renames_of_a_replacement_loses_nothing(checkpoints: Checkpoints) -> None:
    model, optimizer = build()
    whole = save(checkpoints, model, optimizer, step=1)
    whole.rename(whole.with_name(f".{whole.name}.new"))
    assert checkpoints.latest() == whole
    (whole.parent / f".{whole.name}.new").mkdir()  # and one before the first rename leaves the old one
    assert checkpoints.latest() == whole
    assert restore(whole, model, optimizer).clock.step == 1


def disk_full(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def disk_full_in_rust(*_: object) -> None:
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


@pytest.mark.parametrize("full", [disk_full, disk_full_in_rust])
def test_a_full_disk_names_the_last_good_checkpoint(
    full: Callable[..., None], checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, optimizer = build()
    monkeypatch.setattr(tensor_files, "save_file", full)
    with pytest.raises(StorageError, match=r"the disk is full.*there is no earlier checkpoint"):
        save(checkpoints, model, optimizer, step=1)
    monkeypatch.undo()
    good = save(checkpoints, model, optimizer, step=1)
    monkeypatch.setattr(tensor_files, "save_file", full)
    with pytest.raises(StorageError, match=f"the disk is full.*the last good checkpoint is `{good}`"):
        save(checkpoints, model, optimizer, step=2)
    with pytest.raises(StorageError, match="the disk is full"):
        save(checkpoints, model, optimizer, step=1)
    assert [path.name for path in checkpoints.folder.iterdir()] == [good.name]
    restore(good, model, optimizer)


def test_a_full_disk_is_told_when_the_model_is_written_too(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, disk_full)
    with pytest.raises(StorageError, match="the disk is full"):
        save(checkpoints, *build())


def test_an_interrupted_save_leaves_nothing(tmp_path: Path) -> None:
    def interrupted(model: nn.Module, folder: Path) -> None:
        save_model(model, folder)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save(Checkpoints(tmp_path, interrupted), *build())
    assert list(tmp_path.iterdir()) == []


def test_a_killed_removal_leaves_no_half_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = Checkpoints(tmp_path, save_model, keep_last=1)
    model, optimizer = build()
    save(checkpoints, model, optimizer, step=1)
    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", lambda *_, **__: None)
        save(checkpoints, model, optimizer, step=2)
    assert checkpoints.folders() == [tmp_path / "step-000000002"]
    save(checkpoints, model, optimizer, step=3)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000003"]


@pytest.mark.parametrize(
    ("keep", "message"), [({"keep_last": 0}, "`keep_last` is 0"), ({"keep_best": -1}, "-1")]
)
def test_counts_out_of_range_are_refused(keep: dict[str, int], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        Checkpoints(tmp_path, save_model, **keep)


def rewrite_state(path: Path, **changes: Any) -> None:
    state = files.read_json(path / "state.json")
    files.write_json(path / "state.json", {**state, **changes})


def test_a_file_cut_short_is_named_and_nothing_changes(checkpoints: Checkpoints) -> None:
    model, optimizer = build()
    train(model, optimizer, 2)
    path = save(checkpoints, model, optimizer)
    file = path / "optimizer.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    resumed, other = build()
    before = [param.detach().clone() for param in resumed.parameters()]
    with pytest.raises(
        CheckpointError, match=r"optimizer.safetensors` has \d+ bytes; it must have \d+ bytes"
    ):
        restore(path, resumed, other)
    rewrite_state(path, bytes={})
    with pytest.raises(CheckpointError, match=r"optimizer.safetensors` is not a whole safetensors file"):
        restore(path, resumed, other)
    assert all(torch.equal(old, new) for old, new in zip(before, resumed.parameters(), strict=True))
    assert not other.state


def test_a_folder_that_is_no_checkpoint_is_refused(checkpoints: Checkpoints, tmp_path: Path) -> None:
    model, optimizer = build()
    with pytest.raises(CheckpointError, match=r"state.json` does not exist; .* must be a checkpoint"):
        restore(tmp_path, model, optimizer)
    path = save(checkpoints, model, optimizer)
    state = files.read_json(path / "state.json")
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"format": 99}, "`format` 99; it must be 1"),
        ({"clock": {"step": 1}}, "`clock` in .* it must be a clock"),
        ({"clock": None}, "`clock` in .* is None"),
    ]
    for changes, message in wrong:
        files.write_json(path / "state.json", {**state, **changes})
        with pytest.raises(CheckpointError, match=message):
            restore(path, model, optimizer)
    del state["loader"]
    files.write_json(path / "state.json", state)
    with pytest.raises(CheckpointError, match="has no `loader`"):
        restore(path, model, optimizer)
    (path / "state.json").write_text('{"format"', encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"state.json` is not valid JSON"):
        restore(path, model, optimizer)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(6, 4)
        self.dense = nn.Linear(4, 4)
        self.decoder = nn.Linear(4, 6)
        self.decoder.weight = self.embedding.weight


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: param.detach() for name, param in model.named_parameters()}


def save_config(folder: Path, config: EncoderConfig) -> None:
    files.write_json(folder / "config.json", to_published(config, "ModernBertForMaskedLM"))


def folder_of(path: Path, tensors: dict[str, Tensor], **settings: Any) -> Path:
    path.mkdir()
    save_config(path, EncoderConfig.preset("tiny", **settings))
    save_file(tensors, path / "model.safetensors", {"format": "pt"})
    return path


def sharded(path: Path, tensors: dict[str, Tensor]) -> Path:
    path.mkdir()
    save_config(path, EncoderConfig.preset("tiny"))
    placed = {name: f"model-{index}.safetensors" for index, name in enumerate(tensors)}
    for name, file in placed.items():
        save_file({name: tensors[name]}, path / file)
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": placed}), encoding="utf-8")
    return path


@pytest.mark.parametrize("write", [folder_of, sharded])
def test_weights_load_by_name_and_tied_ones_once(write: object, tmp_path: Path) -> None:
    assert callable(write)
    source, target = Tied(), Tied()
    folder = write(tmp_path / "model", tensors_of(source))
    load_weights(target, folder)
    assert target.decoder.weight is target.embedding.weight
    for name, param in target.named_parameters():
        assert torch.equal(param, source.get_parameter(name))
        assert param.requires_grad


def test_nothing_changes_when_one_tensor_does_not_fit(tmp_path: Path) -> None:
    tensors = {**tensors_of(Tied()), "dense.weight": torch.zeros(4, 5)}
    model = Tied()
    before = {name: tensor.clone() for name, tensor in tensors_of(model).items()}
    with pytest.raises(
        CheckpointError, match=r"`dense.weight` in .* is torch.float32 \(4, 5\); it must be .*\(4, 4\)"
    ):
        load_weights(model, folder_of(tmp_path / "model", tensors))
    for name, tensor in tensors_of(model).items():
        assert torch.equal(tensor, before[name])


def test_a_missing_a_surplus_and_a_mistyped_tensor_are_named(tmp_path: Path) -> None:
    tensors = tensors_of(Tied())
    missing = {name: tensor for name, tensor in tensors.items() if name != "dense.bias"}
    with pytest.raises(CheckpointError, match=r"holds no tensor `dense.bias`"):
        load_weights(Tied(), folder_of(tmp_path / "missing", missing))
    with pytest.raises(CheckpointError, match="holds `more`; the model has no such tensor"):
        load_weights(Tied(), folder_of(tmp_path / "surplus", {**tensors, "more": torch.zeros(1)}))
    half = {name: tensor.bfloat16() for name, tensor in tensors.items()}
    with pytest.raises(CheckpointError, match=r"is torch.bfloat16 .* it must be torch.float32"):
        load_weights(Tied(), folder_of(tmp_path / "half", half))


def test_a_file_that_is_missing_cut_short_or_no_safetensors_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds neither `model.safetensors` nor"):
        load_weights(Tied(), tmp_path)
    folder = folder_of(tmp_path / "cut", tensors_of(Tied()))
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:-8])
    with pytest.raises(CheckpointError, match=r"cut/model.safetensors` is not a whole safetensors file"):
        load_weights(Tied(), folder)
    torch.save(tensors_of(Tied()), folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"cut/model.safetensors` is not a whole safetensors file"):
        load_weights(Tied(), folder)


def test_shards_that_are_missing_or_not_indexed_are_named(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "model", tensors_of(Tied()))
    (folder / "model-1.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"index.json` names `model-1.safetensors`"):
        load_weights(Tied(), folder)
    (folder / "model.safetensors.index.json").write_text("[]", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"index.json`"):
        load_weights(Tied(), folder)
