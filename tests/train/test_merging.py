from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from modernbert import files
from modernbert.errors import CheckpointError, ConfigError, InputError, StorageError
from modernbert.model import tensor_files
from modernbert.model.config import EncoderConfig
from modernbert.model.dialects import to_published
from modernbert.model.heads import ModernBertForMaskedLM
from modernbert.model.init import initialise
from modernbert.train.merging import MergeSettings, average, best_and_last, merge_checkpoints, ties
from modernbert.train.schedule import Clock
from modernbert.train.state import Checkpoints


def folder_of(path: Path, tensors: dict[str, Tensor], **settings: Any) -> Path:
    path.mkdir()
    config = EncoderConfig.preset("tiny", **settings)
    files.write_json(path / "config.json", to_published(config, "ModernBertForMaskedLM"))
    save_file(tensors, path / "model.safetensors", {"format": "pt"})
    return path


def folders_of(parent: Path, *rows: Tensor) -> list[Path]:
    return [folder_of(parent / str(index), {"w": row}) for index, row in enumerate(rows)]


def test_an_average_is_that_of_float64(tmp_path: Path) -> None:
    rows = [torch.randn(50, 3) * 10**exponent for exponent in (-3, 0, 4)]
    folders = folders_of(tmp_path, *rows)
    mean = average(folders)["w"]
    assert mean.dtype is torch.float32
    assert torch.equal(mean, torch.stack([row.double() for row in rows]).mean(0).float())
    weighted = average(folders, [1, 2, 5])["w"]
    expected = (rows[0].double() + 2 * rows[1].double() + 5 * rows[2].double()) / 8
    torch.testing.assert_close(weighted, expected.float(), rtol=1e-7, atol=0)


def test_the_merge_of_one_model_with_itself_is_that_model(tmp_path: Path) -> None:
    row = torch.randn(30)
    (folder,) = folders_of(tmp_path, row)
    assert torch.equal(average([folder] * 3)["w"], row)
    assert torch.equal(ties([folder] * 3, folder)["w"], row)


def test_a_later_model_weighs_more_in_an_exponential_merge(tmp_path: Path) -> None:
    rows = [torch.randn(5) for _ in range(3)]
    folders = folders_of(tmp_path, *rows)
    merge_checkpoints(folders, tmp_path / "merged", MergeSettings(how="exponential", decay=0.25))
    merged = load_file(tmp_path / "merged" / "model.safetensors")["w"]
    torch.testing.assert_close(merged, (rows[0] + 4 * rows[1] + 16 * rows[2]) / 21)


def plain_ties(base: list[float], models: list[list[float]], num_kept: int) -> list[float]:
    """The definition, weight by weight."""
    trimmed = []
    for model in models:
        changes = [new - old for new, old in zip(model, base, strict=True)]
        least = sorted(map(abs, changes), reverse=True)[num_kept - 1]
        trimmed.append([change if abs(change) >= least else 0.0 for change in changes])
    merged = []
    for old, column in zip(base, zip(*trimmed, strict=True), strict=True):
        direction = math.copysign(1.0, sum(column))
        agreeing = [change for change in column if change * direction > 0]
        merged.append(old + (sum(agreeing) / len(agreeing) if agreeing else 0.0))
    return merged


def test_ties_is_as_defined_over_all_tensors_of_a_model(tmp_path: Path) -> None:
    base, *models = (torch.randn(40) * scale for scale in (1.0, 2.0, 1.5, 3.0))
    folders = [
        folder_of(tmp_path / str(index), {"w": model[:30].view(5, 6), "x": model[30:]})
        for index, model in enumerate([base, *models])
    ]
    merged = ties(folders[1:], folders[0], density=0.3)
    expected = plain_ties(base.tolist(), [model.tolist() for model in models], num_kept=12)
    found = torch.cat([merged["w"].flatten(), merged["x"]])
    torch.testing.assert_close(found, torch.tensor(expected))
    assert 0 < int((found == base).sum()) < 28


def test_ties_keeps_the_larger_changes_and_the_stronger_direction(tmp_path: Path) -> None:
    base = torch.zeros(4)
    one, two = torch.tensor([8.0, 6.0, 0.5, 0.1]), torch.tensor([4.0, -2.0, -0.5, 9.0])
    folders = folders_of(tmp_path, base, one, two)
    merged = ties(folders[1:], folders[0], density=0.75)["w"]
    assert merged.tolist() == [6.0, 6.0, 0.5, 9.0]
    merged = ties(folders[1:], folders[0], density=1.0)["w"]
    assert merged.tolist() == pytest.approx([6.0, 6.0, 0.0, 4.55])


def test_a_merge_loads_as_a_model(tmp_path: Path) -> None:
    folders = []
    for seed in (1, 2, 3):
        model = ModernBertForMaskedLM(EncoderConfig.preset("tiny"))
        initialise(model, seed=seed)
        model.save_pretrained(tmp_path / str(seed))
        folders.append(tmp_path / str(seed))
    for name in ("tokenizer.json", "state.json"):
        (folders[-1] / name).write_text(name, encoding="utf-8")
    for settings in (None, MergeSettings(how="ties", base=folders[0])):
        output = tmp_path / ("mean" if settings is None else settings.how)
        merge_checkpoints(folders[1:], output, settings)
        found = {path.name for path in output.iterdir()}
        assert found == {"model.safetensors", "config.json", "tokenizer.json"}
        ModernBertForMaskedLM.from_pretrained(output)
    with pytest.raises(StorageError, match="exists already"):
        merge_checkpoints(folders, tmp_path / "mean")


def test_models_that_differ_are_not_merged(tmp_path: Path) -> None:
    one = folder_of(tmp_path / "one", {"w": torch.zeros(2), "x": torch.zeros(1)})
    fewer = folder_of(tmp_path / "fewer", {"w": torch.zeros(2)})
    wider = folder_of(tmp_path / "wider", {"w": torch.zeros(3), "x": torch.zeros(1)})
    whole = folder_of(tmp_path / "whole", {"w": torch.zeros(2, dtype=torch.int64)})
    with pytest.raises(CheckpointError, match="`x` is in only one of"):
        average([one, fewer])
    with pytest.raises(CheckpointError, match=r"`w` in .*wider.* \(3,\); it must be torch.float32 \(2,\)"):
        ties([wider], one)
    with pytest.raises(CheckpointError, match=r"`w` in .* is torch.int64; only floating point"):
        average([whole])


def test_models_of_other_settings_are_not_merged(tmp_path: Path) -> None:
    tensors = {"w": torch.zeros(2)}
    short = folder_of(tmp_path / "short", tensors, global_rope_theta=10_000.0)
    long = folder_of(tmp_path / "long", tensors, global_rope_theta=160_000.0)
    message = r"short` and `.*long` differ .*`global_rope_theta`: 10000.0 → 160000.0\); .* of one phase"
    with pytest.raises(CheckpointError, match=message):
        average([short, short, long])
    with pytest.raises(CheckpointError, match=message):
        merge_checkpoints([long], tmp_path / "merged", MergeSettings(how="ties", base=short))
    assert not (tmp_path / "merged").exists()
    (long / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"long` holds no `config.json`"):
        average([short, long])


def test_the_best_of_a_phase_and_the_last_are_found(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, lambda *_: None, keep_last=9)
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    saved = {}
    for step, phase, phase_tokens, score in (
        (1, 0, 10, 0.1),
        (2, 1, 0, 0.2),  # the end of the phase before
        (3, 1, 10, 2.0),
        (4, 1, 20, 0.5),
        (5, 1, 30, None),
        (6, 1, 40, 1.0),
        (7, 2, 0, 3.0),
    ):
        clock = Clock(phase=phase, phase_tokens=phase_tokens, tokens=10 * step, step=step)
        what = {"loader_state": {}, "metrics": {}, "settings_yaml": "", "facts": {}}
        saved[step] = checkpoints.save(model, optimizer, clock=clock, score=score, **what)
    for num_best, steps in ((0, [7]), (2, [4, 6, 7]), (9, [3, 4, 6, 7])):
        assert best_and_last(checkpoints, 1, num_best) == [saved[step] for step in steps]


@pytest.mark.parametrize(
    ("count", "given", "message"),
    [
        (0, None, "there is no checkpoint to merge"),
        (2, [1.0], "there are 1 weights for 2 folders"),
        (2, [1.0, 0.0], "a weight of the average is 0.0; it must be above 0"),
        (1, [float("nan")], "a weight of the average is nan"),
    ],
)
def test_weights_of_an_average_must_fit(
    count: int, given: list[float] | None, message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        average([tmp_path] * count, given)


def test_no_folder_cannot_be_merged(tmp_path: Path) -> None:
    for settings in (MergeSettings(), MergeSettings(how="ties", base=tmp_path)):
        with pytest.raises(InputError, match="there is no checkpoint to merge"):
            merge_checkpoints([], tmp_path / "merged", settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"decay": 1.0}, "`decay` is 1.0; it must be above 0 and below 1"),
        ({"density": 0.0}, "`density` is 0.0; it must be above 0 and at most 1"),
        ({"how": "ties"}, "`base` is None and `how` is 'ties'; `ties` needs the folder"),
        ({"base": Path("b")}, "`base` is 'b' and `how` is 'mean'; `ties` needs the folder"),
    ],
)
def test_a_setting_of_a_merge_that_does_not_fit_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        MergeSettings(**settings)
    assert message in str(caught.value)


def test_a_full_disk_leaves_no_merge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = folders_of(tmp_path, torch.zeros(2))

    def disk_full(*_: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(tensor_files, "save_file", disk_full)
    with pytest.raises(StorageError, match="the disk is full"):
        merge_checkpoints(folders, tmp_path / "merged")
    assert [path.name for path in tmp_path.iterdir()] == ["0"]
