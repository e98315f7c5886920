"""Fine-tuning's loop: learning rates, layers of their own rate, what is frozen, and what a step does."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch.nn import functional

from modernbert.errors import ConfigError, DivergenceError
from modernbert.model.config import EncoderConfig, HeadConfig
from modernbert.model.heads import ModernBertForSequenceClassification
from modernbert.model.init import initialise
from modernbert.train.examples import Example, example_steps
from modernbert.train.objectives import Classes
from modernbert.train.parallel import Spread
from modernbert.train.supervised import TuningSettings, freeze, tune, tuning_optimizer

CPU = torch.device("cpu")
SHAPE = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 48}


def build() -> ModernBertForSequenceClassification:
    head = HeadConfig(labels=("a", "b", "c"))
    config = EncoderConfig(vocab_size=64, window=3, pad_token_id=0, attn_out_dropout=0.0, head=head, **SHAPE)
    model = ModernBertForSequenceClassification(config)
    initialise(model, seed=1)
    return model


def examples(count: int) -> list[Example]:
    return [
        Example(([4, 10 + number % 3, 20 + number, 5],), number % 3, f"line {number}")
        for number in range(count)
    ]


def train(
    model: ModernBertForSequenceClassification, settings: TuningSettings, count: int = 8, **options: Any
) -> list[Any]:
    spread = Spread(model, device=CPU)
    optimizer = tuning_optimizer(model, settings)
    steps = example_steps(
        examples(count),
        Classes(num_labels=3),
        batch_size=settings.batch_size,
        row_tokens=64,
        num_steps=6,
        seed=0,
    )
    return list(tune(optimizer, steps, spread=spread, settings=settings, num_steps=6, seed=0, **options))


class TestLearningRate:
    @pytest.mark.parametrize(
        ("settings", "expected"),
        [
            ({"warmup": 0.0}, [1.0, 0.75, 0.5, 0.25]),
            ({"warmup": 0.5}, [0.5, 1.0, 2 / 3, 1 / 3]),
            ({"warmup": 0.0, "decay": "constant"}, [1.0] * 4),
            ({"warmup": 0.0, "decay": "cosine"}, [1.0, 0.8535534, 0.5, 0.1464466]),
        ],
        ids=str,
    )
    def test_by_step(self, settings: dict[str, Any], expected: list[float]) -> None:
        found = TuningSettings(learning_rate=1.0, **settings)
        assert [found.learning_rate_at(step, 4) for step in range(1, 5)] == pytest.approx(expected)

    def test_each_layer_has_its_own(self) -> None:
        optimizer = tuning_optimizer(build(), TuningSettings(layer_decay=0.5, learning_rate=1e-3))
        rates = {name: group["lr"] for group in optimizer.param_groups for name in group["parameter_names"]}
        assert rates["classifier.weight"] == rates["model.final_norm.weight"] == 1e-3
        assert rates["model.layers.2.attn.Wqkv.weight"] == 5e-4
        assert rates["model.layers.0.mlp.Wo.weight"] == 1.25e-4
        assert rates["model.embeddings.tok_embeddings.weight"] == 6.25e-5

    def test_all_parameters_have_one_and_vectors_do_not_decay(self) -> None:
        model = build()
        optimizer = tuning_optimizer(model, TuningSettings(weight_decay=1e-3, learning_rate=1e-2))
        listed = [name for group in optimizer.param_groups for name in group["parameter_names"]]
        assert sorted(listed) == sorted(name for name, _ in model.named_parameters())
        for group in optimizer.param_groups:
            for param in group["params"]:
                assert group["weight_decay"] == pytest.approx(0.1 if param.ndim > 1 else 0)


class TestFrozen:
    def test_stays_as_it_was(self) -> None:
        model = build()
        freeze(model, 2)
        before = copy.deepcopy(model.state_dict())
        train(model, TuningSettings(batch_size=4))
        changed = {
            name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])
        }
        frozen = ("model.embeddings.", "model.layers.0.", "model.layers.1.")
        assert changed == {name for name in before if not name.startswith(frozen)}

    def test_more_layers_than_there_are(self) -> None:
        with pytest.raises(
            ConfigError, match="`frozen_layers` is 4; it must be at most the model's 3 layers"
        ):
            freeze(build(), 4)


class TestSteps:
    def test_one_is_that_of_the_plain_definition(self) -> None:
        """The loss is the mean over the step's examples, however they lie in rows."""
        model, plain = build(), build()
        settings = TuningSettings(batch_size=8, warmup=0, learning_rate=1e-3)
        report = train(model, settings)[0]
        optimizer = tuning_optimizer(plain, settings)
        logits = torch.cat([plain(torch.tensor(it.sequences[0]), _alone(4)) for it in examples(8)])
        loss = functional.cross_entropy(logits, torch.tensor([it.target for it in examples(8)]))
        loss.backward()
        norm = torch.nn.utils.get_total_norm(
            [param.grad for param in plain.parameters() if param.grad is not None]
        )
        assert report.loss == pytest.approx(loss.item(), rel=1e-5)
        assert report.gradient_norm == pytest.approx(norm.item(), rel=1e-4)
        assert report.learning_rate == 1e-3
        assert optimizer.param_groups[0]["lr"] == 1e-3

    def test_learns(self) -> None:
        losses = [report.loss for report in train(build(), TuningSettings(batch_size=8, learning_rate=3e-3))]
        assert losses[-1] < 0.7 * losses[0]

    def test_a_loss_that_is_not_finite_ends_the_run_and_leaves_the_weights(self) -> None:
        model = build()
        with torch.no_grad():
            model.classifier.bias[0] = float("nan")
        before = copy.deepcopy(model.state_dict())
        with pytest.raises(DivergenceError, match=r"step 1 has the loss nan .*4 examples from line"):
            train(model, TuningSettings(batch_size=4))
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor.nan_to_num(), before[name].nan_to_num())


@pytest.mark.parametrize(
    ("key", "value", "rule"),
    [
        ("learning_rate", 0.0, "above 0"),
        ("epochs", 0.0, "above 0"),
        ("batch_size", 0, "at least 1"),
        ("warmup", 1.0, "at least 0 and below 1"),
        ("layer_decay", 1.5, "above 0 and at most 1"),
        ("betas", (0.9,), "two numbers, each at least 0 and below 1"),
        ("clip_norm", 0.0, "above 0, or null"),
    ],
)
def test_settings_out_of_range(key: str, value: Any, rule: str) -> None:
    with pytest.raises(ConfigError, match=f"`{key}` is .*; it must be {rule}"):
        TuningSettings(**{key: value})


def _alone(length: int) -> Any:
    from modernbert.layout import SequenceLayout

    return SequenceLayout.of([length])


def test_the_optimizer_works_in_one_pass_over_the_weights_and_as_the_plain_one() -> None:
    models = [build(), build()]
    optimizers = [tuning_optimizer(model, TuningSettings()) for model in models]
    assert all(group["fused"] for group in optimizers[0].param_groups)
    for group in optimizers[1].param_groups:
        group.update(fused=False, foreach=False)
    for _ in range(3):
        for model, optimizer in zip(models, optimizers):
            for place, param in enumerate(model.parameters()):
                param.grad = param.detach() * (place + 1)
            optimizer.step()
    for one, other in zip(*(model.parameters() for model in models)):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-8)
