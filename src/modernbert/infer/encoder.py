"""The public object: a loaded model and every use of it. `modernbert.load` makes one.

A single input gives a single result, a list (also a tuple, an array, a column) a list, and an iterator an
iterator, which computes as it is asked.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from pathlib import Path
from typing import Any, Unpack

import numpy as np
from torch import Tensor

from modernbert import telemetry
from modernbert.data.tokenizer import Tokenizer
from modernbert.errors import InputError
from modernbert.infer.answer import Answer, AnswerOptions
from modernbert.infer.arguments import is_dict, is_pair, is_text, is_text_or_dict
from modernbert.infer.choose import Choose
from modernbert.infer.chunking import MAX_CHUNK_TOKENS, EmbedChunks
from modernbert.infer.classify import Classify
from modernbert.infer.embedding import Embed, EmbedOptions, EncodeOptions, Role, choose_prompt
from modernbert.infer.embedding_head import EmbeddingConfig, EmbeddingHead
from modernbert.infer.engine import Engine
from modernbert.infer.fill_mask import FillMask
from modernbert.infer.rank import Score, ranked
from modernbert.infer.runner import Runner
from modernbert.infer.sentence_folder import write as write_sentence_folder
from modernbert.infer.similarity import Embeddings, similarity, similarity_pairwise
from modernbert.infer.tag import Tag
from modernbert.infer.task import Task
from modernbert.infer.texts import Texts
from modernbert.infer.zero_shot import ZeroShot
from modernbert.model.checkpoint import Pretrained
from modernbert.model.config import EncoderConfig

_NEEDS = {
    "fill_mask": "ModernBertForMaskedLM",
    "classify": "ModernBertForSequenceClassification",
    "predict": "ModernBertForSequenceClassification",
    "rank": "ModernBertForSequenceClassification",
    "zero_shot": "ModernBertForSequenceClassification",
    "tag": "ModernBertForTokenClassification",
    "answer": "ModernBertForQuestionAnswering",
    "choose": "ModernBertForMultipleChoice",
}
"""The head that each method needs. `encode` and its kin take the encoder of any."""


class Encoder:
    """A model with its tokenizer, ready for use.

    Args:
        name: What it was loaded from.
        folder: Where its files are; None: random weights.
        architecture: Of `modernbert.model.heads.HEADS`.
        runner: Runs the model, head and all.
        encoder_runner: Runs the encoder alone; None where there is only a file of the whole.
        texts: Tokenizer and longest sequence.
        embedding_head: What makes embeddings of hidden states.
        activation: Of a cross-encoder's scores, see `modernbert.infer.rank.activation_of`.
        engine: Batches the work.
    """

    def __init__(
        self,
        *,
        name: str,
        folder: Path | None = None,
        architecture: str,
        runner: Runner,
        encoder_runner: Runner | None,
        texts: Texts,
        embedding_head: EmbeddingHead,
        activation: str | None,
        engine: Engine,
    ) -> None:
        self.name = name
        self.folder = folder
        self.architecture = architecture
        self.runner = runner
        self.encoder_runner = encoder_runner
        self.texts = texts
        self.embedding_head = embedding_head
        self.activation = activation
        self.engine = engine

    @property
    def config(self) -> EncoderConfig:
        """The model's configuration; `config.head.labels` names a classifier's labels."""
        return self.runner.config

    @property
    def tokenizer(self) -> Tokenizer:
        return self.texts.tokenizer

    @property
    def embedding_config(self) -> EmbeddingConfig:
        """How embeddings are made; `prompts` names the model's prompts."""
        return self.embedding_head.config

    @property
    def is_cross_encoder(self) -> bool:
        """Whether it scores pairs of texts, with `predict` and `rank`."""
        return self.architecture == _NEEDS["rank"]

    @property
    def max_length(self) -> int:
        """Tokens of the longest sequence, special ones counted."""
        return self.texts.max_length

    @property
    def embedding_dim(self) -> int:
        """Numbers in an embedding."""
        return self.embedding_config.embedding_dim

    def fill_mask(self, text: Any, *, top_k: int = 5, targets: str | Sequence[str] | None = None) -> Any:
        """Propose tokens for each mask, as transformers' `fill-mask` pipeline.

        Args:
            text: Text or texts with the mask token where a word is missing.
            top_k: Proposals for each mask.
            targets: Propose these words only.

        Returns:
            For a text with one mask a list of `{"score", "token", "token_str", "sequence"}`, the likeliest
            first; with several masks, one such list for each.

        Raises:
            InputError: A text without a mask, too long, or no string; or an argument out of range.
        """
        runner = self._runner("fill_mask")
        return self._serve(FillMask(runner, self.texts, top_k=top_k, targets=targets), text, is_text)

    def encode(self, inputs: Any, **options: Unpack[EncodeOptions]) -> Any:
        """Embed texts, as sentence-transformers' `encode`.

        Args:
            inputs: Text or texts.
            **options: See `modernbert.infer.embedding.EncodeOptions`.

        Returns:
            fp32 `[E]` for a text, `[N, E]` for several; from an iterator an iterator of `[E]`. With
            `output_value="token_embeddings"`, `[tokens, D]` each.

        Raises:
            InputError: What is no string, or an argument out of range.
            ConfigError: An unknown pooling or prompt.
        """
        return self._encode(inputs, None, **options)

    def encode_query(self, inputs: Any, **options: Unpack[EncodeOptions]) -> Any:
        """Embed queries: `encode` with the model's prompt `query`."""
        return self._encode(inputs, "query", **options)

    def encode_document(self, inputs: Any, **options: Unpack[EncodeOptions]) -> Any:
        """Embed documents: `encode` with the model's prompt `document`."""
        return self._encode(inputs, "document", **options)

    def encode_chunks(
        self,
        inputs: Any,
        *,
        max_chunk_tokens: int = MAX_CHUNK_TOKENS,
        prompt_name: str | None = None,
        prompt: str | None = None,
        normalize_embeddings: bool = False,
        truncate_dim: int | None = None,
    ) -> Any:
        """Embed documents in chunks of whole sentences, each with the whole document in view (late chunking).

        Documents longer than the model's longest sequence are read in overlapping windows.

        Args:
            inputs: Text or texts, of any length.
            max_chunk_tokens: Most tokens of a chunk.
            prompt_name: Name of one of the model's prompts; the default is `document`.
            prompt: The prompt itself.
            normalize_embeddings: Scale each vector to length 1.
            truncate_dim: Leading dimensions to keep.

        Returns:
            For each text a list of `{"text", "start", "end", "embedding"}`, which cover the text without gap.
        """
        chosen = choose_prompt(self.embedding_config, prompt=prompt, prompt_name=prompt_name, role="document")
        task = EmbedChunks(
            self._encoder_runner("encode_chunks"),
            self.texts,
            self.embedding_head,
            max_chunk_tokens=max_chunk_tokens,
            prompt=chosen,
            normalize_embeddings=normalize_embeddings,
            truncate_dim=truncate_dim,
        )
        return self._serve(task, inputs, is_text)

    def similarity(self, embeddings1: Embeddings, embeddings2: Embeddings) -> Tensor:
        """Compare each embedding with each other one, `[N, M]`, by the model's similarity."""
        return similarity(embeddings1, embeddings2, self.embedding_config.similarity)

    def similarity_pairwise(self, embeddings1: Embeddings, embeddings2: Embeddings) -> Tensor:
        """Compare embeddings in the same place, `[N]`, by the model's similarity."""
        return similarity_pairwise(embeddings1, embeddings2, self.embedding_config.similarity)

    def classify(self, inputs: Any, *, top_k: int | None = 1, function_to_apply: str | None = None) -> Any:
        """Classify texts or pairs of texts, as transformers' `text-classification` pipeline.

        Args:
            inputs: Text or texts, or dicts with `text` and `text_pair`; in a list also pairs of texts.
            top_k: How many labels, the best first; None: all.
            function_to_apply: `softmax`, `sigmoid` or `none` (the raw scores); None: what the model's
                `problem_type` asks for.

        Returns:
            A list of `{"label", "score"}` for each input.
        """
        runner = self._runner("classify")
        task = Classify(runner, self.texts, top_k=top_k, function_to_apply=function_to_apply)
        return self._serve(task, inputs, is_text_or_dict)

    def tag(
        self,
        inputs: Any,
        *,
        aggregation_strategy: str = "simple",
        ignore_labels: Sequence[str] = ("O",),
        stride: int | None = None,
    ) -> Any:
        """Label the tokens of texts, as transformers' `token-classification` pipeline.

        Long texts are read in overlapping windows. Offsets never include the space before a word.

        Args:
            inputs: Text or texts; in a list also lists of words, each of which gets its label.
            aggregation_strategy: `none`, `simple`, `first`, `average` or `max`.
            ignore_labels: Labels that are left out of the result.
            stride: Tokens that two windows share; None: a quarter.

        Returns:
            A list of `{"entity_group", "score", "word", "start", "end"}` for each input; with `none`, of
            `{"entity", "score", "index", "word", "start", "end"}`.
        """
        task = Tag(
            self._runner("tag"),
            self.texts,
            aggregation_strategy=aggregation_strategy,
            ignore_labels=ignore_labels,
            stride=stride,
        )
        return self._serve(task, inputs, is_text)

    def answer(self, question: Any, context: str | None = None, **options: Unpack[AnswerOptions]) -> Any:
        """Find the answer to a question in a text of any length.

        Args:
            question: The question; or, without `context`, a dict with `question` and `context`, or several
                dicts or pairs.
            context: Where the answer is.
            **options: See `modernbert.infer.answer.AnswerOptions`.

        Returns:
            `{"score", "start", "end", "answer"}`, in characters of the context; a list of them if `top_k` is
            above 1.
        """
        task = Answer(self._runner("answer"), self.texts, **options)
        if context is not None:
            question = {"question": question, "context": context}
        return self._serve(task, question, is_dict)

    def choose(self, prompt: Any, choices: Sequence[str] | None = None) -> Any:
        """Choose the best continuation of a prompt, or the answer to a question.

        Args:
            prompt: The prompt; or, without `choices`, a dict with `prompt` and `choices`, or several dicts or
                pairs.
            choices: At least one text.

        Returns:
            `{"choice", "text", "scores"}`: the index of the best, its text, and probabilities of all.
        """
        task = Choose(self._runner("choose"), self.texts)
        return self._serve(
            task, prompt if choices is None else {"prompt": prompt, "choices": choices}, is_dict
        )

    def predict(self, pairs: Any, *, activation: str | None = None) -> Any:
        """Score pairs of texts, as sentence-transformers' `CrossEncoder.predict`.

        Args:
            pairs: A pair of texts, or several in a list or iterator.
            activation: Of `modernbert.infer.rank.ACTIVATIONS`, on fp32 scores; None: the model's own.

        Returns:
            float32 scalar for a pair, `[N]` for several, `[N, L]` from a model with several labels.
        """
        task = Score(self._runner("predict"), self.texts, activation=activation or self.activation)
        scores = self._serve(task, pairs, is_pair)
        return np.array(scores, dtype=np.float32) if isinstance(scores, list) else scores

    def rank(
        self,
        query: str,
        documents: Sequence[str],
        *,
        top_k: int | None = None,
        return_documents: bool = False,
        activation: str | None = None,
    ) -> list[dict[str, Any]]:
        """Rank documents for a query, as sentence-transformers' `CrossEncoder.rank`.

        Args:
            query: What is asked.
            documents: The texts to rank.
            top_k: How many to return; None: all.
            return_documents: Add each document's `text`.
            activation: As for `predict`.

        Returns:
            `{"corpus_id", "score"}` for each, the best first.
        """
        if isinstance(documents, str | bytes):
            raise InputError(f"`documents` is one text, {documents[:60]!r}; it must be several; make a list")
        documents = list(documents)
        scores = self.predict([(query, document) for document in documents], activation=activation)
        return ranked(scores, documents, top_k=top_k, return_documents=return_documents)

    def zero_shot(
        self,
        inputs: Any,
        candidate_labels: str | Sequence[str],
        *,
        hypothesis_template: str = "This example is {}.",
        multi_label: bool = False,
    ) -> Any:
        """Classify by labels that the model was not trained on, as transformers' `zero-shot-classification`.

        Args:
            inputs: Text or texts.
            candidate_labels: The labels, in a list or with commas between.
            hypothesis_template: A sentence with `{}` where the label goes.
            multi_label: Score each label on its own, so that several may hold.

        Returns:
            `{"sequence", "labels", "scores"}`, the best label first.
        """
        task = ZeroShot(
            self._runner("zero_shot"),
            self.texts,
            candidate_labels=candidate_labels,
            hypothesis_template=hypothesis_template,
            multi_label=multi_label,
        )
        return self._serve(task, inputs, is_text)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write model, tokenizer and embedding modules: a folder that sentence-transformers loads too.

        Raises:
            InputError: The weights are in a form that only serves inference; load with `backend="portable"`.
            StorageError: The disk is full or not writable.
        """
        self.save_checkpoint(folder)
        write_sentence_folder(Path(folder), self.embedding_head)

    def save_checkpoint(self, folder: str | Path) -> None:
        """Write model and tokenizer alone; for errors see `save_pretrained`."""
        model = getattr(self.runner, "model", None)
        if not isinstance(model, Pretrained) or not isinstance(getattr(model, "model", model), Pretrained):
            raise InputError(
                f"the model was loaded for inference, its weights packed; to be saved it must be plain; "
                f'load `{self.name}` with `backend="portable"`'
            )
        target = Path(folder)
        model.save_pretrained(target)
        self.tokenizer.save_pretrained(target, model_max_length=self.max_length)

    def _encode(
        self,
        inputs: Any,
        role: Role | None,
        *,
        prompt_name: str | None = None,
        prompt: str | None = None,
        show_progress_bar: bool = False,
        batch_size: int = 0,
        **options: Unpack[EmbedOptions],
    ) -> Any:
        chosen = choose_prompt(self.embedding_config, prompt=prompt, prompt_name=prompt_name, role=role)
        runner = self._encoder_runner("encode")
        task = Embed(runner, self.texts, self.embedding_head, prompt=chosen, **options)
        results = self._serve(task, inputs, is_text, title="encode" if show_progress_bar else None)
        if isinstance(results, Iterator):
            return (task.gather([row])[0] for row in results)
        return task.gather([results])[0] if is_text(inputs) else task.gather(results)

    def _serve(
        self, task: Task[Any, Any, Any], inputs: Any, is_one: Callable[[Any], bool], title: str | None = None
    ) -> Any:
        """Run a task on one input, on an iterator of them, or on several, if titled with a progress bar."""
        if is_one(inputs):
            return next(self.engine.run(task, [inputs]))
        # A table of columns would give their names.
        is_table = isinstance(inputs, Mapping) or hasattr(inputs, "columns")
        if isinstance(inputs, bytes) or is_table or not isinstance(inputs, Iterable):
            shown = f"{reprlib.repr(inputs)} ({type(inputs).__name__})"
            raise InputError(f"the input is {shown}; it must be text, a list, a column or an iterator")
        results = self.engine.run(task, inputs)
        if isinstance(inputs, Iterator):
            return results
        return list(results) if title is None else list(_shown(results, title, inputs))

    def _runner(self, method: str) -> Runner:
        needed = _NEEDS[method]
        if self.architecture != needed:
            raise InputError(
                f"`{self.name}` is a `{self.architecture}`; `{method}` needs a `{needed}`; load a checkpoint "
                "with that head, or fine-tune one"
            )
        return self.runner

    def _encoder_runner(self, method: str) -> Runner:
        if self.encoder_runner is None:
            raise InputError(
                f"`{self.name}` was exported with the head of a `{self.architecture}`; `{method}` needs "
                "hidden states; export the encoder alone, or load the checkpoint with another backend"
            )
        return self.encoder_runner


def _shown(results: Iterator[Any], title: str, inputs: Iterable[Any]) -> Iterator[Any]:
    """Pass results on, and show how many of all have come."""
    total = len(inputs) if isinstance(inputs, Sized) else None
    with telemetry.progress(title, total, "texts") as meter:
        for result in results:
            meter.advance(1)
            yield result
