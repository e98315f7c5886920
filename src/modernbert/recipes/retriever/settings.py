"""The schema of a run that trains a retriever."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from modernbert import config
from modernbert.data.columns import PairColumns
from modernbert.data.corpus import TextUnit
from modernbert.data.text_pairs import PairSettings
from modernbert.recipes.tuning.settings import TuningRun, require
from modernbert.train.contrastive import InBatchNegatives


@dataclass(frozen=True, kw_only=True)
class PairData:
    """Which pairs: those of files, those that a corpus gives, or both.

    Attributes:
        pairs: Files with a query and what it should find in each row.
        corpus: Text files, folders of them or URLs, whose documents give pairs by themselves; others in each
            epoch.
        validation: File of pairs by which the best checkpoint is chosen; null: a part of the others.
        held_out: Share of queries, and of the corpus's documents, that becomes the validation where there is
            no file for it; 0: there is none, and the last checkpoint is the best.
        columns: Which column of the files is what; those that are not given are guessed by their names.
        text_key: Name of the text in a corpus of JSON lines or Parquet.
        text_unit: What a document is in a `.txt` file.
        drawn: Which pairs a document gives.
        max_corpus_pairs: An epoch has at most so many pairs of the corpus, drawn at random; they are held in
            memory.
        query_length: Tokens beyond which queries are cut, prompt included.
        document_length: Tokens beyond which documents are.
    """

    pairs: tuple[str, ...] = ()
    corpus: tuple[str, ...] = ()
    validation: str | None = None
    held_out: float = 0.01
    columns: PairColumns = field(default_factory=PairColumns)
    text_key: str = "text"
    text_unit: TextUnit = "file"
    drawn: PairSettings = field(default_factory=PairSettings)
    max_corpus_pairs: int = 1_000_000
    query_length: int = 64
    document_length: int = 256

    def __post_init__(self) -> None:
        require(
            "pairs", list(self.pairs), bool(self.pairs or self.corpus), "a file, where no `corpus` is given"
        )
        require("held_out", self.held_out, 0 <= self.held_out < 1, "at least 0 and below 1")
        for key in ("query_length", "document_length"):
            require(key, getattr(self, key), getattr(self, key) >= 8, "at least 8")
        require("max_corpus_pairs", self.max_corpus_pairs, self.max_corpus_pairs >= 1, "at least 1")
        if self.validation is not None:
            is_idle = self.held_out in (0, PairData.held_out)
            require("held_out", self.held_out, is_idle, "left out beside a `validation`")

    @property
    def has_validation(self) -> bool:
        """Whether there is something by which checkpoints can be compared."""
        return self.validation is not None or self.held_out > 0


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """What is put before each text; the model that comes out has them as its prompts.

    Attributes:
        query: Before queries.
        document: Before documents.
    """

    query: str = ""
    document: str = ""


@dataclass(frozen=True, kw_only=True)
class RetrieverRun(TuningRun):
    """One run from a checkpoint to a model whose vectors find one another. A step's examples are pairs.

    Attributes:
        data: Which pairs.
        pooling: How a text's hidden states become its vector: their mean, or the first one.
        prompts: What is put before queries and documents.
        temperature: What the cosines are divided by.
        symmetric: Documents are to find their queries, too.
    """

    data: PairData
    pooling: Literal["mean", "cls"] = "mean"
    prompts: Prompts = field(default_factory=Prompts)
    temperature: float = 0.05
    symmetric: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.objective  # which checks its settings
        require("tuning.batch_size", self.tuning.batch_size, self.tuning.batch_size >= 2, "at least 2")
        self.selection.check_against(has_validation=self.data.has_validation)

    @property
    def objective(self) -> InBatchNegatives:
        """What is minimised."""
        return InBatchNegatives(temperature=self.temperature, symmetric=self.symmetric)


def read_run(path: Path, overrides: Iterable[str] = ()) -> RetrieverRun:
    """Read a run file; `a.b=c` overrides count before it.

    Raises:
        ConfigError: The file is missing, or a setting is unknown, missing or does not fit.
    """
    return config.build(RetrieverRun, config.override(config.load(path), overrides))
