"""Late chunking: vectors of a document's parts, each computed with the whole document in view."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from modernbert.data.sentences import sentence_starts
from modernbert.errors import InputError
from modernbert.infer.arguments import check_count
from modernbert.infer.embedding_head import EmbeddingHead
from modernbert.infer.outputs import per_token
from modernbert.infer.runner import Runner
from modernbert.infer.task import Prepared, Task
from modernbert.infer.texts import Pieces, Texts
from modernbert.infer.windows import Span, owned, windows

Row = npt.NDArray[Any]
MAX_CHUNK_TOKENS = 256
# A document that is too long for the model is read in windows that share a quarter of their tokens.
OVERLAP = 4


class Chunk(TypedDict):
    """A part of a text: `text[start:end]` of it, and its embedding, fp32 `[E]`."""

    text: str
    start: int
    end: int
    embedding: Row


@dataclass(frozen=True)
class _Document:
    """A tokenised text: where its chunks begin, and which tokens each window answers for.

    Attributes:
        text: As it was given.
        cuts: First token of each chunk and, last, the number of tokens.
        starts: First character of each chunk and, last, the number of characters.
        spans: Tokens of each window.
        lead: Tokens before the document's own in each window: the special one and the prompt's.
    """

    text: str
    cuts: list[int]
    starts: list[int]
    spans: list[Span]
    lead: int


class EmbedChunks(Task[str, Row, list[Chunk]]):
    """Embed texts in chunks, whole sentences of at most `max_chunk_tokens` tokens.

    A chunk's vector is the mean of the hidden states of its own tokens, then what follows the pooling in
    the head. A sentence that is too long is cut between words, a word that is too long between characters.
    A document beyond the model's longest sequence is read in overlapping windows; each token's state comes
    from the window that shows most of what is around it. An empty text has no chunks; those of any other are
    all of it, in order, with the space after each.

    Args:
        runner: Of an encoder without a head.
        texts: The model's tokenizer and longest sequence.
        head: Moved to the runner's device.
        max_chunk_tokens: Most tokens of a chunk; one character that is more tokens stays whole.
        prompt: Seen before the document in each window, and part of no chunk.
        normalize_embeddings: Scale what is returned to length 1, after any truncation.
        truncate_dim: Leading dimensions to keep; None: as the head's configuration says.

    Raises:
        ConfigError: The head's dense layers do not fit the mean, as it pools in several ways.
        InputError: A number out of range.
    """

    def __init__(
        self,
        runner: Runner,
        texts: Texts,
        head: EmbeddingHead,
        *,
        max_chunk_tokens: int = MAX_CHUNK_TOKENS,
        prompt: str = "",
        normalize_embeddings: bool = False,
        truncate_dim: int | None = None,
    ) -> None:
        check_count("max_chunk_tokens", max_chunk_tokens)
        if truncate_dim is not None:
            check_count("truncate_dim", truncate_dim)
        head.config.checked_pooling("mean")
        self.runner = runner
        self.texts = texts
        self.head = head.to(runner.device)
        self.max_chunk_tokens = max_chunk_tokens
        self.prompt = prompt
        self.normalize_embeddings = normalize_embeddings
        self.truncate_dim = head.config.truncate_dim if truncate_dim is None else truncate_dim

    def prepare(self, inputs: list[str], first: int) -> list[Prepared]:
        clean = self.texts.clean(inputs, first)
        pieces = self.texts.pieces([self.prompt + text for text in clean], first=first)
        return [self._prepare(text, whole) for text, whole in zip(inputs, pieces)]

    def compute(self, sequences: list[list[int]]) -> list[Row]:
        return list(per_token(self.runner, sequences))

    @torch.inference_mode()
    def finish(self, prepared: Prepared, outputs: list[Row]) -> list[Chunk]:
        document: _Document = prepared.context
        if not outputs:
            return []
        states = np.concatenate(
            [
                output[document.lead + start - seen : document.lead + end - seen]
                for output, (seen, _), (start, end) in zip(outputs, document.spans, owned(document.spans))
            ]
        )
        means = [states[start:end].mean(axis=0) for start, end in zip(document.cuts, document.cuts[1:])]
        return [
            Chunk(text=document.text[start:end], start=start, end=end, embedding=embedding)
            for start, end, embedding in zip(
                document.starts, document.starts[1:], self._project(np.stack(means))
            )
        ]

    def _prepare(self, text: str, whole: Pieces) -> Prepared:
        """Part a text from its prompt, into chunks, and into windows."""
        shift = len(self.prompt)
        num_prompt = bisect_right(whole.offsets, shift, key=itemgetter(1)) if shift else 0
        prompt, ids = whole.ids[:num_prompt], whole.ids[num_prompt:]
        if not ids:
            return Prepared([])
        room = self.texts.max_length - self.texts.num_special - num_prompt
        if room < 1:
            raise InputError(
                f"the prompt has {num_prompt} tokens, which leaves no room for text in a sequence of "
                f"{self.texts.max_length}; it must be shorter; shorten it, or allow more tokens"
            )
        offsets = [(start - shift, end - shift) for start, end in whole.offsets[num_prompt:]]
        cuts = chunk_cuts(text, offsets, self.max_chunk_tokens)
        spans = windows(len(ids), room, room // OVERLAP)
        sequences = [self.texts.surround([*prompt, *ids[start:end]]) for start, end in spans]
        starts = [0, *(offsets[cut][0] for cut in cuts[1:-1]), len(text)]
        lead = self.texts.surround([-1]).index(-1) + num_prompt
        return Prepared(sequences, _Document(text, cuts, starts, spans, lead))

    def _project(self, means: Row) -> Row:
        pooled = torch.from_numpy(means).to(self.runner.device)
        embeddings = self.head.project(pooled)[:, : self.truncate_dim]
        if self.normalize_embeddings:
            embeddings = functional.normalize(embeddings, dim=-1)
        projected: Row = embeddings.cpu().numpy()
        return projected


def chunk_cuts(text: str, offsets: Sequence[tuple[int, int]], most: int) -> list[int]:
    """Part a text's tokens into chunks, each as long as it can be.

    Args:
        text: The text.
        offsets: First character of each token and the one after its last; at least one token.
        most: Most tokens of a chunk.

    Returns:
        First token of each chunk and, last, the number of tokens.
    """
    characters = _character_starts(offsets)
    begins = [offsets[token][0] for token in characters]
    words = [
        token
        for token, begin in zip(characters, begins)
        if text[begin - 1].isspace() and not text[begin].isspace()
    ]
    places = (bisect_left(begins, start) for start in sentence_starts(text)[1:])
    sentences = [characters[place] for place in places if place < len(characters)]
    cuts = [0]
    while len(offsets) - cuts[-1] > most:
        found = (_last_within(choices, cuts[-1], most) for choices in (sentences, words, characters))
        # Where even one character is too long, it stays whole.
        cut = next((cut for cut in found if cut), None) or _first_after(characters, cuts[-1])
        if cut is None:
            break
        cuts.append(cut)
    return [*cuts, len(offsets)]


def _character_starts(offsets: Sequence[tuple[int, int]]) -> list[int]:
    """Return the tokens before which a text can be cut: they begin where all before them have ended."""
    starts, reach = [], 1
    for token, (start, end) in enumerate(offsets):
        if start >= reach:
            starts.append(token)
        reach = max(reach, end)
    return starts


def _last_within(choices: list[int], cut: int, most: int) -> int | None:
    """Return the last choice that leaves a chunk of at most `most` tokens after `cut`."""
    place = bisect_right(choices, cut + most)
    return choices[place - 1] if place and choices[place - 1] > cut else None


def _first_after(choices: list[int], cut: int) -> int | None:
    place = bisect_right(choices, cut)
    return choices[place] if place < len(choices) else None
