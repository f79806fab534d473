"""T5 in training: recomputed, and with a residual stream wider than its weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch

POSITIONS = ["learned_absolute", "rope", "relative"]


@pytest.mark.parametrize("kind", POSITIONS)
def test_t5_keeps_a_wide_residual_stream_and_narrow_weights(kind: str, make_t5: Any, ids: Any) -> None:
    model = make_t5(position_embedding_type=kind, params_dtype="bfloat16", fp32_residual_connection=True)
    read, written = ids(2, 7), ids(2, 5, seed=1)
    logits = model(read, written, None, None, None)
    assert logits.dtype is torch.float32
    wide = make_t5(position_embedding_type=kind)
    wide.load_state_dict(model.state_dict())
    torch.testing.assert_close(logits, wide(read, written, None, None, None), atol=0.1, rtol=0.1)
    model.eval().setup_caches(2)
    step = model.decode(written, model.encode(read), input_pos=torch.arange(5))
    torch.testing.assert_close(step, logits, atol=0.05, rtol=0.05)


@pytest.mark.parametrize(
    "recompute",
    [
        {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1},
        {"recompute_granularity": "selective", "recompute_modules": ("core_attn", "mlp", "layernorm")},
    ],
    ids=["full", "selective"],
)
def test_t5_trains_the_same_when_it_recomputes(recompute: dict[str, Any], make_t5: Any, ids: Any) -> None:
    read, written = ids(2, 7), ids(2, 5, seed=1)
    gradients = []
    for arguments in ({}, recompute):
        model = make_t5(position_embedding_type="relative", hidden_dropout=0.1, **arguments)
        torch.manual_seed(7)
        model(read, written, None, None, None, lm_labels=written).mean().backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, gradient in gradients[0].items():
        assert torch.equal(gradient, gradients[1][name]), name
