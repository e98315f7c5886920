"""Fill the masks of a text, with the result of transformers' `fill-mask` pipeline."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, overload

import torch
from torch import Tensor

from modernbert.data.tokenizer import Tokenizer
from modernbert.errors import InputError
from modernbert.layout import pack
from modernbert.model.config import PRESETS, EncoderConfig
from modernbert.model.heads import ModernBertForMaskedLM
from modernbert.model.init import initialise
from modernbert.runtime import Precision, autocast, choose_device

Fill = dict[str, Any]
Fills = list[Fill] | list[list[Fill]]

# Texts share a forward pass up to this many tokens: enough to fill a CPU, little enough to fit anywhere.
TOKENS_AT_ONCE = 16_384


class FillMask:
    """A masked language model with its tokenizer.

    Args:
        model: Stays in eval mode and on its device.
        tokenizer: The one that the model was trained with.
        precision: Of the forward pass, see `modernbert.runtime.autocast`.

    Raises:
        ConfigError: The tokenizer's vocabulary does not fit the model.
    """

    def __init__(
        self, model: ModernBertForMaskedLM, tokenizer: Tokenizer, precision: Precision = "auto"
    ) -> None:
        tokenizer.check_fits(model.config.vocab_size)
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.precision = precision

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        tokenizer: str | Path | None = None,
        revision: str | None = None,
        local_files_only: bool = False,
        device: str | None = None,
        precision: Precision = "auto",
        backend: str = "auto",
    ) -> FillMask:
        """Load a folder or hub id; or a preset's name, which gives random weights, to try a shape out.

        Args:
            name: Folder, hub id or preset.
            tokenizer: Folder or hub id of the tokenizer; that of the model if None, which a preset has not.
            revision: Branch, tag or commit of `name` on the hub.
            local_files_only: Use what the hub's cache holds and ask nobody.
            device: Where to compute; the best there is if None.
            precision: Of the forward pass.
            backend: Attention backend, see `modernbert.ops.attention.BACKENDS`.

        Raises:
            CheckpointError: The model cannot be found or read, or the tokenizer cannot be found.
            InputError: The tokenizer cannot be read.
        """
        target = choose_device(device)
        preset = str(name) in PRESETS and not Path(name).is_dir()
        if preset and tokenizer is None:
            raise InputError(
                f"the preset `{name}` has random weights and no tokenizer; name one as `tokenizer`"
            )
        words = Tokenizer.from_pretrained(
            name if tokenizer is None else tokenizer,
            revision=revision if tokenizer is None else None,  # another repository has other revisions
            local_files_only=local_files_only,
        )
        if preset:
            model = _random_model(str(name), words)
        else:
            model = ModernBertForMaskedLM.from_pretrained(
                name, revision=revision, local_files_only=local_files_only
            )
        model.model.backend = backend
        return cls(model.to(target), words, precision)

    @overload
    def __call__(self, texts: str, *, top_k: int = 5) -> Fills: ...

    @overload
    def __call__(self, texts: list[str] | tuple[str, ...], *, top_k: int = 5) -> list[Fills]: ...

    def __call__(self, texts: str | list[str] | tuple[str, ...], *, top_k: int = 5) -> Fills | list[Fills]:
        """Fill every mask of every text.

        Args:
            texts: One text, or several; each with at least one mask token.
            top_k: How many tokens to propose for each mask, the likeliest first.

        Returns:
            For a text with one mask, `top_k` proposals with `score` (probability), `token` (id), `token_str`
            and `sequence`; with several masks a list of these lists, one a mask, each mask filled alone.
            For several texts, a list of such results.

        Raises:
            InputError: A text without a mask or too long, or `top_k` out of range.
        """
        if isinstance(texts, str):
            return self([texts], top_k=top_k)[0]
        if not 1 <= top_k <= self.tokenizer.vocab_size:
            raise InputError(f"`top_k` is {top_k}; it must be from 1 to {self.tokenizer.vocab_size}")
        encoded = self.tokenizer.encode_batch(texts)
        for ids, text in zip(encoded, texts, strict=True):
            self._check(ids, text)
        return [fills for batch in _batches(encoded) for fills in self._fill(batch, top_k)]

    def _check(self, ids: list[int], text: str) -> None:
        limit = self.model.config.max_position_embeddings
        shown = text if len(text) <= 60 else f"{text[:60]}…"
        if self.tokenizer.mask_id not in ids:
            mask = self.tokenizer.token(self.tokenizer.mask_id)
            raise InputError(
                f"`{shown}` has no mask; it must have at least one; write {mask} where a word is missing"
            )
        if len(ids) > limit:
            raise InputError(f"`{shown}` has {len(ids)} tokens; this model takes at most {limit}; shorten it")

    @torch.no_grad()
    def _fill(self, batch: list[list[int]], top_k: int) -> Iterator[Fills]:
        device = self.model.decoder.weight.device
        ids, layout = pack(batch)
        positions = (ids == self.tokenizer.mask_id).nonzero().squeeze(1)
        with autocast(device, self.precision):
            logits = self.model(ids.to(device), layout.to(device), positions.to(device))
        named = logits.float().softmax(dim=-1)[:, : self.tokenizer.vocab_size]  # a model may have spare rows
        scores, tokens = (x.cpu() for x in named.topk(top_k))
        owners = layout.sequence_ids[positions]
        for index, sequence in enumerate(batch):
            mine = owners == index
            yield self._describe(sequence, scores[mine], tokens[mine])

    def _describe(self, ids: list[int], scores: Tensor, tokens: Tensor) -> Fills:
        """Write out the proposals for each mask of one text."""
        places = [place for place, token in enumerate(ids) if token == self.tokenizer.mask_id]
        alone = len(places) == 1  # with several masks the others must stay visible

        def sequence(place: int, token: int) -> str:
            filled = [*ids[:place], token, *ids[place + 1 :]]
            kept = [id for id in filled if id != self.tokenizer.pad_id]  # as the pipeline does
            return self.tokenizer.decode(kept, skip_special=alone)

        fills = [
            [
                {
                    "score": score,
                    "token": token,
                    "token_str": self.tokenizer.decode([token], skip_special=False),
                    "sequence": sequence(place, token),
                }
                for score, token in zip(row_scores, row_tokens, strict=True)
            ]
            for place, row_scores, row_tokens in zip(places, scores.tolist(), tokens.tolist(), strict=True)
        ]
        return fills[0] if alone else fills


def _random_model(preset: str, words: Tokenizer) -> ModernBertForMaskedLM:
    """Build a preset for the vocabulary of a tokenizer."""
    shape = EncoderConfig.preset(
        preset,
        vocab_size=words.vocab_size,
        pad_token_id=words.pad_id,
        cls_token_id=words.cls_id,
        sep_token_id=words.sep_id,
    )
    model = ModernBertForMaskedLM(shape)
    initialise(model, seed=0)
    return model


def _batches(encoded: list[list[int]]) -> Iterator[list[list[int]]]:
    """Part the texts, in order, into batches of at most `TOKENS_AT_ONCE` tokens, or of one long text."""
    batch: list[list[int]] = []
    for ids in encoded:
        if batch and sum(map(len, batch)) + len(ids) > TOKENS_AT_ONCE:
            yield batch
            batch = []
        batch.append(ids)
    if batch:
        yield batch


def describe(text: str, fills: Fills) -> str:
    """Write one text's proposals for people: probability, token and the filled text."""
    masks = fills if isinstance(fills[0], list) else [fills]
    lines = [text]
    for proposals in masks:
        lines += [f"{fill['score']:7.1%}  {fill['token_str']!r:<16} {fill['sequence']}" for fill in proposals]
    return "\n".join(lines)
