"""A run that begins with a checkpoint: what it takes over, what becomes of its words, what it refuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml

from modernbert import config
from modernbert.data.tokenizer import Tokenizer
from modernbert.errors import CheckpointError, ConfigError, InputError
from modernbert.model.config import EncoderConfig, HeadConfig
from modernbert.model.heads import HEADS, ModernBertForMaskedLM
from modernbert.model.init import initialise
from modernbert.recipes import pretrain as recipe
from modernbert.recipes.pretrain import pretrain
from modernbert.recipes.settings import PretrainRun, read_run

SMALL = {"hidden_size": 32, "intermediate_size": 48, "max_position_embeddings": 64, "window": 8}
PHASES = [
    {
        "name": "adapt",
        "tokens": 1_500,
        "sequence_length": 64,
        "batch_tokens": 512,
        "learning_rate": 1e-3,
        "warmup_tokens": 256,
    },
    {
        "name": "decay",
        "tokens": 600,
        "sequence_length": 64,
        "batch_tokens": 512,
        "learning_rate": 1e-3,
        "decay": "one_minus_sqrt",
    },
]
Write = Callable[..., Path]
ReadRun = Callable[..., PretrainRun]


@pytest.fixture(scope="module")
def write_checkpoint(tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Write:
    """Write a model with random weights and the tokenizer of 384 entries, and perhaps unused ones."""

    def write(kind: str = "ForMaskedLM", *, unused: int = 0, **changes: Any) -> Path:
        folder, words = tmp_path_factory.mktemp("checkpoint"), Tokenizer.from_pretrained(tokenizer)
        words.backend.add_tokens([f"[unused{index}]" for index in range(unused)])
        ids = {"pad_token_id": words.pad_id, "cls_token_id": words.cls_id, "sep_token_id": words.sep_id}
        fields = {**SMALL, **ids, "vocab_size": words.vocab_size, "local_rope_theta": 5_000.0, **changes}
        model = HEADS[f"ModernBert{kind}"](EncoderConfig.preset("tiny", **fields))
        initialise(model, seed=3)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if name.endswith("bias"):
                    weight.normal_()
        model.save_pretrained(folder)
        words.save_pretrained(folder)
        return folder

    return write


@pytest.fixture(scope="module")
def checkpoint(write_checkpoint: Write) -> Path:
    return write_checkpoint()


@pytest.fixture
def read(corpus: Path, checkpoint: Path, tmp_path: Path) -> ReadRun:
    """Read a run that starts from the checkpoint, with these overrides."""
    path = tmp_path / "run.yaml"
    tree = {
        "folder": str(tmp_path / "run"),
        "start": {"model": str(checkpoint)},
        "data": {"sources": [{"name": "a", "path": str(corpus / "a.txt")}]},
        "device": "cpu",
        "micro_batch_tokens": 256,
        "phases": PHASES,
        "validation": {"fraction": 0.1, "max_tokens": 512},
    }
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return lambda *overrides: read_run(path, overrides)


def begun(run: PretrainRun) -> ModernBertForMaskedLM:
    """The model of a run before its first step."""
    models = []

    class Stop(Exception):
        pass

    def stop(model: ModernBertForMaskedLM, *_: Any, **__: Any) -> None:
        models.append(model)
        raise Stop

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipe, "train", stop)
        with pytest.raises(Stop):
            pretrain(run)
    (model,) = models
    return model


def records(run: PretrainRun, event: str) -> list[dict[str, Any]]:
    lines = (Path(run.folder) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [record for record in map(json.loads, lines) if record["event"] == event]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return ModernBertForMaskedLM.from_pretrained(folder).state_dict()


# Continued pretraining.


def test_what_the_run_file_leaves_out_is_the_checkpoints(read: ReadRun, checkpoint: Path) -> None:
    run = read()
    assert run.model == ModernBertForMaskedLM.from_pretrained(checkpoint).config
    assert run.tokenizer.path == str(checkpoint)
    assert [(phase.global_rope_theta, phase.local_rope_theta) for phase in run.phases] == [
        (160_000, 5_000)
    ] * 2
    run = read("model.attn_out_dropout=0", "phases.1.local_rope_theta=160_000")
    assert run.model.attn_out_dropout == 0
    assert [phase.local_rope_theta for phase in run.phases] == [5_000, 160_000]


def test_the_run_begins_with_the_checkpoints_weights(read: ReadRun, checkpoint: Path) -> None:
    model = begun(run := read())
    expected = weights(checkpoint)
    assert model.state_dict().keys() == expected.keys()
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in expected.items())
    (start,) = records(run, "start")
    assert (start["step"], start["model"], start["vocabulary"]) == (0, str(checkpoint), None)


def test_the_run_learns_from_where_the_checkpoint_was(read: ReadRun) -> None:
    run = read()
    result = pretrain(run)
    first, *_, last = records(run, "validation")
    assert (first["step"], first["tokens"], first["phase"]) == (0, 0, "adapt")
    assert last["loss"] < first["loss"]
    assert result.model is not None
    words = Tokenizer.from_pretrained(result.model)
    assert words.fingerprint == Tokenizer.from_pretrained(run.tokenizer.path or "").fingerprint
    transformers.AutoModelForMaskedLM.from_pretrained(result.model)


def test_a_finished_run_or_one_of_its_checkpoints_serves_as_a_start(read: ReadRun, tmp_path: Path) -> None:
    first = pretrain(read())
    for place in (first.model, first.checkpoint):
        folder = tmp_path / "again" / str(place).replace("/", "_")
        model = begun(read(f"start.model={place}", f"folder={folder}"))
        assert place is not None
        expected = weights(place)
        assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in expected.items())


def test_a_checkpoint_of_transformers_serves_as_a_start(
    read: ReadRun, checkpoint: Path, tmp_path: Path
) -> None:
    theirs = transformers.AutoModelForMaskedLM.from_pretrained(checkpoint)
    folder = tmp_path / "theirs"
    theirs.to(torch.bfloat16).save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(checkpoint).save_pretrained(folder)
    model = begun(read(f"start.model={folder}"))
    assert {tensor.dtype for tensor in model.parameters()} == {torch.float32}
    torch.testing.assert_close(model.state_dict(), weights(checkpoint), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(
    ("kind", "head"), [("Model", {}), ("ForSequenceClassification", {"labels": ("a", "b", "c")})]
)
def test_where_there_is_no_masked_lm_head_one_is_drawn(
    kind: str, head: dict[str, Any], read: ReadRun, write_checkpoint: Write, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_checkpoint(kind, head=HeadConfig(**head))
    run = read(f"start.model={folder}")
    assert run.model.head == HeadConfig()
    model = begun(run)
    encoder = HEADS["ModernBertModel"].from_pretrained(folder).state_dict()
    assert all(torch.equal(model.model.state_dict()[name], tensor) for name, tensor in encoder.items())
    assert "drawn anew, to be trained" in caplog.text
    assert model.decoder.bias.eq(0).all()
    again = begun(read(f"start.model={folder}"))
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in model.state_dict().items())


def test_a_head_with_a_bias_is_kept(read: ReadRun, write_checkpoint: Write) -> None:
    folder = write_checkpoint(head=HeadConfig(bias=True))
    model = begun(read(f"start.model={folder}"))
    assert torch.equal(model.state_dict()["head.dense.bias"], weights(folder)["head.dense.bias"])


def test_a_longer_context_by_a_new_rope_base(read: ReadRun) -> None:
    longer = ["phases.1.sequence_length=128", "phases.1.global_rope_theta=1e6"]
    run = read("model.max_position_embeddings=128", *longer)
    result = pretrain(run)
    assert result.model is not None
    found = ModernBertForMaskedLM.from_pretrained(result.model).config
    assert (found.max_position_embeddings, found.global_rope_theta) == (128, 1e6)
    with pytest.raises(ConfigError, match=r"sequence_length` is 128; .* `model.max_position_embeddings`, 64"):
        read(*longer)


def test_a_longer_vocabulary_begins_as_the_mean_of_the_others(read: ReadRun, checkpoint: Path) -> None:
    model = begun(read("model.vocab_size=448"))
    rows = weights(checkpoint)["decoder.weight"]
    assert torch.equal(model.decoder.weight[:384], rows)
    torch.testing.assert_close(model.decoder.weight[384:], rows.mean(0).expand(64, -1))


def test_the_run_goes_on_without_its_checkpoint(
    read: ReadRun, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own folder has all that it needs; the start is not measured again."""
    moved = tmp_path / "moved"
    shutil.copytree(checkpoint, moved)
    undisturbed = pretrain(read(f"start.model={moved}", f"folder={tmp_path / 'undisturbed'}"))
    run = read(f"start.model={moved}")
    save = recipe.Checkpoints.save

    def save_and_stop(*arguments: Any, **options: Any) -> None:
        save(*arguments, **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(recipe.Checkpoints, "save", save_and_stop)
    with pytest.raises(KeyboardInterrupt):
        pretrain(run)
    monkeypatch.undo()
    shutil.rmtree(moved)
    assert read(f"start.model={moved}") == run
    result = pretrain(read(f"start.model={moved}"))
    assert result.model is not None
    assert undisturbed.model is not None
    expected = weights(undisturbed.model)
    assert all(torch.equal(weights(result.model)[name], tensor) for name, tensor in expected.items())
    assert len(records(run, "start")) == 1
    with pytest.raises(CheckpointError, match="is no folder"):
        read(f"start.model={moved}", "start.revision=other")


def test_what_was_resolved_reads_as_the_same_run(read: ReadRun) -> None:
    run = read()
    begun(run)
    assert read_run(Path(run.folder) / "run.yaml") == run
    assert config.build(PretrainRun, yaml.safe_load(config.dump(run))) == run


# Another vocabulary.


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of text that the checkpoint's tokenizer never saw."""
    path = tmp_path_factory.mktemp("foreign") / "text.txt"
    lines = [
        "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。" * (1 + n % 3) for n in range(200)
    ]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def test_a_language_with_a_tokenizer_of_its_own(read: ReadRun, checkpoint: Path, foreign: Path) -> None:
    run = read("tokenizer.vocab_size=320", f"data.sources.0.path={foreign}")
    assert (run.model.vocab_size, run.model.hidden_size) == (320, 32)
    result = pretrain(run)
    (start,) = records(run, "start")
    words = start["vocabulary"]
    assert words["shared"] + words["from_pieces"] + words["from_nothing"] == 320
    assert words["from_pieces"] > 0
    assert words["tokens_per_character"] < 1 < words["tokens_per_character_before"]
    assert "tokens a character: " in start["message"]
    first, *_, last = records(run, "validation")
    assert first["step"] == 0
    assert last["loss"] < first["loss"]
    assert result.model is not None
    new, old = Tokenizer.from_pretrained(result.model), Tokenizer.from_pretrained(checkpoint)
    saved = ModernBertForMaskedLM.from_pretrained(result.model).config
    assert (saved.pad_token_id, saved.vocab_size) == (new.pad_id, 320)
    theirs = transformers.AutoModelForMaskedLM.from_pretrained(result.model).config
    assert (theirs.bos_token_id, theirs.eos_token_id) == (new.cls_id, new.sep_id)
    assert new.mask_id != old.mask_id


def test_the_new_vocabularys_rows_come_from_the_old(
    read: ReadRun, checkpoint: Path, foreign: Path, tmp_path: Path
) -> None:
    path = tmp_path / "tokenizer"
    Tokenizer.train([foreign.read_text(encoding="utf-8")], vocab_size=320).save_pretrained(path)
    model = begun(read(f"tokenizer.path={path}", f"data.sources.0.path={foreign}"))
    new, old, before = (
        Tokenizer.from_pretrained(path),
        Tokenizer.from_pretrained(checkpoint),
        weights(checkpoint),
    )
    for name in ("model.embeddings.tok_embeddings.weight", "decoder.bias"):
        rows, known = model.state_dict()[name], before[name]
        assert torch.equal(rows[new.mask_id], known[old.mask_id])
        byte = "å"  # a byte, in both
        assert torch.equal(rows[new.token_id(byte)], known[old.token_id(byte)])
        (particle,) = (id for id in new.ordinary_ids.tolist() if new.decode([id]) == "。")
        pieces = old.encode("。", special=False)
        torch.testing.assert_close(rows[particle], known[pieces].mean(0))


@pytest.fixture(scope="module")
def spacious(write_checkpoint: Write) -> Path:
    return write_checkpoint(unused=8, vocab_size=392)


def test_new_words_in_the_places_of_unused_tokens(read: ReadRun, spacious: Path, tmp_path: Path) -> None:
    word, text = "metformin", tmp_path / "text.txt"
    text.write_text("give metformin or metformin and rest\n" * 100, encoding="utf-8")
    old = Tokenizer.from_pretrained(spacious)
    run = read(
        f"start.model={spacious}", f"start.new_words=[{word}, neverseen]", f"data.sources.0.path={text}"
    )
    assert run.model.vocab_size == 392
    model, before = begun(run), weights(spacious)
    new = Tokenizer.from_pretrained(Path(run.folder) / "tokenizer")
    place, other = (int(id) for id in old.unused_ids[:2])
    assert new.encode(f"a {word}", special=False)[-1] == place
    rows, known = model.decoder.weight, before["decoder.weight"]
    torch.testing.assert_close(rows[place], known[old.encode(f" {word}", special=False)].mean(0))
    torch.testing.assert_close(rows[other], known[old.encode(" neverseen", special=False)].mean(0))
    kept = [id for id in range(392) if id not in (place, other)]
    assert torch.equal(rows[kept], known[kept])
    (start,) = records(run, "start")
    assert start["vocabulary"]["from_pieces"] == 2
    assert start["vocabulary"]["tokens_per_character"] < start["vocabulary"]["tokens_per_character_before"]


def test_new_words_may_be_mended_before_the_first_checkpoint(read: ReadRun, spacious: Path) -> None:
    """The text is then tokenised anew."""
    begun(run := read(f"start.model={spacious}", "start.new_words=[one]"))
    begun(read(f"start.model={spacious}", "start.new_words=[two]"))
    tokenizer = Tokenizer.from_pretrained(Path(run.folder) / "tokenizer")
    assert tokenizer.token_id("Ġone") is None
    assert tokenizer.token_id("Ġtwo") is not None


# Another shape.


def test_a_larger_shape_is_tiled(read: ReadRun, checkpoint: Path) -> None:
    shape = {**SMALL, "preset": "tiny", "vocab_size": 384, "num_hidden_layers": 7}
    thetas = [f"phases.{i}.{which}_rope_theta=10_000" for i in (0, 1) for which in ("global", "local")]
    run = read("start.how=tile", f"model={json.dumps(shape)}", *thetas)
    assert (run.model.num_hidden_layers, run.tokenizer.path) == (7, str(checkpoint))
    model, source = begun(run).state_dict(), weights(checkpoint)
    assert torch.equal(model["model.layers.6.mlp.Wi.weight"], source["model.layers.3.mlp.Wi.weight"])
    run = read(
        "start.how=tile",
        "start.keep_layer_types=true",
        f"model={json.dumps(shape)}",
        f"folder={run.folder}2",
        *thetas,
    )
    kept = begun(run).state_dict()
    assert torch.equal(kept["model.layers.4.mlp.Wi.weight"], source["model.layers.2.mlp.Wi.weight"])


def test_a_smaller_shape_is_shrunk_with_another_vocabulary(read: ReadRun, foreign: Path) -> None:
    shape = {**SMALL, "preset": "tiny", "vocab_size": 320, "num_hidden_layers": 2}
    thetas = [f"phases.{i}.{which}_rope_theta=10_000" for i in (0, 1) for which in ("global", "local")]
    words = ["tokenizer.vocab_size=320", f"data.sources.0.path={foreign}"]
    model = begun(read("start.how=shrink", f"model={json.dumps(shape)}", *thetas, *words))
    assert (model.config.num_hidden_layers, len(model.decoder.bias)) == (2, 320)


# What is refused.


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.preset=base"], r"`model.preset` is 'base' beside `start.model`; .*leave it out"),
        (["model.num_attention_heads=4"], r"`model.num_attention_heads` is 4; .* the checkpoint's, 2;"),
        (["start.how=shrunk"], r"`start.how` is 'shrunk'; did you mean `shrink`"),
        (["start.modle=x"], r"unknown key `start.modle`; did you mean `start.model`"),
        (["start.keep_layer_types=true"], r"`keep_layer_types` is true while `how` is 'copy'"),
        (
            ["start.new_words=[a]", "tokenizer.vocab_size=320"],
            r"`start.new_words` is set, but `tokenizer.vocab",
        ),
        (["model=3"], r"`model` is 3; it must be a mapping"),
        (["phases=3"], r"`phases` is 3"),
        (["tokenizer=3"], r"`tokenizer` is 3; it must be a mapping"),
        (["start=3"], r"`model` is missing"),
    ],
)
def test_settings_that_do_not_fit_are_refused(overrides: list[str], message: str, read: ReadRun) -> None:
    with pytest.raises(ConfigError, match=message):
        read(*overrides)


def test_a_checkpoint_that_is_not_there_is_refused(read: ReadRun, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is no folder"):
        read(f"start.model={tmp_path / 'absent'}")


def test_a_checkpoint_without_a_tokenizer_is_refused(read: ReadRun, checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bare"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(checkpoint / name, folder)
    with pytest.raises(InputError, match=r"tokenizer.json` is no file"):
        pretrain(read(f"start.model={folder}"))


def test_a_tokenizer_with_more_ids_than_the_checkpoint_is_refused(
    read: ReadRun, checkpoint: Path, foreign: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "wrong"
    shutil.copytree(checkpoint, folder)
    larger = Tokenizer.train([foreign.read_text(encoding="utf-8")] * 2, vocab_size=512, min_frequency=1)
    larger.backend.add_tokens([f"word{n}" for n in range(300)])
    larger.save_pretrained(folder)
    run = read(f"start.model={folder}", "tokenizer.vocab_size=320", f"data.sources.0.path={foreign}")
    with pytest.raises(ConfigError, match="the model's `vocab_size` is 384"):
        pretrain(run)


def test_a_shape_changed_behind_the_run_files_back_is_refused(read: ReadRun) -> None:
    run = read()
    with pytest.raises(ConfigError, match=r"`model.num_attention_heads` is 4"):
        pretrain(replace(run, model=replace(run.model, num_attention_heads=4)))
