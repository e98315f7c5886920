"""Each objective: packed equals one by one equals transformers, loss and gradients; or refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional

from modernbert.errors import ConfigError, InputError
from modernbert.layout import pack
from modernbert.model.checkpoint import Pretrained
from modernbert.model.config import EncoderConfig, HeadConfig
from modernbert.model.dialects import to_published
from modernbert.model.heads import (
    ModernBertForMaskedLM,
    ModernBertForMultipleChoice,
    ModernBertForQuestionAnswering,
    ModernBertForSequenceClassification,
    ModernBertForTokenClassification,
)
from modernbert.train.objective import Objective
from modernbert.train.objectives import Choices, Classes, LabelSets, MaskedWords, Spans, TokenClasses, Values
from modernbert.train.targets import IGNORED

TINY = EncoderConfig.preset("tiny")
LENGTHS = (1, 2, 64, 65, 129)
LABELS = ("O", "B-PER", "I-PER")
WEIGHTS = (0.2, 1.0, 3.5)
NO_SPAN = (IGNORED, IGNORED)


NO_HEAD = HeadConfig()


@dataclass(frozen=True)
class Case:
    """An objective, the class whose head it is for, and a target for each example."""

    cls: type[Pretrained]
    objective: Objective
    targets: Sequence[Any]
    head: HeadConfig = NO_HEAD
    sequences: tuple[int, ...] = (1,) * len(LENGTHS)
    """Sequences of each example."""


def token_labels(length: int) -> list[int]:
    """Every label, and every fifth token ignored."""
    return [IGNORED if place % 5 == 2 else place % 3 for place in range(length)]


CLASSES = {"cls": ModernBertForSequenceClassification, "head": HeadConfig(labels=LABELS)}
TOKENS = {
    "cls": ModernBertForTokenClassification,
    "head": HeadConfig(labels=LABELS),
    "targets": [token_labels(length) for length in LENGTHS],
}
SETS = [[1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0], [0, 0, 1]]
HALVES = [[0.5], [-1.25], [3.0], [0.0], [2.0]]
SPANS = [(0, 0), (0, 1), NO_SPAN, (3, 64), (127, 128)]
CHOICES = {"cls": ModernBertForMultipleChoice, "head": HeadConfig(pooling="cls"), "objective": Choices()}
WORDS = [[(0, 7)], [], [(3, 9), (63, 400)], [(64, 5)], [(0, 4), (1, 4), (128, 511)]]

CASES: dict[str, Case] = {
    "classes": Case(objective=Classes(num_labels=3), targets=[2, 0, 1, 1, 0], **CLASSES),
    "classes, ignored": Case(objective=Classes(num_labels=3), targets=[2, -100, 1, -100, 0], **CLASSES),
    "classes, weighted, smoothed": Case(
        objective=Classes(num_labels=3, class_weights=WEIGHTS, label_smoothing=0.1),
        targets=[2, 0, 1, -100, 0],
        **CLASSES,
    ),
    "label sets": Case(objective=LabelSets(num_labels=3), targets=SETS, **CLASSES),
    "label sets, weighted": Case(
        objective=LabelSets(num_labels=3, positive_weights=WEIGHTS), targets=SETS, **CLASSES
    ),
    "a value": Case(
        ModernBertForSequenceClassification, Values(), HALVES, HeadConfig(labels=("score",), pooling="cls")
    ),
    "values": Case(objective=Values(num_values=3), targets=SETS, **CLASSES),
    "token classes": Case(objective=TokenClasses(num_labels=3), **TOKENS),
    "token classes, weighted, smoothed": Case(
        objective=TokenClasses(num_labels=3, class_weights=WEIGHTS, label_smoothing=0.2), **TOKENS
    ),
    "spans": Case(ModernBertForQuestionAnswering, Spans(), SPANS),
    "two choices": Case(targets=[(2, 1), (2, 0)], sequences=(2, 2), **CHOICES),
    "two and three choices": Case(targets=[(2, 1), (3, 0)], sequences=(2, 3), **CHOICES),
    "masked words": Case(ModernBertForMaskedLM, MaskedWords(vocab_size=512), WORDS),
}


def build(case: Case) -> tuple[Any, Any]:
    """Our model and transformers', of equal weights."""
    ours = case.cls(replace(TINY, head=case.head)).eval()
    published = transformers.ModernBertConfig(**to_published(ours.config, case.cls.__name__))
    theirs = getattr(transformers, case.cls.__name__)._from_config(published, attn_implementation="sdpa")
    with torch.no_grad():
        for parameter in theirs.parameters():  # norm weights off 1 and biases off 0 show a mistake
            parameter.add_(torch.randn_like(parameter) * 0.02)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return ours, theirs.eval()


def examples(case: Case) -> list[list[Tensor]]:
    """The texts of each example; without the padding token, whose row transformers leaves out."""
    texts = iter([torch.randint(4, 512, (length,)) for length in LENGTHS])
    return [[next(texts) for _ in range(count)] for count in case.sequences]


def our_loss(case: Case, model: nn.Module, texts: list[list[Tensor]], targets: Sequence[Any]) -> Any:
    """Summed loss, right predictions and weight of one packed row."""
    ids, layout = pack([text for example in texts for text in example])
    collated = case.objective.collate(targets, layout.lengths)
    loss, right = case.objective.loss(model, ids, layout, collated)
    assert (loss.dtype, right.dtype) == (torch.float32, torch.int64)
    return loss, right, case.objective.weight(collated)


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: param.grad.clone() for name, param in model.named_parameters() if param.grad is not None}


def check_equal(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-5) -> None:
    assert found.keys() == expected.keys()
    whole = torch.cat([gradient.flatten() for gradient in expected.values()]).norm()
    for name, gradient in expected.items():
        error = (found[name] - gradient).norm() / whole
        assert error <= tolerance, f"{name}: {error:.2e}"


@pytest.mark.parametrize("name", CASES)
def test_packed_equals_one_by_one_and_any_cut(name: str) -> None:
    case = CASES[name]
    model, _ = build(case)
    texts = examples(case)
    loss, right, weight = our_loss(case, model, texts, case.targets)
    expected = gradients(model, loss / weight)
    for sizes in ((1,) * len(texts), (len(texts) - 1, 1), (1, len(texts) - 1)):
        sums, start = [], 0
        for size in sizes:
            part = slice(start, start + size)
            sums.append(our_loss(case, model, texts[part], case.targets[part]))
            start += size
        losses, rights, weights = zip(*sums, strict=True)
        assert sum(weights) == pytest.approx(weight, rel=1e-12)
        assert sum(rights) == right
        torch.testing.assert_close(sum(losses) / weight, loss / weight, rtol=1e-5, atol=1e-5)
        check_equal(gradients(model, sum(losses) / weight), expected)


def padded(texts: list[list[Tensor]]) -> tuple[Tensor, Tensor]:
    flat = [text for example in texts for text in example]
    width = max(map(len, flat))
    ids = torch.stack(
        [functional.pad(text, (0, width - len(text)), value=TINY.pad_token_id) for text in flat]
    )
    return ids, torch.stack([torch.arange(width) < len(text) for text in flat]).long()


def their_label(case: Case, texts: list[list[Tensor]]) -> dict[str, Tensor]:
    """The same targets as transformers wants them."""
    width = max(len(text) for example in texts for text in example)
    if isinstance(case.objective, TokenClasses):
        rows = [[*target, *[IGNORED] * (width - len(target))] for target in case.targets]
        return {"labels": torch.tensor(rows)}
    if isinstance(case.objective, MaskedWords):
        labels = torch.full((len(texts), width), IGNORED)
        for row, target in enumerate(case.targets):
            for place, word in target:
                labels[row, place] = word
        return {"labels": labels}
    if isinstance(case.objective, Choices):
        return {"labels": torch.tensor([right for _, right in case.targets])}
    return {
        "labels": torch.tensor(
            case.targets, dtype=None if isinstance(case.objective, Classes) else torch.float
        )
    }


THEIRS = (
    *("classes", "classes, ignored", "label sets", "a value", "values", "token classes", "two choices"),
    "masked words",
)


def their_loss(case: Case, model: Any, texts: list[list[Tensor]]) -> Tensor:
    """The mean loss of transformers' own model on a padded batch."""
    problems = {Classes: "single_label_classification", LabelSets: "multi_label_classification"}
    model.config.problem_type = problems.get(type(case.objective), "regression")
    ids, mask = padded(texts)
    if isinstance(case.objective, Choices):
        ids, mask = (tensor.unflatten(0, (len(texts), -1)) for tensor in (ids, mask))
    loss: Tensor = model(ids, attention_mask=mask, **their_label(case, texts)).loss
    return loss


@pytest.mark.parametrize("name", THEIRS)
def test_a_packed_row_equals_their_padded_batch(name: str) -> None:
    case = CASES[name]
    ours, theirs = build(case)
    texts = examples(case)
    if isinstance(case.objective, Choices):
        texts = texts[:2]
    loss, _, weight = our_loss(case, ours, texts, case.targets)
    expected = their_loss(case, theirs, texts)
    torch.testing.assert_close(loss / weight, expected, rtol=1e-5, atol=1e-5)
    check_equal(gradients(ours, loss / weight), gradients(theirs, expected))


@pytest.mark.parametrize(
    ("name", "criterion"),
    [
        ("classes, weighted, smoothed", nn.CrossEntropyLoss(torch.tensor(WEIGHTS), label_smoothing=0.1)),
        (
            "token classes, weighted, smoothed",
            nn.CrossEntropyLoss(torch.tensor(WEIGHTS), label_smoothing=0.2),
        ),
        ("label sets, weighted", nn.BCEWithLogitsLoss(pos_weight=torch.tensor(WEIGHTS))),
    ],
)
def test_weights_and_smoothing_equal_torchs_on_their_logits(
    name: str, criterion: Callable[[Tensor, Tensor], Tensor]
) -> None:
    """What transformers leaves to its caller: the loss of the same name on a padded batch's logits."""
    case = CASES[name]
    ours, theirs = build(case)
    texts = examples(case)
    loss, _, weight = our_loss(case, ours, texts, case.targets)
    ids, mask = padded(texts)
    logits, labels = theirs(ids, attention_mask=mask).logits, their_label(case, texts)["labels"]
    if isinstance(case.objective, TokenClasses):
        logits, labels = logits.flatten(0, 1), labels.flatten()
    expected = criterion(logits, labels)
    torch.testing.assert_close(loss / weight, expected, rtol=1e-5, atol=1e-5)
    check_equal(gradients(ours, loss / weight), gradients(theirs, expected))


def test_spans_equal_theirs_where_nothing_is_padded() -> None:
    """Each text alone and two of equal length: else their softmax is over the padding too."""
    case = CASES["spans"]
    ours, theirs = build(case)
    texts = [*examples(case), [torch.randint(4, 512, (129,))]]
    spans = [*SPANS, (5, 9)]
    loss, _, weight = our_loss(case, ours, texts, spans)
    assert weight == 5.0
    expected = torch.zeros(())
    for rows in ([0], [1], [2], [3], [4, 5]):
        ids, mask = padded([texts[row] for row in rows])
        # They ignore what lies beyond the text, and take what lies before it for its first token.
        starts, ends = (
            torch.tensor([spans[row] for row in rows])
            .where(torch.tensor([[spans[row] != NO_SPAN] for row in rows]), ids.shape[1])
            .unbind(1)
        )
        if spans[rows[0]] != NO_SPAN:
            mean = theirs(ids, attention_mask=mask, start_positions=starts, end_positions=ends).loss
            expected = expected + mean * len(rows)
    torch.testing.assert_close(loss / weight, expected / 5, rtol=1e-5, atol=1e-5)
    check_equal(gradients(ours, loss / weight), gradients(theirs, expected / 5))


class Scores(nn.Module):
    """A model that gives known scores."""

    def __init__(self, scores: Sequence[Any]) -> None:
        super().__init__()
        self.scores = nn.Parameter(torch.tensor(scores))

    def forward(self, *_: Any) -> Tensor:
        return self.scores


SCORED = [
    (Classes(num_labels=2), [[1.0, 0], [0, 1], [0, 1]], (1, 1, 1), [0, 0, -100], 1),
    (LabelSets(num_labels=2), [[1.0, -1], [1, 1], [-1, -1]], (1, 1, 1), [[1, 0], [1, 0], [0, 0]], 2),
    (Values(), [[1.0]], (1,), [[1.0]], 0),
    (TokenClasses(num_labels=2), [[1.0, 0], [1, 0], [1, 0]], (1, 2), [[0], [1, -100]], 1),
    (
        Spans(),
        [[1.0, 0], [0, 1], [3, 0], [0, 3], [9, 9]],
        (2, 2, 1),
        [(0, 1), (1, 1), NO_SPAN],
        1,
    ),
    (Choices(), [1.0, 0, 0, 2, 1], (1,) * 5, [(2, 0), (3, 2)], 1),
]
"""Objective, scores, lengths, targets; how many are right."""


@pytest.mark.parametrize(("objective", "scores", "lengths", "targets", "right"), SCORED)
def test_right_predictions_are_counted(
    objective: Objective, scores: Any, lengths: Any, targets: Any, right: int
) -> None:
    ids, layout = pack([[5] * length for length in lengths])
    collated = objective.collate(targets, lengths)
    _, found = objective.loss(Scores(scores), ids, layout, collated)
    assert found.item() == right


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype:UserWarning")
@pytest.mark.parametrize(("objective", "scores", "lengths", "targets", "right"), SCORED)
def test_the_host_does_not_wait_for_a_gpu(
    objective: Objective, scores: Any, lengths: Any, targets: Any, right: int
) -> None:
    sequences = [[5] * length for length in lengths]
    collated = objective.collate(targets, lengths)
    expected, _ = objective.loss(Scores(scores), *pack(sequences), collated)
    model, (ids, layout) = Scores(scores).cuda(), pack(sequences, "cuda")
    on_device = collated.cuda()
    for mode in ("default", "error"):  # the first time, layout and weights are copied
        torch.cuda.set_sync_debug_mode(mode)
        try:
            loss, found = objective.loss(model, ids, layout, on_device)
            loss.backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert found.item() == right
    torch.testing.assert_close(loss.cpu(), expected)


@pytest.mark.parametrize(
    ("objective", "scores", "targets"),
    [
        (Classes(num_labels=2, class_weights=(1.0, 2.0)), [[1.0, 0]], [-100]),
        (TokenClasses(num_labels=2), [[1.0, 0]], [[-100]]),
        (Spans(), [[1.0, 0]], [NO_SPAN]),
    ],
)
def test_where_all_is_ignored_loss_and_gradient_are_zero(
    objective: Objective, scores: Any, targets: Any
) -> None:
    model = Scores(scores)
    collated = objective.collate(targets, (1,))
    loss, right = objective.loss(model, *pack([[5]]), collated)
    loss.backward()
    assert (loss.item(), right.item(), objective.weight(collated)) == (0.0, 0, 0.0)
    assert model.scores.grad is not None
    assert not model.scores.grad.any()


@pytest.mark.parametrize("name", CASES)
def test_the_loss_is_in_fp32_under_autocast(name: str) -> None:
    case = CASES[name]
    model, _ = build(case)
    texts = examples(case)
    exact, *_ = our_loss(case, model, texts, case.targets)
    with torch.autocast("cpu", torch.bfloat16):
        loss, *_ = our_loss(case, model, texts, case.targets)
    torch.testing.assert_close(loss, exact, rtol=0.05, atol=0.05)
    assert loss.item() != loss.bfloat16().item()  # it has more digits


def test_weights_kept_by_an_evaluation_can_be_trained_with() -> None:
    objective = Classes(num_labels=2, class_weights=(1.25, 2.5))
    model, target = Scores([[1.0, 0]]), torch.tensor([1])
    with torch.inference_mode():
        objective.loss(model, *pack([[5]]), target)
    objective.loss(model, *pack([[5]]), target)[0].backward()


THREE = Classes(num_labels=3)
TWO_VALUES = Values(num_values=2)


@pytest.mark.parametrize(
    ("objective", "targets", "lengths", "message"),
    [
        (THREE, [0, 5], (2, 2), "example 1 has the label 5; it must be from 0 to 2, or -100 to be left out"),
        (THREE, [-1], (2,), "example 0 has the label -1; it must be from 0 to 2"),
        (THREE, ["yes"], (2,), "example 0 has the target 'yes'; it must be an integer"),
        (THREE, [1.0], (2,), "example 0 has the target 1.0; it must be an integer"),
        (THREE, [1], (2, 3), "1 targets are for 1 sequences, but the micro-batch has 2"),
        (LabelSets(num_labels=3), [[1, 0]], (2,), r"example 0 has 2 values, \[1, 0\]; it must have 3"),
        (LabelSets(num_labels=2), [[1, 2]], (2,), "example 0 has the value 2; it must be from 0 to 1"),
        (TWO_VALUES, [[1.0, float("nan")]], (2,), "example 0 has the value nan; it must be finite"),
        (TWO_VALUES, [[0, 0], [0, float("inf")]], (2, 2), "example 1 has the value inf; it must be finite"),
        (TokenClasses(num_labels=3), [[0, 0]], (3,), "example 0 has 2 labels for 3 tokens"),
        (TokenClasses(num_labels=3), [[0], [0, 3]], (1, 2), "example 1 has the label 3; it must be from 0"),
        (Spans(), [(0, 1), (1, 2)], (2, 2), "example 1 has the span from token 1 to 2; it must lie within"),
        (Spans(), [(2, 1)], (5,), "example 0 has the span from token 2 to 1"),
        (Spans(), [(-100, 1)], (5,), "example 0 has the span from token -100 to 1"),
        (Choices(), [(2, 2)], (1, 1), "example 0 has choice 2 of 2 as the right one; it must be from 0 to 1"),
        (Choices(), [(2, 1), (2, 0)], (1, 1, 1), "2 targets are for 4 sequences, but the micro-batch has 3"),
        (MaskedWords(vocab_size=9), [[(0, 9)]], (2,), "example 0 has the word 9 at token 0; words must be"),
        (MaskedWords(vocab_size=9), [[], [(2, 3)]], (2, 2), "example 1 has the word 3 at token 2;.*0 to 1$"),
    ],
)
def test_targets_that_do_not_fit(objective: Objective, targets: Any, lengths: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        objective.collate(targets, lengths)


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (Classes, {"num_labels": 1}, "`num_labels` is 1; it must be at least 2"),
        (Classes, {"num_labels": 2, "class_weights": (1.0,)}, "`class_weights` has 1 numbers for 2 labels"),
        (TokenClasses, {"num_labels": 2, "class_weights": (1.0, 0.0)}, "`class_weights` has 0.0; each must"),
        (Classes, {"num_labels": 2, "label_smoothing": 1.0}, "`label_smoothing` is 1.0; it must be"),
        (LabelSets, {"num_labels": 0}, "`num_labels` is 0; it must be at least 1"),
        (LabelSets, {"num_labels": 1, "positive_weights": (-1.0,)}, "`positive_weights` has -1.0"),
        (Values, {"num_values": 0}, "`num_values` is 0; it must be at least 1"),
        (MaskedWords, {"vocab_size": 1}, "`vocab_size` is 1; it must be at least 2"),
    ],
)
def test_settings_that_do_not_fit(kind: type[Objective], settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        kind(**settings)


@pytest.mark.parametrize("objective", [Values(), LabelSets(num_labels=1), Classes(num_labels=2), Spans()])
def test_a_model_of_other_scores_is_refused(objective: Objective) -> None:
    """Where torch would spread one score over many, or fail on the GPU and name nothing."""
    with pytest.raises(ConfigError, match=r"the model has 3 scores where the objective has [12]; they must"):
        objective.loss(Scores([[1.0, 0, 0]]), *pack([[5]]), torch.zeros(1, 1))
