"""A student is its model and a bridge, which comes and goes without a trace."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from modernbert.layout import pack
from modernbert.model.adapters import blank_like
from modernbert.model.config import EncoderConfig
from modernbert.model.heads import ModernBertForMaskedLM
from modernbert.model.init import initialise
from modernbert.model.student import Student

SHAPE = EncoderConfig.preset("tiny", vocab_size=64, pad_token_id=0)


def model() -> ModernBertForMaskedLM:
    plain = ModernBertForMaskedLM(SHAPE, backend="portable")
    initialise(plain, seed=1)
    return plain


@pytest.mark.parametrize("bridge_dim", [None, 48])
def test_a_model_becomes_a_student_and_one_again(bridge_dim: int | None, tmp_path: Path) -> None:
    before = copy.deepcopy(model())
    student = Student.of(model(), bridge_dim=bridge_dim, seed=3)
    assert set(student.beside()) == {
        name for name, _ in student.named_parameters() if name.startswith("bridge")
    }
    assert all(parameter.requires_grad for parameter in student.parameters())
    assert student.decoder.weight is student.model.embeddings.tok_embeddings.weight
    assert student.model.backend == "portable"
    student.plain().save_pretrained(tmp_path)
    again = ModernBertForMaskedLM.from_pretrained(tmp_path)
    assert again.state_dict().keys() == before.state_dict().keys()
    for name, tensor in before.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    ids, layout = pack([[5, 9, 3], [7, 8]])
    assert torch.equal(student.eval()(ids, layout), before.eval()(ids, layout))


def test_the_plain_model_shares_the_students_tensors() -> None:
    student = Student.of(model(), bridge_dim=48, seed=3)
    plain = student.plain()
    assert plain.decoder.weight is plain.model.embeddings.tok_embeddings.weight
    assert plain.head.dense.weight.data_ptr() == student.head.dense.weight.data_ptr()


def test_the_seed_fixes_the_bridge() -> None:
    first, again, other = (Student.of(model(), bridge_dim=48, seed=seed).beside() for seed in (3, 3, 4))
    assert torch.equal(first["bridge.weight"], again["bridge.weight"])
    assert not torch.equal(first["bridge.weight"], other["bridge.weight"])


@pytest.mark.parametrize("bridge_dim", [None, 48])
def test_a_blank_has_all_its_tensors(bridge_dim: int | None) -> None:
    student = Student.of(model(), bridge_dim=bridge_dim, seed=3)
    blank = blank_like(student)
    assert {name: (tensor.shape, tensor.device.type) for name, tensor in blank.state_dict().items()} == {
        name: (tensor.shape, "meta") for name, tensor in student.state_dict().items()
    }
