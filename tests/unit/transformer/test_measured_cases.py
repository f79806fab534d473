"""Numbers measured on another implementation: ``[s, b, h]`` there, and its masks are True where masked."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transom.slots import BuildContext
from transom.slots.core_attention import CoreAttentionRequest
from transom.transformer.attention_mask import AttentionMask
from transom.transformer.dot_product_attention import DotProductAttention
from transom.transformer.kv_cache import StaticKVCache


def batch_first(x: Tensor) -> Tensor:
    return x.transpose(0, 1).contiguous()


def close(got: Tensor, expected: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)


def config_of(case: dict[str, Any], small_config: Any, **fields: Any) -> Any:
    known = {k: v for k, v in case["meta"]["config"].items() if k in ("num_layers", "num_query_groups")}
    return small_config(**known, **fields)


def check_gradients(case: dict[str, Any], module: Any, total: Tensor, inputs: dict[str, Tensor]) -> None:
    """Check every gradient that the case tells; ``total`` is output plus bias, batch first."""
    (total * batch_first(case["grads"]["cotangent"])).sum().backward()
    for name, expected in case["grads"].items():
        kind, _, key = name.partition(".")
        if kind == "param":
            close(module.get_parameter(key).grad, expected, 1e-4)
        elif kind == "input":
            close(inputs[key].grad, batch_first(expected), 1e-4)


def test_core_attention_agrees_when_causal(case: Any, small_config: Any) -> None:
    data = case("megatron/core_dpa_mha")
    request = CoreAttentionRequest(
        context=BuildContext(), num_attention_heads=4, num_query_groups=4, head_size=8, value_head_size=8
    )
    attention = DotProductAttention(config_of(data, small_config), request=request, layer_number=1)
    inputs = {name: batch_first(x).requires_grad_() for name, x in data["inputs"].items()}
    output = attention(*inputs.values(), mask=AttentionMask(causal=True)).flatten(2)
    close(output, batch_first(data["outputs"]["output"]), 1e-5)
    check_gradients(data, attention, output, inputs)


@pytest.mark.parametrize(
    ("name", "fields"),
    [("selfattn_mha_causal_none", {}), ("selfattn_gqa2_rope", {"position_embedding_type": "rope"})],
)
def test_self_attention_agrees_when_causal(
    name: str, fields: dict[str, Any], case: Any, small_config: Any, build: Any
) -> None:
    data = case(f"megatron/{name}")
    attention = build("self_attention", config_of(data, small_config, **fields))
    attention.load_state_dict(data["state_dict"])
    inputs = {"hidden_states": batch_first(data["inputs"]["hidden_states"]).requires_grad_()}
    output, bias = attention(inputs["hidden_states"], mask=AttentionMask(causal=True))
    close(output, batch_first(data["outputs"]["output"]), 1e-5)
    close(bias, data["outputs"]["output_bias"], 1e-5)
    check_gradients(data, attention, output + bias, inputs)


def test_self_attention_is_causal_without_a_mask_when_its_type_says_so(
    case: Any, small_config: Any, build: Any
) -> None:
    data = case("megatron/selfattn_mha_causal_none")
    attention = build("self_attention", config_of(data, small_config))
    attention.load_state_dict(data["state_dict"])
    attention.is_causal = True
    output, _ = attention(batch_first(data["inputs"]["hidden_states"]))
    close(output, batch_first(data["outputs"]["output"]), 1e-5)


def test_cross_attention_agrees_when_lengths_differ(case: Any, small_config: Any, build: Any) -> None:
    data = case("megatron/crossattn")
    attention = build("cross_attention", config_of(data, small_config))
    attention.load_state_dict(data["state_dict"])
    inputs = {name: batch_first(x).requires_grad_() for name, x in data["inputs"].items()}
    output, bias = attention(inputs["hidden_states"], key_value_states=inputs["key_value_states"])
    close(output, batch_first(data["outputs"]["output"]), 1e-5)
    check_gradients(data, attention, output + bias, inputs)


def test_self_attention_decodes_as_measured_when_cached(case: Any, small_config: Any, build: Any) -> None:
    data = case("megatron/kvcache_gqa2")
    attention = build("self_attention", config_of(data, small_config)).eval()
    attention.load_state_dict(data["state_dict"])
    hidden, prefill = batch_first(data["inputs"]["hidden_states"]), data["inputs"]["prefill"]
    cache = StaticKVCache(num_layers=1, batch_size=2, capacity=9, num_query_groups=2, head_size=8)
    entry, mask = cache.layer(0), AttentionMask(causal=True)
    pieces = [
        attention(hidden[:, i:j], mask=mask, positions=torch.arange(i, j), cache=entry)[0]
        for i, j in [(0, prefill), *((k, k + 1) for k in range(prefill, hidden.shape[1]))]
    ]
    close(torch.cat(pieces, dim=1), batch_first(data["outputs"]["incremental"]), 1e-5)
    close(attention(hidden, mask=mask)[0], batch_first(data["outputs"]["full"]), 1e-5)
    kept = cache.entries[0]
    close(kept.key.data[:, : hidden.shape[1]], batch_first(data["outputs"]["cache_key"]), 1e-5)
    close(kept.value.data[:, : hidden.shape[1]], batch_first(data["outputs"]["cache_value"]), 1e-5)


def test_layer_agrees_when_it_is_a_decoders(case: Any, small_config: Any, build: Any) -> None:
    data = case("megatron/layer_gpt_ln_gelu")
    layer = build("layer", config_of(data, small_config))
    layer.load_state_dict(data["state_dict"])
    inputs = {"hidden_states": batch_first(data["inputs"]["hidden_states"]).requires_grad_()}
    output, context = layer(inputs["hidden_states"], mask=AttentionMask(causal=True))
    assert context is None
    close(output, batch_first(data["outputs"]["output"]), 1e-5)
    check_gradients(data, layer, output, inputs)


def test_layer_agrees_when_it_reads_a_context(case: Any, small_config: Any, build: Any) -> None:
    data = case("megatron/layer_t5_decoder")
    layer = build("layer", config_of(data, small_config), cross_attention=True)
    layer.load_state_dict(data["state_dict"])
    inputs = {name: batch_first(data["inputs"][name]).requires_grad_() for name in ("hidden_states", "context")}
    output, context = layer(
        inputs["hidden_states"],
        mask=AttentionMask(keep=~data["inputs"]["attention_mask"]),
        context=inputs["context"],
        context_mask=AttentionMask(keep=~data["inputs"]["context_mask"]),
    )
    assert context is inputs["context"]
    close(output, batch_first(data["outputs"]["output"]), 1e-5)
    check_gradients(data, layer, output, inputs)


def test_block_agrees_when_it_has_three_layers(case: Any, small_config: Any, build_block: Any) -> None:
    data = case("megatron/block3_gpt")
    block = build_block(config_of(data, small_config))
    block.load_state_dict(data["state_dict"])
    inputs = {"hidden_states": batch_first(data["inputs"]["hidden_states"]).requires_grad_()}
    output = block(inputs["hidden_states"], mask=AttentionMask(causal=True))
    close(output, batch_first(data["outputs"]["output"]), 1e-5)
    check_gradients(data, block, output, inputs)
