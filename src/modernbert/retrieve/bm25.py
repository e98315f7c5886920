"""BM25, Lucene's form of it, by the library bm25s: what every search by vectors has to be better than."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from modernbert.errors import BackendError, ConfigError, InputError
from modernbert.retrieve.exact import Hits, best


@dataclass(frozen=True, kw_only=True)
class Bm25Settings:
    """How BM25 counts.

    Attributes:
        words: `english`: without the stop words and by the Snowball stems of English; `plain`: as they are.
            Words are of two or more letters or digits, in lower case.
        k1: How much more a word counts that comes often.
        b: How much less words of long documents count, from 0 to 1.

    Raises:
        ConfigError: Settings out of range.
    """

    words: Literal["english", "plain"] = "english"
    k1: float = 1.5
    b: float = 0.75

    def __post_init__(self) -> None:
        if self.words not in ("english", "plain"):
            raise ConfigError(f"`words` is {self.words!r}; it must be `english` or `plain`")
        if self.k1 < 0 or not 0 <= self.b <= 1:
            raise ConfigError(f"k1 is {self.k1} and b {self.b}; k1 must be at least 0, b from 0 to 1")

    def __str__(self) -> str:
        kind = "English stop words and stems" if self.words == "english" else "plain words"
        return f"BM25: bm25s, k1 {self.k1:g}, b {self.b:g}, {kind}"


class Bm25:
    """An index of documents by their words.

    Args:
        documents: Read once; what is kept is a number a document and word.
        settings: How it counts.

    Raises:
        BackendError: bm25s or PyStemmer is not installed.
        InputError: No document has a word.
    """

    def __init__(self, documents: Iterable[str], settings: Bm25Settings) -> None:
        self._tokenizer = _tokenizer(settings)
        words = [np.array(ids, np.int32) for ids in self._ids(documents, update=True)]
        if not any(map(len, words)):
            raise InputError("no document has a word of two letters or more; BM25 needs some; leave it out")
        import bm25s

        self._index = bm25s.BM25(k1=settings.k1, b=settings.b)
        vocabulary = self._tokenizer.get_vocab_dict()
        self._index.index((words, vocabulary), create_empty_token=False, show_progress=False)

    def scores(self, query: str) -> NDArray[np.float32]:
        """Return the score of each document, fp32 [N]; 0 for one that shares no word with the query."""
        (ids,) = self._ids([query], update=False)
        found: NDArray[np.float32] = self._index.get_scores_from_ids(ids)
        return found

    def search(self, query: str, k: int) -> Hits:
        """Return the `k` best documents that share a word with the query."""
        places, scores = best(self.scores(query), k)
        return Hits(places[scores > 0], scores[scores > 0])

    def _ids(self, texts: Iterable[str], *, update: bool) -> Any:
        return self._tokenizer.streaming_tokenize(texts, update_vocab=update, allow_empty=False)


def _tokenizer(settings: Bm25Settings) -> Any:
    try:
        import bm25s  # noqa: F401
        import Stemmer
        from bm25s.tokenization import Tokenizer
    except ImportError as error:
        raise BackendError(
            f"BM25 needs bm25s and PyStemmer, and {error.name} is not installed; run `pip install "
            "'modernbert[retrieval]'`, or leave BM25 out"
        ) from None
    if settings.words == "plain":
        return Tokenizer(stopwords=[], stemmer=None)
    return Tokenizer(stopwords="english", stemmer=Stemmer.Stemmer("english"))
