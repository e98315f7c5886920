"""A run that trains a retriever: what `recipes.tuning` carries on, with pairs of texts."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from modernbert import files
from modernbert.data.records import PairRecord
from modernbert.data.tokenizer import Tokenizer
from modernbert.errors import ConfigError
from modernbert.infer import sentence_folder
from modernbert.infer.embedding_head import EmbeddingConfig, EmbeddingHead
from modernbert.infer.texts import Texts
from modernbert.model.checkpoint import Pretrained
from modernbert.model.encoder import ModernBertModel
from modernbert.recipes.retriever.data import Pairs
from modernbert.recipes.retriever.settings import RetrieverRun
from modernbert.recipes.tuning.session import (
    MODEL,
    TuningResult,
    TuningSession,
    Workplace,
    carry_out,
    choose_metric,
)
from modernbert.recipes.tuning.start import begin
from modernbert.train.contrastive import ranks_of_positives
from modernbert.train.pairs import PairBatch, PairEncoding, PairStep, pair_steps

METRIC = "mrr"
FIGURES = ("loss", "accuracy", METRIC)
RESULT = "result.json"


def train_retriever(run: RetrieverRun) -> TuningResult:
    """Train a checkpoint so that the vectors of queries and of what they should find are near to each other.

    The folder gets `run.yaml`, `metrics.jsonl`, `checkpoints/` and, at the end, `result.json` and `model/`, a
    folder of sentence-transformers. Ctrl-C and SIGTERM save a checkpoint and end the run; the same call goes
    on. In each process that `torchrun` started, it carries its part of the run; all share their negatives.

    Raises:
        ConfigError: The folder holds a run with other settings, or settings do not fit each other.
        InputError: The pairs cannot be used.
        CheckpointError: The model cannot be found or is damaged.
        DivergenceError: The loss is not finite.
        BackendError: There is no such device here, or its memory is too small.
        StorageError: The disk is full or not writable.
    """
    return carry_out(run, partial(_Session, run))


class _Session(TuningSession[RetrieverRun]):
    """See `TuningSession`."""

    title = "train retriever"

    def __init__(self, run: RetrieverRun, place: Workplace) -> None:
        size = run.tuning.batch_size
        if size < place.ranks.size:
            raise ConfigError(
                f"`tuning.batch_size` is {size} for {place.ranks.size} processes; it must be at least a pair "
                "for each; raise it"
            )
        words = Tokenizer.from_pretrained(run.model, revision=run.revision)
        model = begin(run, ModernBertModel)
        self.encoding = _encoding(run, words, model.config.max_position_embeddings)
        metric = choose_metric(run, METRIC, lambda: FIGURES)
        self.pairs = Pairs(run.data, run.seed, size)
        super().__init__(
            run,
            place,
            words=words,
            model=model,
            num_examples=len(self.pairs.epoch(0)) // size * size,
            source=", ".join([*run.data.pairs, *run.data.corpus]),
            digest=self.pairs.digest,
            metric=metric,
            can_look=run.data.has_validation,
        )

    def steps(self, done: int) -> Iterator[PairStep]:
        return pair_steps(
            self.pairs.epoch,
            self.encoding,
            self.run.objective,
            batch_size=self.run.tuning.batch_size,
            num_steps=self.num_steps,
            seed=self.run.seed,
            done=done,
            ranks=self.ranks,
        )

    def longest(self) -> tuple[int, str]:
        data = self.run.data
        return max((data.query_length, "data.query_length"), (data.document_length, "data.document_length"))

    def look(self) -> Mapping[str, float]:
        """Let the held-out queries find their own among batches of about the size of those of training."""
        pairs = self.pairs.validation
        num_batches = math.ceil(len(pairs) / self.run.tuning.batch_size)
        ends = [number * len(pairs) // num_batches for number in range(num_batches + 1)]
        found = self.ranks.in_turn(num_batches, lambda it: self._search(pairs[ends[it] : ends[it + 1]]))
        losses, places = map(np.concatenate, zip(*self.ranks.from_first(found)))
        return {
            "loss": float(losses.mean()),
            "accuracy": float((places == 1).mean()),
            METRIC: float((1 / places).mean()),
        }

    def _search(self, pairs: Sequence[PairRecord]) -> tuple[list[float], list[int]]:
        """Return, for each query of a batch, the batch's mean loss and the rank of its own document."""
        batch = PairBatch.of(pairs, self.encoding)
        table = batch.embed(self.spread)
        both = (table[: len(pairs)], table[len(pairs) :], batch.related.to(table.device))
        loss = self.run.objective.loss(*both).item()
        return [loss] * len(pairs), ranks_of_positives(*both).tolist()

    def save_model(self, model: Pretrained, folder: Path) -> None:
        """Write a model as a folder of sentence-transformers."""
        model.save_pretrained(folder)
        prompts = self.run.prompts
        head = EmbeddingConfig(
            width=model.config.hidden_size,
            pooling=(self.run.pooling,),
            normalize=True,
            prompts={"query": prompts.query, "document": prompts.document},
        )
        sentence_folder.write(folder, EmbeddingHead(head))

    def conclude(self, best_step: int) -> Mapping[str, Mapping[str, float]]:
        """Measure the best model, and write it."""
        figures = {}
        if self.can_look:
            with self.measuring():
                figures = {"validation": self.look()}
        whole = self.spread.gathered()
        if whole is not None:
            shutil.rmtree(self.folder / MODEL, ignore_errors=True)  # that of an earlier call
            with files.atomic_folder(self.folder / MODEL) as temporary:
                self.save_with_tokenizer(whole, temporary)
            files.write_json(self.folder / RESULT, {"best_step": best_step, "figures": figures})
        self.ranks.meet()
        return figures


def _encoding(run: RetrieverRun, words: Tokenizer, most: int) -> PairEncoding:
    """Return how the run's texts become rows.

    Raises:
        ConfigError: A length is more than the model takes.
    """
    data = run.data
    sides = (
        ("query", data.query_length, run.prompts.query),
        ("document", data.document_length, run.prompts.document),
    )
    for side, length, _ in sides:
        if length > most:
            raise ConfigError(
                f"`data.{side}_length` is {length}; it must be at most {most}, which the model takes"
            )
    query, document = (partial(_ids, Texts(words, length), prompt) for _, length, prompt in sides)
    return PairEncoding(
        query=query, document=document, pooling=run.pooling, row_tokens=run.micro_batch_tokens
    )


def _ids(texts: Texts, prompt: str, plain: Sequence[str]) -> list[list[int]]:
    return texts.ids([prompt + text for text in plain])
