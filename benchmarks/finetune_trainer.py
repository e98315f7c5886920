"""The peer of `benchmarks.finetune`: transformers' `Trainer`, on weights, examples and settings of our run.

What is not said here is its default: AdamW, a linearly falling learning rate, batches padded to the longest.
Examples are made as in transformers' own scripts: a word's tag at its first token, long contexts in windows.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from modernbert import runtime
from modernbert.data.records import AnswerRecord, ChoiceRecord, TagRecord, TextRecord
from modernbert.infer.runner import TorchRunner
from modernbert.layout import SequenceLayout
from modernbert.recipes.finetune import evaluated
from modernbert.recipes.finetune.evaluated import Shown
from modernbert.recipes.finetune.findings import Findings
from modernbert.recipes.finetune.settings import FinetuneRun
from modernbert.recipes.finetune.task import TEST, TRAIN, TuningTask
from modernbert.train.examples import steps_in

IGNORED = -100

Features = list[dict[str, Any]]


WARM_UP = 10
"""Steps that no rate counts; of a very short run half of the steps."""


def warm_up(num_steps: int) -> int:
    """Return how many of a run's steps no rate counts."""
    return min(WARM_UP, num_steps // 2)


def seen(step: int, num_examples: int, batch_size: int) -> int:
    """Return how many examples so many steps took; the last batch of an epoch may be smaller."""
    epochs, place = divmod(step, math.ceil(num_examples / batch_size))
    return epochs * num_examples + min(place * batch_size, num_examples)


class Peer:
    """One run of the `Trainer`.

    Args:
        run: Ours: checkpoint, epochs, batch size, learning rate, seed and device are taken from it. For texts
            and tags the checkpoint may be another encoder of transformers.
        task: With the same examples, and what judges the model.
    """

    def __init__(self, run: FinetuneRun, task: TuningTask[Any]) -> None:
        from transformers import AutoConfig, AutoTokenizer, set_seed
        from transformers.utils import logging

        logging.set_verbosity_error()
        logging.disable_progress_bar()
        set_seed(run.seed)
        self.run, self.task = run, task
        self.is_ours = AutoConfig.from_pretrained(run.model).model_type == "modernbert"
        self.device = runtime.choose_device(run.device)
        self.tokenizer = AutoTokenizer.from_pretrained(run.model)
        self.features = self._features(TRAIN)
        self.num_steps = steps_in(len(self.features), run.tuning.batch_size, run.tuning.epochs)
        self.timer = _timer(warm_up(self.num_steps), self.device)
        self.trainer = self._trainer()

    def train(self) -> float:
        """Train to the end; return examples of the file a second, of warm steps."""
        self.trainer.train()
        size, num_features = self.run.tuning.batch_size, len(self.features)
        before, after = (seen(step, num_features, size) for step in (warm_up(self.num_steps), self.num_steps))
        share = len(self.task.splits[TRAIN].records) / num_features
        return float(share * (after - before) / (self.timer.ended - self.timer.began))

    def evaluate(self, folder: Path) -> Findings:
        """Measure the model as ours is measured; tags by the peer's own tokens, which it was trained on."""
        if self.run.task == "tag":
            return self._tags()
        if not self.is_ours:
            return self.task.evaluate(PaddedRunner(self.trainer.model), TEST)
        self.trainer.save_model(str(folder))
        model = self.task.kind.from_pretrained(folder, device=self.device).eval()
        return self.task.evaluate(TorchRunner(model, self.run.precision), TEST)

    def _trainer(self) -> Any:
        from transformers import Trainer, TrainingArguments

        tuning = self.run.tuning
        arguments = TrainingArguments(
            output_dir=self.run.folder,
            max_steps=self.num_steps,
            per_device_train_batch_size=tuning.batch_size,
            learning_rate=tuning.learning_rate,
            seed=self.run.seed,
            bf16=runtime.uses_bf16(self.device, self.run.precision),
            use_cpu=self.device.type == "cpu",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            logging_strategy="no",
        )
        return Trainer(
            self._model(),
            arguments,
            data_collator=self._collator(),
            train_dataset=self.features,
            callbacks=[self.timer],
        )

    def _model(self) -> Any:
        """Load our checkpoint with the head that the task has with us."""
        import transformers

        kind = {
            "classify": transformers.AutoModelForSequenceClassification,
            "tag": transformers.AutoModelForTokenClassification,
            "answer": transformers.AutoModelForQuestionAnswering,
            "choose": transformers.AutoModelForMultipleChoice,
        }[self.run.task]
        head, options = self.task.head(), {}
        assert head is not None  # but for prompts, which are not compared
        if self.run.task == "classify":
            options = {"problem_type": head.problem_type}
        if head.labels and self.run.task in ("classify", "tag"):
            options["id2label"] = dict(enumerate(head.labels))
            options["label2id"] = {label: index for index, label in enumerate(head.labels)}
        if self.is_ours:
            options["classifier_pooling"] = head.pooling
        return kind.from_pretrained(self.run.model, **options)

    def _collator(self) -> Any:
        import transformers

        kind = {
            "tag": transformers.DataCollatorForTokenClassification,
            "choose": transformers.DataCollatorForMultipleChoice,
        }.get(self.run.task, transformers.DataCollatorWithPadding)
        return kind(self.tokenizer)

    def _features(self, split: str) -> Features:
        records = self.task.splits[split].records
        make = {"classify": self._texts, "tag": self._words, "answer": self._windows, "choose": self._choices}
        return list(itertools.chain.from_iterable(make[self.run.task](records, split)))

    def _texts(self, records: Sequence[TextRecord], split: str) -> Iterator[Features]:
        targets = [example.target for example in self.task.examples(split)]
        for record, target in zip(records, targets, strict=True):
            label = target[0] if isinstance(target, list) else target
            yield [{**self.tokenizer(*record.texts, **self._cut(), truncation=True), "labels": label}]

    def _words(self, records: Sequence[TagRecord], split: str) -> Iterator[Features]:
        head = self.task.head()
        assert head is not None
        ids = {label: index for index, label in enumerate(head.labels)}
        for record in records:
            words = [record.text[begin:end] for begin, end in record.words]
            found = self.tokenizer(words, **self._cut(), truncation=True, is_split_into_words=True)
            labels = [IGNORED] * len(found["input_ids"])
            for word, place in _first_tokens(found.word_ids()).items():
                labels[place] = ids.get(record.tags[word], IGNORED)
            yield [{**found, "labels": labels}]

    def _windows(self, records: Sequence[AnswerRecord], split: str) -> Iterator[Features]:
        for record in records:
            found = self.tokenizer(
                record.question,
                record.context,
                **self._cut(),
                truncation="only_second",
                stride=self.run.data.stride,
                return_overflowing_tokens=True,
                return_offsets_mapping=True,
            )
            yield [self._window(record, found, index) for index in range(len(found["input_ids"]))]

    def _window(self, record: AnswerRecord, found: Any, index: int) -> dict[str, Any]:
        """Say where the first answer begins and ends in a window; at `[CLS]`, if it is not in it."""
        first, last = 0, 0
        if record.answers:
            begin, text = record.answers[0]
            offsets = found["offset_mapping"][index]
            inside = [place for place, part in enumerate(found.sequence_ids(index)) if part == 1]
            after = begin + len(text)
            if inside and offsets[inside[0]][0] <= begin and after <= offsets[inside[-1]][1]:
                first = max(place for place in inside if offsets[place][0] <= begin)
                last = min(place for place in inside if offsets[place][1] >= after)
        ids = {name: found[name][index] for name in ("input_ids", "attention_mask")}
        return {**ids, "start_positions": first, "end_positions": last}

    def _choices(self, records: Sequence[ChoiceRecord], split: str) -> Iterator[Features]:
        for record in records:
            prompts = [record.prompt] * len(record.choices)
            found = self.tokenizer(prompts, list(record.choices), **self._cut(), truncation=True)
            yield [{**found, "labels": record.label}]

    def _cut(self) -> dict[str, int]:
        return {"max_length": self.task.texts.max_length}

    def _tags(self) -> Findings:
        records: Sequence[TagRecord] = self.task.splits[TEST].records
        head = self.task.head()
        assert head is not None
        guesses = self.trainer.predict(self._features(TEST)).predictions.argmax(-1)
        predicted = []
        for record, row in zip(records, guesses, strict=True):
            words = [record.text[begin:end] for begin, end in record.words]
            found = self.tokenizer(words, **self._cut(), truncation=True, is_split_into_words=True)
            places = _first_tokens(found.word_ids())
            predicted.append([head.labels[row[places[w]]] if w in places else "O" for w in range(len(words))])
        shown = [Shown(text=record.text, place=record.place) for record in records]
        return evaluated.of_tags(TEST, [record.tags for record in records], predicted, shown)


class PaddedRunner:
    """A `Runner` for another encoder of transformers, with a head for sequences or for masked tokens."""

    def __init__(self, model: Any) -> None:
        self.model = model.eval()
        self.config, self.device = model.config, model.device

    @torch.inference_mode()
    def __call__(
        self, sequences: list[list[int]], positions: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, SequenceLayout]:
        rows = [torch.tensor(ids) for ids in sequences]
        ids = pad_sequence(rows, batch_first=True, padding_value=self.config.pad_token_id)
        mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
        with runtime.autocast(self.device, "auto"):
            logits = self.model(ids.to(self.device), attention_mask=mask.to(self.device)).logits
        if positions is not None:
            places = mask.flatten().nonzero().squeeze(1)[positions.cpu()]
            logits = logits.flatten(0, 1)[places.to(self.device)]
        return logits.float(), SequenceLayout.of([len(row) for row in rows], self.device)


def _first_tokens(words: Sequence[int | None]) -> dict[int, int]:
    """Return for each word the place of its first token."""
    places: dict[int, int] = {}
    for place, word in enumerate(words):
        if word is not None:
            places.setdefault(word, place)
    return places


def _timer(first: int, device: torch.device) -> Any:
    """Return a callback that knows how long the steps after the `first` ones took."""
    from transformers import TrainerCallback

    class Timer(TrainerCallback):  # type: ignore[misc]
        began, ended = 0.0, 0.0

        def on_step_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            if state.global_step <= first:
                runtime.synchronize(device)
                self.began = time.perf_counter()

        def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            if state.global_step == state.max_steps:
                runtime.synchronize(device)
                self.ended = time.perf_counter()

    return Timer()
