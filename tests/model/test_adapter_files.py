"""Adapters on the disk: PEFT gives the same answers on transformers' models, and ours go on with PEFT's."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from torch import Tensor, nn

from modernbert.errors import CheckpointError
from modernbert.layout import pack
from modernbert.model.adapter_files import base_of, is_adapter, load_adapter, load_merged, save_adapter
from modernbert.model.adapters import AdapterSettings, adapter_tensors, add_adapter, merged
from modernbert.model.config import EncoderConfig, HeadConfig
from modernbert.model.heads import HEADS, from_pretrained
from modernbert.model.init import initialise

LABELS = ("a", "b", "c")
CONFIG = EncoderConfig.preset("tiny", head=HeadConfig(labels=LABELS))
TEXTS = [torch.arange(5, 5 + length) for length in (1, 2, 65)]
KINDS = ("lora", "dora")
TASKS = (
    *("ModernBertForSequenceClassification", "ModernBertForTokenClassification"),
    *("ModernBertForQuestionAnswering", "ModernBertForMaskedLM", "ModernBertModel"),
)


def build(head: str) -> Any:
    model = HEADS[head](CONFIG)
    initialise(model, seed=1)
    return model.eval()


@torch.no_grad()
def stir(model: nn.Module) -> None:
    torch.manual_seed(11)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.add_(torch.randn_like(parameter) * 0.1)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A masked language model, from which all tasks begin."""
    build("ModernBertForMaskedLM").save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def start(head: str, base: Path) -> Any:
    """A model of a task on the base, with a head of its own that is drawn."""
    kind = HEADS[head]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return kind.from_pretrained(base, new_head=HeadConfig(labels=LABELS))


def trained(head: str, base: Path, **settings: Any) -> Any:
    model = start(head, base)
    add_adapter(model, AdapterSettings(**{"rank": 4, **settings}))
    stir(model)
    return model.eval()


@torch.no_grad()
def their_scores(model: Any, ids: Tensor) -> Tensor:
    out = model(ids[None])
    if "start_logits" in out:
        return torch.stack([out.start_logits[0], out.end_logits[0]], dim=-1)
    scores: Tensor = out[0]
    return scores if scores.ndim == 2 else scores[0]


@torch.no_grad()
def check_same(ours: Any, theirs: Any, atol: float = 2e-5) -> None:
    expected = torch.cat([their_scores(theirs, ids) for ids in TEXTS])
    torch.testing.assert_close(ours(*pack(TEXTS)), expected, rtol=0, atol=atol)


def their_base(head: str, base: Path) -> Any:
    """Transformers' model of the task on the same base, its head drawn by them."""
    kind = getattr(transformers, head)
    # They take from the base as many labels as its configuration names, for answering too.
    num_labels = 2 if head == "ModernBertForQuestionAnswering" else len(LABELS)
    return kind.from_pretrained(base, attn_implementation="sdpa", num_labels=num_labels).eval()


# PEFT asks a model of transformers for it.
peft_asks = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@peft_asks
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("head", TASKS)
def test_peft_loads_it_on_their_model(head: str, kind: str, base: Path, tmp_path: Path) -> None:
    ours = trained(head, base, kind=kind)
    save_adapter(ours, tmp_path / "adapter", base=base)
    # PEFT would warn of keys that are missing.
    theirs = peft.PeftModel.from_pretrained(their_base(head, base), tmp_path / "adapter").eval()
    check_same(ours, theirs)
    check_same(merged(ours), theirs)


@peft_asks
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("head", TASKS)
def test_peft_writes_the_same_names(head: str, kind: str, base: Path, tmp_path: Path) -> None:
    """And we go on with what it writes."""
    save_adapter(trained(head, base, kind=kind), tmp_path / "ours", base=base)
    theirs = peft.PeftModel.from_pretrained(their_base(head, base), tmp_path / "ours", is_trainable=True)
    stir(theirs)
    theirs.eval().save_pretrained(tmp_path / "theirs")
    mine, others = (
        {path.name: json.loads(path.read_text()) for path in (tmp_path / name).glob("adapter_config.json")}
        for name in ("ours", "theirs")
    )
    own, their = mine["adapter_config.json"], others["adapter_config.json"]
    assert own.keys() == their.keys()
    for key in ("peft_type", "task_type", "r", "lora_alpha", "use_dora", "base_model_name_or_path"):
        assert own[key] == their[key], key
    assert sorted(own["target_modules"]) == sorted(their["target_modules"])
    again = start(head, base)
    load_adapter(again, tmp_path / "theirs")
    check_same(again.eval(), theirs)
    names = adapter_tensors(again).keys()
    assert (
        names == peft.utils.save_and_load.safe_load_file(tmp_path / "theirs/adapter_model.safetensors").keys()
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("head", TASKS)
def test_transformers_loads_the_merged_model(head: str, kind: str, base: Path, tmp_path: Path) -> None:
    ours = trained(head, base, kind=kind)
    merged(ours).save_pretrained(tmp_path / "merged")
    theirs, report = getattr(transformers, head).from_pretrained(
        tmp_path / "merged", attn_implementation="sdpa", output_loading_info=True
    )
    assert not any(report.values()), report
    check_same(ours, theirs.eval())


@pytest.mark.parametrize("kind", KINDS)
def test_loaded_again_every_bit_is_there_and_trainable(kind: str, base: Path, tmp_path: Path) -> None:
    ours = trained(TASKS[0], base, kind=kind, dropout=0.25, targets=("Wi", "attn.Wo"))
    save_adapter(ours, tmp_path / "adapter", base=base)
    again = start(TASKS[0], base)
    load_adapter(again, tmp_path / "adapter")
    tensors = ours.state_dict()
    own = {name: t for name, t in again.state_dict().items() if "original_module" not in name}
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in own.items())
    trainable = [{n for n, p in model.named_parameters() if p.requires_grad} for model in (ours, again)]
    assert trainable[0] == trainable[1]
    assert again.model.draws_in_layers


@pytest.mark.parametrize("is_bare", [False, True])
@pytest.mark.parametrize("head", TASKS)
def test_loaded_merged_with_its_base(
    head: str, is_bare: bool, base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    if is_bare and head != "ModernBertForMaskedLM":  # whose decoder no adapter brings
        base = tmp_path / "bare"
        from_pretrained(tmp_path / "base").model.save_pretrained(base)  # type: ignore[union-attr]
    ours = trained(head, base)
    caplog.clear()
    save_adapter(ours, tmp_path / "adapter", base=base)
    assert is_adapter(tmp_path / "adapter")
    assert not is_adapter(base)
    assert base_of(tmp_path / "adapter") == (str(base), None)
    plain = load_merged(tmp_path / "adapter", base)
    torch.testing.assert_close(plain(*pack(TEXTS)), ours(*pack(TEXTS)), rtol=1e-4, atol=2e-5)
    assert (type(plain), plain.config) == (type(ours), ours.config)
    assert not caplog.records  # no head was drawn


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.fixture
def adapter(base: Path, tmp_path: Path) -> Path:
    save_adapter(trained(TASKS[0], base), tmp_path / "adapter", base=base)
    return tmp_path / "adapter"


class TestRefusals:
    def test_other_labels(self, adapter: Path) -> None:
        model = HEADS[TASKS[0]](replace(CONFIG, head=HeadConfig(labels=("a", "b"))))
        with pytest.raises(
            CheckpointError, match=r"classifier.weight` as \[3, 64\], which must be \[2, 64\]"
        ):
            load_adapter(model, adapter)

    def test_another_shape(self, adapter: Path) -> None:
        model = HEADS[TASKS[0]](replace(CONFIG, num_hidden_layers=3, layer_types=()))
        with pytest.raises(CheckpointError, match=r"layers.3.attn.Wo.lora_A.weight`.* and 5 more too many"):
            load_adapter(model, adapter)

    def test_more_layers_than_it_adapts(self, adapter: Path) -> None:
        model = HEADS[TASKS[0]](replace(CONFIG, num_hidden_layers=5, layer_types=()))
        with pytest.raises(CheckpointError, match=r"it lacks `base_model.model.model.layers.4.*and 5 more"):
            load_adapter(model, adapter)

    def test_another_kind(self, adapter: Path) -> None:
        edit(adapter, peft_type="IA3")
        with pytest.raises(CheckpointError, match="`peft_type` 'IA3'; it must be 'LORA', which DoRA is too"):
            load_adapter(build(TASKS[0]), adapter)

    def test_of_another_model(self, adapter: Path) -> None:
        edit(adapter, target_modules=["query"])
        with pytest.raises(
            CheckpointError, match=r"does not fit `ModernBertForSequenceC.*`: No modules were targeted"
        ):
            load_adapter(build(TASKS[0]), adapter)

    def test_no_base_is_named(self, adapter: Path) -> None:
        edit(adapter, base_model_name_or_path=None)
        with pytest.raises(CheckpointError, match="has `base_model_name_or_path` None; it must name the mod"):
            base_of(adapter)

    def test_no_settings(self, adapter: Path) -> None:
        (adapter / "adapter_config.json").unlink()
        with pytest.raises(
            CheckpointError, match=r"holds no `adapter_config.json`; an adapter has it beside"
        ):
            load_adapter(build(TASKS[0]), adapter)

    def test_a_file_cut_short(self, adapter: Path) -> None:
        file = adapter / "adapter_model.safetensors"
        file.write_bytes(file.read_bytes()[:-9])
        with pytest.raises(CheckpointError, match="is not a whole safetensors file"):
            load_adapter(build(TASKS[0]), adapter)

    def test_as_a_checkpoint(self, adapter: Path) -> None:
        with pytest.raises(CheckpointError, match=r"holds an adapter, .*load it with `modernbert.load`"):
            from_pretrained(adapter)

    def test_a_base_of_another_width(self, adapter: Path, tmp_path: Path) -> None:
        HEADS["ModernBertModel"](EncoderConfig.preset("tiny", hidden_size=32)).save_pretrained(tmp_path / "w")
        with pytest.raises(CheckpointError, match="does not fit `ModernBertForSequenceClassification`"):
            load_merged(adapter, tmp_path / "w")
