"""A decoder that recomputes activations trains bit for bit as one that keeps them, compiled in one graph or not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch._dynamo
import transom
from torch import Tensor

RECOMPUTE: dict[str, dict[str, Any]] = {
    "uniform, the last chunk short": {"recompute_method": "uniform", "recompute_num_layers": 2},
    "block": {"recompute_method": "block", "recompute_num_layers": 2},
    "core_attn": {"recompute_modules": ["core_attn"]},
    "mlp": {"recompute_modules": ["mlp"]},
    "layernorm": {"recompute_modules": ["layernorm"]},
    "all modules": {"recompute_modules": ["core_attn", "mlp", "layernorm"]},
}


def decoder(how: str | None, *, dropout: float) -> Any:
    config = {
        "num_layers": 3,
        "hidden_size": 32,
        "num_attention_heads": 4,
        "num_query_groups": 2,
        "normalization": "RMSNorm",
        "position_embedding_type": "rope",
        "gated_linear_unit": True,
        "activation_func": "silu",
        "hidden_dropout": dropout,
        "attention_dropout": dropout,
    }
    if how is not None:
        chosen = RECOMPUTE[how]
        config |= chosen | {"recompute_granularity": "selective" if "recompute_modules" in chosen else "full"}
    return transom.build({"vocab_size": 61, "max_sequence_length": 24, "config": config}, seed=0)


def train_step(model: Any, parameters: Any) -> list[Tensor]:
    """Losses, and gradients of all parameters."""
    torch.manual_seed(7)
    tokens = torch.randint(61, (2, 9))
    losses = model(tokens[:, :-1], labels=tokens[:, 1:])
    losses.mean().backward()
    return [losses.detach(), *(parameter.grad for parameter in parameters)]


@pytest.mark.parametrize("how", RECOMPUTE)
def test_recomputing_decoder_has_the_same_bits_when_it_drops(how: str) -> None:
    plain, again = decoder(None, dropout=0.2), decoder(how, dropout=0.2)
    expected, got = train_step(plain, plain.parameters()), train_step(again, again.parameters())
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize("how", ["uniform, the last chunk short", "all modules"])
def test_recomputing_decoder_trains_compiled_in_one_graph(how: str) -> None:
    plain, again = decoder(None, dropout=0.0), decoder(how, dropout=0.0)
    torch._dynamo.reset()
    compiled = torch.compile(again, fullgraph=True, backend="aot_eager")
    expected, got = train_step(plain, plain.parameters()), train_step(compiled, again.parameters())
    torch._dynamo.reset()
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
