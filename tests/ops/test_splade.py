"""SPLADE pooling in chunks against its plain definition, values and gradients."""

from __future__ import annotations

import pytest
import torch

from modernbert.errors import InputError
from modernbert.layout import SequenceLayout
from modernbert.ops import reference, splade

LENGTHS = (1, 2, 64, 65, 129, 1)


def leaves(num_tokens: int, vocabulary: int = 101) -> list[torch.Tensor]:
    shapes = ((num_tokens, 16), (vocabulary, 16), (vocabulary,))
    return [torch.randn(shape, requires_grad=True) for shape in shapes]


@pytest.mark.parametrize("activation", splade.ACTIVATIONS)
@pytest.mark.parametrize("logits_at_once", [1, 5_000, 10**9])  # one word at a time, some, all
@pytest.mark.parametrize("lengths", [LENGTHS, (1,), (129,)])
def test_equals_definition(
    lengths: tuple[int, ...], logits_at_once: int, activation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(splade, "LOGITS_AT_ONCE", logits_at_once)
    layout = SequenceLayout.of(lengths)
    given = leaves(layout.num_tokens)
    expected = reference.splade_pool(*given, layout, activation)
    found = splade.splade_pool(*given, layout, activation)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    outer = torch.randn_like(expected)
    ours, plain = (torch.autograd.grad(each, given, outer) for each in (found, expected))
    for a, b in zip(ours, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_no_sequence_sees_its_neighbour() -> None:
    layout = SequenceLayout.of(LENGTHS)
    hidden, weight, bias = leaves(layout.num_tokens)
    together = splade.splade_pool(hidden, weight, bias, layout)
    alone = [
        splade.splade_pool(part, weight, bias, SequenceLayout.of([len(part)]))
        for part in layout.split(hidden)
    ]
    torch.testing.assert_close(together, torch.cat(alone))
    for index in range(layout.num_sequences):
        (gradient,) = torch.autograd.grad(together[index].sum(), hidden, retain_graph=True)
        touched = gradient.abs().sum(dim=1) > 0
        assert set(layout.sequence_ids[touched].tolist()) == {index}


def test_words_that_nothing_calls_for_weigh_nothing_and_learn_nothing() -> None:
    layout = SequenceLayout.of((3, 2))
    hidden, weight, bias = leaves(5)
    pooled = splade.splade_pool(hidden, weight, bias - 1_000, layout)
    assert pooled.eq(0).all()
    assert all(grad.eq(0).all() for grad in torch.autograd.grad(pooled.sum(), (hidden, weight, bias)))


def test_bf16_and_autocast() -> None:
    layout = SequenceLayout.of(LENGTHS)
    given = leaves(layout.num_tokens)
    expected = reference.splade_pool(*given, layout)
    gradients = torch.autograd.grad(expected.sum(), given)
    narrow = [leaf.detach().bfloat16().requires_grad_() for leaf in given]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = splade.splade_pool(*given, layout)
    for found, of in ((under_autocast, given), (splade.splade_pool(*narrow, layout), narrow)):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, expected, rtol=0.03, atol=0.05)
        for leaf, grad, wanted in zip(of, torch.autograd.grad(found.sum(), of), gradients, strict=True):
            assert grad.dtype == leaf.dtype
            # Where two logits are as good as equal another token may have the gradient.
            likeness = torch.cosine_similarity(grad.float().flatten(), wanted.flatten(), dim=0)
            assert likeness > 0.95


@pytest.mark.parametrize("learned", [(0,), (1,), (2,), (0, 2)])
def test_makes_no_gradient_of_what_is_frozen(learned: tuple[int, ...]) -> None:
    layout = SequenceLayout.of((4, 9))
    given = [leaf.detach() for leaf in leaves(13)]
    trained = [given[place].requires_grad_() for place in learned]
    ours, plain = (
        torch.autograd.grad(pool(*given, layout).sum(), trained)
        for pool in (splade.splade_pool, reference.splade_pool)
    )
    for a, b in zip(ours, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_holds_few_logits_and_without_gradient_no_places(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(splade, "LOGITS_AT_ONCE", 13 * 10)
    monkeypatch.setattr(splade, "argmax", lambda *_: pytest.fail("places are kept for nobody"))
    sizes, reduce = [], splade.reduce

    def counted(values: torch.Tensor, *args: object) -> torch.Tensor:
        sizes.append(tuple(values.shape))
        return reduce(values, *args)

    monkeypatch.setattr(splade, "reduce", counted)
    with torch.inference_mode():
        splade.splade_pool(*leaves(13, vocabulary=32), SequenceLayout.of((4, 9)))
    assert sizes == [(13, 10), (13, 10), (13, 10), (13, 2)]


def test_unknown_activation() -> None:
    with pytest.raises(InputError, match="unknown activation `rel`; did you mean `relu`"):
        splade.splade_pool(*leaves(1), SequenceLayout.of((1,)), "rel")
