from __future__ import annotations

from typing import Any

import pytest
import torch
import transom
from torch import nn
from transom.training.objective import NextToken
from transom.training.passes import WholePasses

CPU = torch.device("cpu")


def model(**fields: Any) -> nn.Module:
    config = {"num_layers": 2, "hidden_size": 8, "num_attention_heads": 2, "hidden_dropout": 0.0}
    config |= {"attention_dropout": 0.0, **fields}
    return transom.build({"vocab_size": 11, "max_sequence_length": 6, "config": config}, seed=0)


def batch(number: int) -> tuple[torch.Tensor, torch.Tensor]:
    tokens = torch.randint(11, (4, 6), generator=torch.Generator().manual_seed(number))
    return tokens, tokens.roll(-1, 1)


def gradients(of: nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.grad for name, parameter in of.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("delayed", [False, True])
def test_two_parts_of_a_step_are_one_of_twice_the_size(delayed: bool) -> None:
    whole, parted = model(), model(delay_wgrad_compute=delayed)
    tokens, labels = (torch.cat(parts) for parts in zip(batch(0), batch(1), strict=True))
    expected = whole(tokens, labels=labels).mean()
    expected.backward()
    passes = WholePasses(parted, NextToken(), CPU, "float32", delayed=delayed)
    loss = sum(passes.train(batch(number), number, 2) for number in range(2))
    torch.testing.assert_close(loss, expected.detach())
    found = gradients(parted)
    assert found.keys() == gradients(whole).keys()
    for name, gradient in gradients(whole).items():
        torch.testing.assert_close(found[name], gradient)


def test_losses_in_bfloat16_are_close_to_those_in_float32() -> None:
    one = model()
    wide, narrow = (WholePasses(one, NextToken(), CPU, p).losses(batch(0), 0) for p in ("float32", "bfloat16"))
    assert wide.shape == (4, 6)
    assert not torch.equal(wide, narrow)
    torch.testing.assert_close(wide, narrow.float(), atol=0.05, rtol=0.05)


def test_positions_are_those_that_are_given() -> None:
    one = model(position_embedding_type="rope")
    shifted = WholePasses(one, NextToken(), CPU, "float32", positions=torch.tensor([0, 1, 2, 0, 1, 2]))
    tokens, labels = batch(0)
    expected = one(tokens, labels=labels, input_pos=torch.tensor([0, 1, 2, 0, 1, 2]))
    torch.testing.assert_close(shifted.losses((tokens, labels), 0), expected)
