from __future__ import annotations

from typing import Any

import pytest
import torch
from transom import TransformerConfig
from transom.errors import InputError, ParallelError
from transom.models.t5 import T5LMHead
from transom.models.t5.lm_head import TiedOutput

CONFIG = TransformerConfig(num_layers=1, hidden_size=8, num_attention_heads=2)


class TwoRanks:
    """As much of a process group as a refusal reads."""

    group_name = "two"

    def size(self) -> int:
        return 2

    def rank(self) -> int:
        return 1


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


def test_tied_head_refuses_ranks_over_which_the_vocabulary_does_not_divide() -> None:
    with pytest.raises(ParallelError) as error:
        TiedOutput(11, bias=True, dtype=torch.float32, tp_group=TwoRanks())  # type: ignore[arg-type]
    assert error.value.what == "logits of 11 ids cannot be split over 2 tensor-parallel ranks."
    assert error.value.hint == "choose a tensor_model_parallel_size that divides vocab_size"
    assert (error.value.size, error.value.ranks) == (11, 2)
