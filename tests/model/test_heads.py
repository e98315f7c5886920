"""Every head against transformers on the same weights, fp32; files both ways; the class a file means."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from modernbert.errors import CheckpointError
from modernbert.layout import SequenceLayout, pack
from modernbert.model import heads
from modernbert.model.checkpoint import Pretrained
from modernbert.model.config import EncoderConfig, HeadConfig
from modernbert.model.dialects import to_published
from modernbert.model.encoder import ModernBertModel
from modernbert.model.heads import (
    HEADS,
    ModernBertForMaskedLM,
    ModernBertForMultipleChoice,
    ModernBertForQuestionAnswering,
    ModernBertForSequenceClassification,
    ModernBertForTokenClassification,
)
from modernbert.model.init import initialise

LENGTHS = (1, 2, 64, 65, 128, 129)
TINY = EncoderConfig.preset("tiny")
LABELS = {"labels": ("O", "B-PER", "I-PER")}
KINDS: dict[str, tuple[type[Pretrained], HeadConfig]] = {
    "masked-lm": (ModernBertForMaskedLM, HeadConfig()),
    "masked-lm-bias": (ModernBertForMaskedLM, HeadConfig(bias=True)),
    "sequence-mean": (ModernBertForSequenceClassification, HeadConfig(**LABELS)),
    "sequence-cls-bias": (
        ModernBertForSequenceClassification,
        HeadConfig(**LABELS, pooling="cls", bias=True),
    ),
    "sequence-one": (ModernBertForSequenceClassification, HeadConfig(labels=("score",))),
    "sequence-default": (ModernBertForSequenceClassification, HeadConfig()),
    "token": (ModernBertForTokenClassification, HeadConfig(**LABELS)),
    "token-bias": (ModernBertForTokenClassification, HeadConfig(**LABELS, bias=True)),
    "answering": (ModernBertForQuestionAnswering, HeadConfig()),
    "choice-mean": (ModernBertForMultipleChoice, HeadConfig()),
    "choice-cls": (ModernBertForMultipleChoice, HeadConfig(pooling="cls", bias=True)),
}


def their_logits(model: Any, ids: Tensor) -> Tensor:
    """What transformers says of one sequence alone, in the shape that our head gives it."""
    if isinstance(model, transformers.ModernBertForMultipleChoice):
        return model(ids[None, None], attention_mask=torch.ones_like(ids)[None, None]).logits[0]
    out = model(ids[None])
    if isinstance(model, transformers.ModernBertForQuestionAnswering):
        return torch.stack([out.start_logits[0], out.end_logits[0]], dim=-1)
    return (
        out.logits if isinstance(model, transformers.ModernBertForSequenceClassification) else out.logits[0]
    )


class Case:
    """Two models of equal weights, texts of many lengths, and what transformers says of each alone."""

    def __init__(self, kind: str, config: EncoderConfig, lengths: tuple[int, ...]) -> None:
        torch.manual_seed(7)
        cls, head = KINDS[kind]
        self.ours = cls(replace(config, head=head)).eval()
        published = transformers.ModernBertConfig(**to_published(self.ours.config, cls.__name__))
        self.theirs = (
            getattr(transformers, cls.__name__)._from_config(published, attn_implementation="sdpa").eval()
        )
        with torch.no_grad():
            for parameter in self.theirs.parameters():  # norm weights off 1 and biases off 0 show a mistake
                parameter.add_(torch.randn_like(parameter) * 0.02)
        self.ours.load_state_dict(self.theirs.state_dict(), strict=True)
        # Without the padding token: transformers keeps the gradient of its row from the input side.
        self.texts = [torch.randint(4, min(config.vocab_size, 50_280), (length,)) for length in lengths]
        self.logits = [their_logits(self.theirs, ids) for ids in self.texts]


@cache
def case(kind: str) -> Case:
    return Case(kind, TINY, LENGTHS)


def check_parity(it: Case) -> None:
    """Packed together and each alone, forward; and the gradients of the sum of squares of all logits."""
    logits = it.ours(*pack(it.texts))
    torch.testing.assert_close(logits, torch.cat(it.logits), rtol=0, atol=2e-5)
    with torch.no_grad():
        for ids, expected in zip(it.texts, it.logits, strict=True):
            torch.testing.assert_close(it.ours(*pack([ids])), expected, rtol=0, atol=2e-5)
    it.ours.zero_grad()
    it.theirs.zero_grad()
    logits.square().sum().backward()
    torch.cat(it.logits).square().sum().backward(retain_graph=True)
    expected_gradients = {name: p.grad for name, p in it.theirs.named_parameters()}
    for name, parameter in it.ours.named_parameters():
        expected = expected_gradients[name]
        error = torch.linalg.vector_norm(parameter.grad - expected) / torch.linalg.vector_norm(expected)
        assert error <= 1e-4, f"{name}: {error:.2e}"


@pytest.mark.parametrize("kind", KINDS)
def test_tiny_parity(kind: str) -> None:
    check_parity(case(kind))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sequence-mean", "token-bias", "answering", "choice-cls"])
def test_base_parity(kind: str) -> None:
    """With few words, as the vocabulary has no part in these heads; the masked-LM head has its own test."""
    check_parity(Case(kind, EncoderConfig(vocab_size=1_024, pad_token_id=0), (1, 70)))


@torch.no_grad()
def test_full_length() -> None:
    it = case("sequence-mean")
    ids = torch.randint(4, 512, (8192,))
    torch.testing.assert_close(it.ours(*pack([ids])), their_logits(it.theirs, ids), rtol=0, atol=2e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_files_both_ways(kind: str, tmp_path: Path) -> None:
    """transformers loads what we save and we load what it saves: the same weights, labels and settings."""
    it = case(kind)
    it.ours.save_pretrained(tmp_path / "ours")
    theirs, report = type(it.theirs).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(report.values()), report
    with torch.no_grad():
        for ids, expected in zip(it.texts, it.logits, strict=True):
            torch.testing.assert_close(their_logits(theirs, ids), expected, rtol=0, atol=1e-6)
    theirs.save_pretrained(tmp_path / "theirs")
    for folder in ("ours", "theirs"):
        again = heads.from_pretrained(tmp_path / folder)
        assert type(again) is type(it.ours)
        assert again.config == it.ours.config
        with torch.no_grad():
            assert torch.equal(again(*pack(it.texts)), it.ours(*pack(it.texts)))


@pytest.mark.parametrize("kind", KINDS)
def test_the_meta_device(kind: str) -> None:
    cls, head = KINDS[kind]
    with torch.device("meta"):
        model = cls(replace(TINY, head=head))
        ids = torch.zeros(270, dtype=torch.int64)
    assert model(ids, SequenceLayout.of([70, 200], "meta")).device.type == "meta"


def test_shapes() -> None:
    ids, layout = pack([[5, 6, 7], [8], [9, 10]])
    head = HeadConfig(labels=("a", "b", "c", "d"))
    shapes = {name: tuple(cls(replace(TINY, head=head))(ids, layout).shape) for name, cls in HEADS.items()}
    assert shapes == {
        "ModernBertModel": (6, 64),
        "ModernBertForMaskedLM": (6, 512),
        "ModernBertForSequenceClassification": (3, 4),
        "ModernBertForTokenClassification": (6, 4),
        "ModernBertForQuestionAnswering": (6, 2),
        "ModernBertForMultipleChoice": (3,),
    }


def test_labels_are_those_of_the_logits() -> None:
    named = replace(TINY, head=HeadConfig(labels=("a", "b", "c")))
    for cls in (ModernBertForSequenceClassification, ModernBertForTokenClassification):
        assert cls(named).config.head.labels == ("a", "b", "c")
        assert cls(TINY).config.head.labels == ("LABEL_0", "LABEL_1")
    for cls in (ModernBertForQuestionAnswering, ModernBertForMultipleChoice):
        assert cls(named).config.head.labels == ()


def test_dropout_before_the_classifier_acts_in_training_only() -> None:
    config = replace(TINY, attn_out_dropout=0.0, head=HeadConfig(dropout=0.5))
    model = ModernBertForSequenceClassification(config)
    batch = pack([[5, 6, 7]])
    model.train()
    assert not torch.equal(model(*batch), model(*batch))
    model.eval()
    assert torch.equal(model(*batch), model(*batch))


def test_a_classifier_is_initialised_by_its_width() -> None:
    config = replace(TINY, head=HeadConfig(labels=tuple(f"c{i}" for i in range(200)), bias=True))
    model = ModernBertForTokenClassification(config)
    initialise(model, seed=1)
    assert model.classifier.weight.std().item() == pytest.approx(0.8796 * 64**-0.5, rel=0.02)
    assert not model.classifier.bias.any()
    assert not model.head.dense.bias.any()
    assert model.head.dense.weight.std().item() == pytest.approx(0.8796 * 0.02, rel=0.03)


def test_nothing_masked_gives_a_loss_of_zero() -> None:
    """transformers' sparse prediction gives NaN here."""
    model = ModernBertForMaskedLM(TINY)
    none = torch.zeros(0, dtype=torch.int64)
    loss, correct = model.loss(*pack([[5, 6, 7]]), none, none)
    assert (loss.item(), correct.item()) == (0.0, 0)
    loss.backward()
    assert not any(p.grad is not None and p.grad.isnan().any() for p in model.parameters())


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_packed_neighbours_do_not_mix(kind: str) -> None:
    """transformers mixes sequences that are packed by `position_ids`."""
    it = case(kind)
    ids = it.texts[4]
    others = [torch.randint(4, 512, (length,)) for length in (90, 200)]
    alone = it.ours(*pack([ids]))
    logits = it.ours(*pack([others[0], ids, others[1]]))
    middle = logits[1] if len(logits) == 3 else logits[90 : 90 + len(ids)]
    torch.testing.assert_close(middle, alone.reshape(middle.shape), rtol=0, atol=2e-5)


# Which class a checkpoint means.


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    ModernBertForMaskedLM(TINY).save_pretrained(tmp_path)
    return tmp_path


def name_architecture(folder: Path, architectures: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "architectures": architectures}))


@pytest.mark.parametrize("absent", [None, []])
def test_without_an_architecture_the_tensors_tell(absent: Any, folder: Path) -> None:
    name_architecture(folder, absent)
    assert type(heads.from_pretrained(folder)) is ModernBertForMaskedLM
    ModernBertModel(TINY).save_pretrained(folder)
    name_architecture(folder, absent)
    assert type(heads.from_pretrained(str(folder), dtype=torch.bfloat16)) is ModernBertModel
    ModernBertForMultipleChoice(TINY).save_pretrained(folder)
    name_architecture(folder, absent)
    with pytest.raises(CheckpointError) as raised:
        heads.from_pretrained(folder)
    assert str(raised.value) == (
        f"`{folder / 'config.json'}` has no `architectures`, and the weights have a `classifier` that "
        "several heads could have; name the architecture there, or load with that head's class"
    )


@pytest.mark.parametrize(
    ("architectures", "message"),
    [
        (
            ["ModernBertForMaskdLM"],
            "has the architecture `ModernBertForMaskdLM`, which this package does not implement; did you "
            "mean `ModernBertForMaskedLM`?; choose another checkpoint, or load its encoder as "
            "`ModernBertModel`",
        ),
        (["HF_ColBERT"], "has the architecture `HF_ColBERT`, which this package does not implement; it must"),
        ("ModernBertModel", "has `architectures` 'ModernBertModel'; it must be a list with the name of the"),
        ([7], "has `architectures` [7]; it must be a list with the name of the model's class; correct"),
    ],
)
def test_architectures_that_are_refused(architectures: Any, message: str, folder: Path) -> None:
    name_architecture(folder, architectures)
    with pytest.raises(CheckpointError) as raised:
        heads.from_pretrained(folder)
    assert str(raised.value).startswith(f"`{folder / 'config.json'}` {message}")
