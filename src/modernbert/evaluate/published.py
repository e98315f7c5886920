"""Published results that tables show beside ours; scores in percent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from modernbert.evaluate.suites import Size


@dataclass(frozen=True, kw_only=True)
class PublishedRow:
    """What a paper says of a model.

    Attributes:
        size: Beside whose models of ours it stands.
        parameters: As the paper writes them.
        scores: By the task's name; a task that the paper does not have is absent.
    """

    model: str
    size: Size
    parameters: str
    scores: Mapping[str, float]


_GLUE = ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte")


def _glue(model: str, size: Size, parameters: str, *scores: float) -> PublishedRow:
    return PublishedRow(model=model, size=size, parameters=parameters, scores=dict(zip(_GLUE, scores)))


def _ner(model: str, size: Size, parameters: str, **scores: float) -> PublishedRow:
    return PublishedRow(model=model, size=size, parameters=parameters, scores=scores)


PUBLISHED: Mapping[str, tuple[PublishedRow, ...]] = {
    # The ModernBERT paper, Table 5: dev sets. CoLA is Matthews', STS-B Spearman's correlation; which metric
    # MRPC and QQP have, and which dev set MNLI, the paper does not say.
    "glue": (
        _glue("BERT-base", "base", "110M", 59.0, 93.1, 89.5, 89.4, 91.4, 85.4, 91.6, 78.2),
        _glue("RoBERTa-base", "base", "125M", 63.6, 94.8, 90.2, 91.2, 91.9, 87.6, 92.8, 78.7),
        _glue("DeBERTaV3-base", "base", "183M", 69.2, 95.6, 89.5, 91.6, 92.4, 90.0, 94.0, 83.8),
        _glue("MosaicBERT-128-base", "base", "137M", 58.2, 93.5, 89.0, 90.3, 92.0, 85.6, 91.4, 83.0),
        _glue("NomicBERT-2048-base", "base", "137M", 50.0, 93.0, 88.0, 90.0, 92.0, 86.0, 92.0, 82.0),
        _glue("GTE-en-MLM-base", "base", "137M", 57.0, 93.4, 92.1, 90.2, 88.8, 86.7, 91.9, 84.8),
        _glue("ModernBERT-base", "base", "149M", 65.1, 96.0, 92.2, 91.8, 92.1, 89.1, 93.9, 87.4),
        _glue("BERT-large", "large", "330M", 56.2, 93.3, 87.8, 90.6, 90.9, 86.3, 92.8, 83.8),
        _glue("RoBERTa-large", "large", "355M", 68.0, 96.4, 90.9, 92.4, 92.2, 90.2, 94.7, 86.6),
        _glue("DeBERTaV3-large", "large", "434M", 75.3, 96.9, 92.2, 93.0, 93.3, 91.8, 96.0, 92.7),
        _glue("GTE-en-MLM-large", "large", "434M", 60.4, 95.1, 93.5, 91.4, 89.2, 89.2, 93.9, 88.1),
        _glue("ModernBERT-large", "large", "395M", 71.4, 97.1, 91.7, 92.8, 92.7, 90.8, 95.2, 92.1),
    ),
    # No dev scores of the five tasks are published for this family.
    "superglue": (),
    # Test sets. BERT: its paper, with the whole document as context. BERTweet: its paper.
    "ner": (
        _ner("BERT-base", "base", "110M", conll2003=92.4),
        _ner("BERTweet", "base", "135M", wnut17=56.5),
        _ner("BERT-large", "large", "340M", conll2003=92.8),
    ),
}
