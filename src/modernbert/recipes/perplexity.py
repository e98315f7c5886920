"""Masked loss and pseudo-perplexity of any masked-LM checkpoint on any text."""

from __future__ import annotations

from collections.abc import Sequence

from modernbert import runtime
from modernbert.data.corpus import TextUnit, find_files, read_documents
from modernbert.data.masking import Masker, MaskingSettings
from modernbert.data.source import NUM_SPECIAL
from modernbert.data.tokenizer import Tokenizer
from modernbert.data.windows import cut_stretches
from modernbert.errors import InputError
from modernbert.model.heads import ModernBertForMaskedLM
from modernbert.runtime import Precision
from modernbert.train.evaluation import LengthEvaluation, LengthProbe, LengthSettings

ROW_TOKENS = 8192


def measure_perplexity(
    model: str,
    paths: Sequence[str],
    settings: LengthSettings,
    *,
    mask_rate: float = 0.15,
    device: str = "auto",
    precision: Precision = "auto",
    text_key: str = "text",
    text_unit: TextUnit = "line",
    max_document_bytes: int = 4_000_000,
) -> list[LengthEvaluation]:
    """Measure a model at each length, on the first documents of the text.

    At a single length all documents count, long ones in windows. At several, only those that are as long as
    the longest, lest the lengths are compared on different text.

    Args:
        model: Folder or hub id.
        paths: Text files, or folders of them.
        settings: Lengths, stride, and how much text.
        mask_rate: Share of tokens that the masked loss predicts.
        device: Where to compute.
        precision: Of the forward pass.
        text_key: Name of the text in JSON lines and Parquet.
        text_unit: What a document is in a `.txt` file.
        max_document_bytes: A larger document is an error.

    Raises:
        InputError: The text cannot be read, or no document is long enough.
        CheckpointError: The model cannot be loaded, or has no masked-LM head.
    """
    words = Tokenizer.from_pretrained(model)
    documents = read_documents(
        find_files(paths), text_key=text_key, text_unit=text_unit, max_document_bytes=max_document_bytes
    )
    stretches = list(
        cut_stretches(
            (words.encode_batch([it.text], special=False, literal=True)[0] for it in documents),
            width=max(settings.lengths) - NUM_SPECIAL,
            max_tokens=settings.max_tokens,
            takes_short=len(settings.lengths) == 1,
        )
    )
    if not stretches:
        raise InputError(
            f"no document has {max(settings.lengths) - NUM_SPECIAL} tokens; to compare lengths up to "
            f"{max(settings.lengths)}, at least one must; leave that length out, or give longer documents"
        )
    on = runtime.choose_device(device)
    probe = LengthProbe(
        stretches,
        settings,
        Masker(words, MaskingSettings(), seed=0),
        mask_rate=mask_rate,
        special=(words.cls_id, words.sep_id, words.mask_id),
        row_tokens=ROW_TOKENS,
    )
    return probe.measure(
        ModernBertForMaskedLM.from_pretrained(model, device=on).eval(), device=on, precision=precision
    )
