from __future__ import annotations

from typing import Any

import pytest
import torch
from transom import TransformerConfig
from transom.errors import InputError
from transom.models.t5 import T5LMHead

CONFIG = TransformerConfig(num_layers=1, hidden_size=8, num_attention_heads=2)


def names(head: T5LMHead) -> set[str]:
    return {name for name, _ in head.named_parameters()}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, {"output_layer.weight"}),
        ({"share_embeddings_and_output_weights": True}, {"output_layer.bias"}),
        (
            {"share_embeddings_and_output_weights": True, "pre_process": False},
            {"output_layer.weight", "output_layer.bias"},
        ),
        ({"share_embeddings_and_output_weights": True, "bias": False}, set()),
    ],
    ids=["own", "tied", "tied on another stage", "tied without bias"],
)
def test_head_has_the_parameters_that_are_its_own(arguments: dict[str, Any], expected: set[str]) -> None:
    assert names(T5LMHead(CONFIG, parallel_output=True, vocab_size=11, **arguments)) == expected


def test_head_multiplies_by_the_given_or_its_own_weight() -> None:
    hidden, weight = torch.randn(2, 3, 8), torch.randn(11, 8)
    tied = T5LMHead(CONFIG, True, 11, share_embeddings_and_output_weights=True, factor=0.5)
    torch.nn.init.normal_(tied.output_layer.bias)
    torch.testing.assert_close(tied(hidden, weight), hidden * 0.5 @ weight.T + tied.output_layer.bias)
    own = T5LMHead(CONFIG, True, 11)
    torch.testing.assert_close(own(hidden, weight), hidden @ own.output_layer.weight.T)


def test_tied_head_refuses_to_go_without_the_embeddings() -> None:
    head = T5LMHead(CONFIG, True, 11, share_embeddings_and_output_weights=True)
    with pytest.raises(InputError, match="the head's weight is the word embeddings, and they are not given"):
        head(torch.zeros(1, 2, 8))
