"""Changing who computes changes no result: kernel slots of one model, filled by others, train alike."""

from __future__ import annotations

from pydoc_data import topics
from typing import Any

import pytest
import torch
import transom

STEPS = 50


def spec() -> dict[str, Any]:
    return {
        "vocab_size": 256,
        "max_sequence_length": 32,
        "share_embeddings_and_output_weights": True,
        "config": {
            "num_layers": 2,
            "hidden_size": 48,
            "num_attention_heads": 4,
            "num_query_groups": 2,
            "normalization": "RMSNorm",
            "gated_linear_unit": True,
            "activation_func": "silu",
            "position_embedding_type": "rope",
            "add_bias_linear": False,
            "hidden_dropout": 0.0,
            "attention_dropout": 0.0,
        },
    }


def loss_curve(use: dict[str, str]) -> torch.Tensor:
    """Train on the bytes of English text that comes with Python."""
    text = torch.tensor(list(topics.topics["assert"].encode() + topics.topics["typesseq"].encode()))
    generator = torch.Generator().manual_seed(0)
    model = transom.build(spec(), use=use, seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(STEPS):
        starts = torch.randint(len(text) - 33, (4,), generator=generator)
        batch = torch.stack([text[i : i + 33] for i in starts])
        loss = model(batch[:, :-1], labels=batch[:, 1:]).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    return torch.stack(losses)


@pytest.fixture(scope="module")
def reference() -> torch.Tensor:
    curve = loss_curve({"core_attention": "dot_product", "linear": "torch_linear"})
    assert curve[-5:].mean() < curve[0] - 1.5, "the curve must be one of learning"
    return curve


def test_torch_dot_product_trains_as_dot_product_does(reference: torch.Tensor) -> None:
    curve = loss_curve({"core_attention": "torch_dot_product", "linear": "torch_linear"})
    assert not torch.equal(curve, reference), "two kernels, two roundings"
    torch.testing.assert_close(curve, reference, rtol=1e-4, atol=0)


def test_parallel_linear_on_one_process_trains_bit_for_bit_as_torch_linear_does(reference: torch.Tensor) -> None:
    curve = loss_curve({"core_attention": "dot_product", "linear": "parallel_linear"})
    assert torch.equal(curve, reference)


@pytest.mark.parametrize("path", ["layers.0.self_attention.core_attention", "layers.*.self_attention.core_attention"])
def test_a_part_of_the_layers_can_be_swapped_alone(path: str) -> None:
    model = transom.build(spec(), use={"core_attention": "dot_product", path: "torch_dot_product"}, seed=0)
    plain = transom.build(spec(), use={"core_attention": "dot_product"}, seed=0)
    chosen = {node.path: node.resolution.chosen.name for node in model.plan.nodes() if node.slot == "core_attention"}
    assert chosen["layers.0.self_attention.core_attention"] == "torch_dot_product"
    assert chosen["layers.1.self_attention.core_attention"] == ("torch_dot_product" if "*" in path else "dot_product")
    tokens = torch.randint(256, (2, 16), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(model(tokens), plain(tokens), atol=1e-5, rtol=1e-5)
