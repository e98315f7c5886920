"""Encoder and masked-LM head against transformers on the same weights, fp32: forward, loss, gradients."""

from __future__ import annotations

from functools import cache

import pytest
import torch
import transformers

from modernbert.layout import SequenceLayout, pack
from modernbert.model.config import EncoderConfig
from modernbert.model.dialects import to_published
from modernbert.model.heads import ModernBertForMaskedLM

LENGTHS = (1, 2, 63, 64, 65, 128, 129, 200, 1024)
SHAPES = {
    "tiny": EncoderConfig.preset("tiny"),
    "base": EncoderConfig.preset("base"),
}


class Case:
    """Two models of equal weights, texts of every length, and what transformers says of each alone."""

    def __init__(self, config: EncoderConfig) -> None:
        torch.manual_seed(7)
        published = to_published(config, "ModernBertForMaskedLM")
        self.theirs = transformers.ModernBertForMaskedLM._from_config(
            transformers.ModernBertConfig(**published), attn_implementation="sdpa"
        ).eval()
        with torch.no_grad():
            for parameter in self.theirs.parameters():  # norm weights off 1 and biases off 0 show a mistake
                parameter.add_(torch.randn_like(parameter) * 0.02)
        self.ours = ModernBertForMaskedLM(config).eval()
        self.ours.load_state_dict(self.theirs.state_dict())
        # Without the padding token: transformers keeps the gradient of its row from the input side.
        self.texts = [torch.randint(4, min(config.vocab_size, 50_280), (length,)) for length in LENGTHS]
        self.masked = [torch.arange(0, length, 3) for length in LENGTHS]
        self._run_theirs()

    def _run_theirs(self) -> None:
        self.hidden, self.logits = [], []
        self.loss = torch.zeros(())
        for ids, masked in zip(self.texts, self.masked, strict=True):
            labels = torch.full_like(ids, -100)
            labels[masked] = ids[masked]
            out = self.theirs(ids[None], labels=labels[None], output_hidden_states=True)
            (out.loss * len(masked)).backward()
            self.loss += out.loss.detach() * len(masked)
            self.hidden.append(out.hidden_states[-1][0].detach())
            self.logits.append(out.logits[0].detach())
        self.gradients = {name: p.grad for name, p in self.theirs.named_parameters()}


@cache
def case(shape: str) -> Case:
    return Case(SHAPES[shape])


@pytest.mark.parametrize("backend", ["portable", "plain"])
@pytest.mark.parametrize("shape", SHAPES)
def test_packed_together(shape: str, backend: str) -> None:
    it = case(shape)
    it.ours.model.backend = backend
    ids, layout = pack(it.texts)
    with torch.no_grad():
        hidden, logits = it.ours.model(ids, layout), it.ours(ids, layout)
    torch.testing.assert_close(hidden, torch.cat(it.hidden), rtol=0, atol=2e-5)
    torch.testing.assert_close(logits, torch.cat(it.logits), rtol=0, atol=2e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_each_length_alone(shape: str) -> None:
    it = case(shape)
    it.ours.model.backend = "portable"
    for ids, hidden, logits in zip(it.texts, it.hidden, it.logits, strict=True):
        layout = SequenceLayout.of([len(ids)])
        with torch.no_grad():
            torch.testing.assert_close(it.ours.model(ids, layout), hidden, rtol=0, atol=2e-5)
            torch.testing.assert_close(it.ours(ids, layout), logits, rtol=0, atol=2e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_loss_and_gradients(shape: str) -> None:
    """Loss on masked positions only, and every parameter's gradient within 1e-4 of its norm."""
    it = case(shape)
    it.ours.model.backend = "portable"
    ids, layout = pack(it.texts)
    positions = torch.cat([start + masked for start, masked in zip(layout.starts, it.masked)])
    it.ours.zero_grad()
    loss, correct = it.ours.loss(ids, layout, positions, ids[positions])
    loss.backward()
    torch.testing.assert_close(loss.detach() / len(positions), it.loss / len(positions), rtol=0, atol=2e-5)
    assert correct == (torch.cat(it.logits)[positions].argmax(-1) == ids[positions]).sum()
    for name, parameter in it.ours.named_parameters():
        expected = it.gradients[name]
        error = torch.linalg.vector_norm(parameter.grad - expected) / torch.linalg.vector_norm(expected)
        assert error <= 1e-4, f"{name}: {error:.2e}"


@torch.no_grad()
def test_full_length() -> None:
    it = case("tiny")
    ids = torch.randint(3, 512, (8192,))
    expected = it.theirs.model(ids[None]).last_hidden_state[0]
    torch.testing.assert_close(it.ours.model(ids, SequenceLayout.of([8192])), expected, rtol=0, atol=2e-5)


def test_positions_select_rows_of_the_full_logits() -> None:
    it = case("tiny")
    ids, layout = pack(it.texts[3:6])
    positions = torch.tensor([70, 0, 5])
    with torch.no_grad():
        torch.testing.assert_close(it.ours(ids, layout, positions), it.ours(ids, layout)[positions])
