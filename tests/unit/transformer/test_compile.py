"""One graph without breaks, one compilation for all layers, and the same numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch._dynamo
from torch import Tensor
from transom.transformer.attention_mask import AttentionMask
from transom.transformer.kv_cache import StaticKVCache

ROPE = {"position_embedding_type": "rope", "num_query_groups": 2}
YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8}
RECOMPUTE = {"recompute_granularity": "full", "recompute_method": "block", "recompute_num_layers": 1}
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "half-split": ROPE
    | {"qk_layernorm": True, "rope_scaling": YARN, "attention_output_gate": True}
    | {"window_size": (2, 0), "attn_logit_softcapping": 5.0},
    "pairs": ROPE
    | {"qk_l2_norm": True, "qk_norm_before_rope": False, "rotary_interleaved": True, "rotary_percent": 0.5}
    | {"softmax_type": "learnable", "post_attention_layernorm": True, "post_mlp_layernorm": True},
    "xpos": ROPE | {"rope_scaling": {"type": "xpos"}, "softmax_type": "off-by-one"},
    "selective recompute": ROPE
    | {"recompute_granularity": "selective", "recompute_modules": ("core_attn", "mlp", "layernorm")},
    "full recompute": ROPE | RECOMPUTE,
}


def mask_of(s: int, *, padded: bool) -> AttentionMask:
    padding = torch.arange(s)[None] < torch.tensor([[s], [s - 1]])
    return AttentionMask(causal=True, key_padding=padding if padded else None)


def run(module: Any, x: Tensor, mask: AttentionMask, **arguments: Any) -> tuple[Tensor, ...]:
    """Output, and gradients of input and parameters."""
    module.zero_grad()
    leaf = x.clone().requires_grad_()
    output = module(leaf, mask=mask, **arguments)
    output = output[0] if isinstance(output, tuple) else output
    (output * torch.linspace(-1, 1, output.numel()).view_as(output)).sum().backward()
    return output.detach(), leaf.grad, *(p.grad.clone() for p in module.parameters() if p.grad is not None)


@pytest.mark.parametrize("variant", VARIANTS)
def test_block_compiles_into_one_graph_when_lengths_change(variant: str, small_config: Any, build_block: Any) -> None:
    is_recomputed = "recompute" in variant
    block = build_block(small_config(num_layers=2 if is_recomputed else 1, **VARIANTS[variant]))
    backend = "aot_eager" if is_recomputed else "eager"  # recompute is what the backward graph is about
    compiled = torch.compile(block, fullgraph=True, backend=backend, dynamic=True)
    for s in (6, 9):
        x = torch.randn(2, s, 32)
        expected = run(block, x, mask_of(s, padded=variant != "plain"))
        with torch._dynamo.config.patch(error_on_recompile=True):
            got = run(compiled, x, mask_of(s, padded=variant != "plain"))
        for a, b in zip(got, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("variant", ["half-split", "selective recompute"])
def test_layers_share_a_compilation_when_compiled_one_by_one(variant: str, small_config: Any, build: Any) -> None:
    config = small_config(num_layers=4, **VARIANTS[variant])
    layers = [build("layer", config, layer_number=i, seed=i) for i in range(1, 5)]
    x = torch.randn(2, 5, 32, requires_grad=True)
    masks = [mask_of(5, padded=True) for _ in range(2)]
    expected = got = x
    for mask in masks:  # the first of the layers would find nothing rendered, which is another graph
        mask.as_bool(5, 5, device=x.device, window=config.window_size)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for layer in layers:
            expected = layer(expected, mask=masks[0])[0]
            layer.compile(fullgraph=True, backend="eager")
            got = layer(got, mask=masks[1])[0]
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_cross_attention_compiles_when_context_lengths_change(small_config: Any, build: Any) -> None:
    layer = build("layer", small_config(num_query_groups=2), cross_attention=True)
    compiled = torch.compile(layer, fullgraph=True, backend="eager", dynamic=True)
    for t in (4, 5):
        x, context = torch.randn(2, 6, 32), torch.randn(2, t, 32)
        for a, b in zip(
            run(compiled, x, AttentionMask(causal=True), context=context),
            run(layer, x, AttentionMask(causal=True), context=context),
            strict=True,
        ):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("per_row", [False, True], ids=["positions [s]", "positions [b, s]"])
def test_decoding_compiles_once_when_positions_advance(per_row: bool, small_config: Any, build_block: Any) -> None:
    block = build_block(small_config(num_layers=2, **ROPE)).eval()
    compiled = torch.compile(block, fullgraph=True, backend="eager")
    x = torch.randn(2, 8, 32)
    cache = StaticKVCache(num_layers=2, batch_size=2, capacity=8, num_query_groups=2, head_size=8)
    expected = block(x, mask=AttentionMask(causal=True))

    def positions(start: int, end: int) -> Tensor:
        row = torch.arange(start, end)
        return row.expand(2, -1).clone() if per_row else row

    with torch.no_grad(), torch._dynamo.config.patch(error_on_recompile=True):
        pieces = [block(x[:, :4], mask=AttentionMask(causal=True), positions=positions(0, 4), cache=cache)]
        for i in range(4, 8):
            mask = AttentionMask(causal=True)
            pieces.append(compiled(x[:, i : i + 1], mask=mask, positions=positions(i, i + 1), cache=cache))
    torch.testing.assert_close(torch.cat(pieces, dim=1), expected, rtol=1e-4, atol=1e-4)
    assert cache.lengths.tolist() == [8, 8]
