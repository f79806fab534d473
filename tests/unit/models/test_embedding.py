from __future__ import annotations

import pytest
import torch
import transom
from torch import nn
from transom.models.embedding import LanguageModelEmbedding

IDS = torch.tensor([[1, 2, 3]])
SPEC = {
    "vocab_size": 11,
    "max_sequence_length": 8,
    "config": {
        "num_layers": 1,
        "hidden_size": 8,
        "num_attention_heads": 2,
        "position_embedding_type": "none",
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
    },
}


def test_embedding_multiplies_tokens_and_not_positions() -> None:
    words, positions = nn.Embedding(11, 4), nn.Embedding(8, 4)
    embedding = LanguageModelEmbedding(words, positions, multiplier=3.0)
    torch.testing.assert_close(embedding(IDS), 3 * words(IDS) + positions.weight[:3])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_multiplier_is_rounded_to_the_embeddings_dtype(dtype: str) -> None:
    """The root of 8 is 2.828427 in float32 and 2.828125 in bfloat16."""
    config = SPEC["config"] | {"embedding_multiplier": 8**0.5, "params_dtype": dtype}
    model = transom.build(SPEC | {"config": config}, seed=0)
    table = model.embedding.word_embeddings.weight
    expected = table[IDS] * torch.tensor(8**0.5, dtype=table.dtype)
    assert torch.equal(model.embedding(IDS), expected)


def test_logits_are_capped_and_losses_are_of_the_capped_logits() -> None:
    plain = transom.build(SPEC, seed=0)
    capped = transom.build(SPEC | {"config": SPEC["config"] | {"final_logit_softcapping": 0.1}}, seed=0)
    logits = 0.1 * torch.tanh(plain(IDS) / 0.1)
    torch.testing.assert_close(capped(IDS), logits)
    losses = nn.functional.cross_entropy(logits.transpose(1, 2), IDS, reduction="none")
    torch.testing.assert_close(capped(IDS, labels=IDS), losses)
