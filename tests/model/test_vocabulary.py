"""Rows for another vocabulary."""

from __future__ import annotations

import torch

from modernbert.model.config import EncoderConfig
from modernbert.model.heads import ModernBertForMaskedLM
from modernbert.model.init import initialise
from modernbert.model.vocabulary import transfer_rows

EMBEDDING = "model.embeddings.tok_embeddings.weight"


def tensors() -> dict[str, torch.Tensor]:
    embedding = torch.tensor([[1.0, 2.0], [3.0, 6.0], [5.0, 4.0]])
    return {EMBEDDING: embedding, "decoder.weight": embedding, "decoder.bias": torch.tensor([0.0, 1.0, 8.0])}


def test_a_row_is_copied_averaged_or_the_mean_of_all() -> None:
    made = transfer_rows(tensors(), [(2,), (0, 1), (), (0,)], num_rows=5)
    # The mean of what the others come from: rows 2, 0, 1 and 0.
    assert made[EMBEDDING].tolist() == [[5, 4], [2, 4], [2.5, 3.5], [1, 2], [2.5, 3.5]]
    assert made["decoder.bias"].tolist() == [8, 0.5, 2.25, 0, 2.25]
    assert made["decoder.weight"] is made[EMBEDDING]


def test_the_same_vocabulary_stays_to_the_bit() -> None:
    old = tensors()
    made = transfer_rows(old, [(0,), (1,), (2,)], num_rows=3)
    assert all(torch.equal(made[name], tensor) for name, tensor in old.items())


def test_all_other_tensors_stay_and_the_model_takes_them() -> None:
    old = ModernBertForMaskedLM(EncoderConfig.preset("tiny"))
    initialise(old, seed=1)
    made = transfer_rows(old.state_dict(), [(id, id + 1) for id in range(100)], num_rows=128)
    new = ModernBertForMaskedLM(EncoderConfig.preset("tiny", vocab_size=128))
    new.load_state_dict(made)
    for name, tensor in old.state_dict().items():
        if not name.startswith("decoder") and name != EMBEDDING:
            assert torch.equal(new.state_dict()[name], tensor)
    rows = old.decoder.weight
    torch.testing.assert_close(new.decoder.weight[7], (rows[7] + rows[8]) / 2)
    assert new.decoder.weight is new.model.embeddings.tok_embeddings.weight
