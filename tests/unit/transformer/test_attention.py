"""Self- and cross-attention against the equations, with weights taken apart by hand."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transom.errors import CacheError, ConfigError, ParallelError
from transom.slots import ArchitectureRequest, BuildContext
from transom.transformer import parts
from transom.transformer.attention import CrossAttention, SelfAttention
from transom.transformer.attention_mask import AttentionMask
from transom.transformer.enums import AttnMaskType
from transom.transformer.kv_cache import StaticKVCache

N, D = 4, 8
F64 = {"params_dtype": "float64"}
ROPE = {"position_embedding_type": "rope"}


def unit(x: Tensor, eps: float = 1e-5) -> Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt()


def rotate(x: Tensor) -> Tensor:
    """Half-split RoPE with base 10,000 of ``[b, s, n, 8]`` at positions 0 ... s-1."""
    angles = torch.arange(x.shape[1], dtype=x.dtype)[:, None] * 10000.0 ** (-torch.arange(4, dtype=x.dtype) / 4)
    z = torch.complex(x[..., :4], x[..., 4:]) * torch.polar(torch.ones_like(angles), angles)[:, None]
    return torch.cat([z.real, z.imag], dim=-1)


def attend(query: Tensor, key: Tensor, value: Tensor, *, causal: bool = True) -> Tensor:
    """One head after another: ``[b, s, n, d]`` and ``[b, t, g, d]`` to ``[b, s, n·d]``."""
    heads = []
    for h in range(query.shape[2]):
        g = h // (query.shape[2] // key.shape[2])
        scores = torch.einsum("bsd,btd->bst", query[:, :, h], key[:, :, g]) / query.shape[-1] ** 0.5
        if causal:
            hidden = torch.ones(scores.shape[1:], dtype=torch.bool).triu(1)
            scores = scores.masked_fill(hidden, -torch.inf)
        heads.append(scores.softmax(-1) @ value[:, :, g])
    return torch.cat(heads, dim=-1)


def by_hand(attention: Any, x: Tensor, groups: int, *, gate: bool = False, prepare: Any = None) -> Tensor:
    """The equations, with the weight of every head cut out of the fused one."""
    per_group = N // groups
    rows = (2 * per_group if gate else per_group) + 2
    weight = attention.linear_qkv.weight.view(groups, rows, D, -1)
    bias = attention.linear_qkv.bias.view(groups, rows, D)

    def head(group: int, row: int) -> Tensor:
        return x @ weight[group, row].T + bias[group, row]

    query = torch.stack([head(g, r) for g in range(groups) for r in range(per_group)], dim=2)
    key = torch.stack([head(g, rows - 2) for g in range(groups)], dim=2)
    value = torch.stack([head(g, rows - 1) for g in range(groups)], dim=2)
    query, key = prepare(query, key) if prepare else (query, key)
    attended = attend(query, key, value)
    if gate:
        gates = [head(g, per_group + r) for g in range(groups) for r in range(per_group)]
        attended = attended * torch.cat(gates, dim=-1).sigmoid()
    return attended @ attention.linear_proj.weight.T


def close(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("normalization", ["RMSNorm", "LayerNorm"])
def test_self_attention_norms_all_heads_together_when_asked(
    normalization: str, x: Tensor, small_config: Any, build: Any
) -> None:
    """As OLMo 2 does: one mean over all queries of a token, another over its keys."""
    fields = {"qk_layernorm": True, "qk_layernorm_across_heads": True, "normalization": normalization}
    attention = build("self_attention", small_config(num_query_groups=2, **ROPE, **F64, **fields))
    assert (attention.q_layernorm.weight.shape, attention.k_layernorm.weight.shape) == ((N * D,), (2 * D,))
    with torch.no_grad():
        attention.q_layernorm.weight.uniform_(0.5, 2.0)
        attention.k_layernorm.weight.uniform_(0.5, 2.0)

    def norm(heads: Tensor, module: Any) -> Tensor:
        flat = heads.flatten(2)
        if normalization == "RMSNorm":
            return (unit(flat) * module.weight).view_as(heads)
        return (F.layer_norm(flat, flat.shape[-1:]) * module.weight + module.bias).view_as(heads)

    def prepare(query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        return rotate(norm(query, attention.q_layernorm)), rotate(norm(key, attention.k_layernorm))

    got, _ = attention(x, mask=AttentionMask(causal=True))
    close(got, by_hand(attention, x, 2, prepare=prepare))


@pytest.fixture
def x() -> Tensor:
    torch.manual_seed(1)
    return torch.randn(2, 5, 32, dtype=torch.float64)


@pytest.mark.parametrize("groups", [1, 2, 4], ids=lambda g: f"{g} groups")
@pytest.mark.parametrize("gate", [False, True], ids=["plain", "gated"])
def test_self_attention_is_the_equations_when_heads_are_grouped(
    groups: int, gate: bool, x: Tensor, small_config: Any, build: Any
) -> None:
    attention = build("self_attention", small_config(num_query_groups=groups, attention_output_gate=gate, **F64))
    got, bias = attention(x, mask=AttentionMask(causal=True))
    close(got, by_hand(attention, x, groups, gate=gate))
    assert bias is attention.linear_proj.bias
    assert attention.num_query_groups == groups


@pytest.mark.parametrize("first", [True, False], ids=["norm first", "rope first"])
@pytest.mark.parametrize("kind", ["none", "rms", "layernorm", "unit"])
def test_self_attention_norms_and_rotates_in_order_when_asked(
    kind: str, first: bool, x: Tensor, small_config: Any, build: Any
) -> None:
    fields = {
        "none": {},
        "rms": {"qk_layernorm": True, "normalization": "RMSNorm"},
        "layernorm": {"qk_layernorm": True},
        "unit": {"qk_l2_norm": True},
    }[kind]
    order = {} if kind == "none" else {"qk_norm_before_rope": first}
    attention = build("self_attention", small_config(num_query_groups=2, **ROPE, **F64, **fields, **order))

    def norm(x: Tensor, module: Any) -> Tensor:
        if kind == "none":
            return x
        if kind == "unit":
            return unit(x)
        if kind == "rms":
            return unit(x) * module.weight
        return F.layer_norm(x, (D,)) * module.weight + module.bias

    def prepare(query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        pairs = ((query, attention.q_layernorm), (key, attention.k_layernorm))
        both = tuple(rotate(norm(x, m)) if first else norm(rotate(x), m) for x, m in pairs)
        return both[0], both[1]

    close(attention(x, mask=AttentionMask(causal=True))[0], by_hand(attention, x, 2, prepare=prepare))


def test_self_attention_leaves_rope_out_when_the_layer_has_none(x: Tensor, small_config: Any, build: Any) -> None:
    config = small_config(no_rope_freq=(0, 1), **ROPE, **F64)
    with_rope, without = (build("self_attention", config, layer_number=i) for i in (1, 2))
    assert with_rope.rotary is not None
    assert without.rotary is None
    close(without(x, mask=AttentionMask(causal=True))[0], by_hand(without, x, 4))


@pytest.mark.parametrize(
    ("fields", "has_qkv_bias", "has_proj_bias"),
    [
        ({}, True, True),
        ({"add_bias_linear": False}, False, False),
        ({"add_bias_linear": False, "add_qkv_bias": True}, True, False),
    ],
    ids=["all", "none", "qkv only"],
)
def test_self_attention_has_the_biases_that_are_asked_for(
    fields: Any, has_qkv_bias: bool, has_proj_bias: bool, x: Tensor, small_config: Any, build: Any
) -> None:
    attention = build("self_attention", small_config(**fields, **F64))
    assert (attention.linear_qkv.bias is not None, attention.linear_proj.bias is not None) == (
        has_qkv_bias,
        has_proj_bias,
    )
    output, bias = attention(x)
    assert (bias is not None) == has_proj_bias
    assert output.shape == x.shape


@pytest.mark.parametrize("kind", [AttnMaskType.causal, AttnMaskType.padding_causal], ids=lambda k: k.name)
def test_self_attention_adds_causality_to_any_mask_when_its_type_says_so(
    kind: AttnMaskType, x: Tensor, small_config: Any, submodules_of: Any
) -> None:
    config = small_config(**F64)
    attention = SelfAttention(config, submodules_of("self_attention", config), 1, kind)
    padding = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    both, alone, plain = AttentionMask(causal=True, key_padding=padding), AttentionMask(key_padding=padding), None
    attention.is_causal = False
    expected = attention(x, mask=both)[0], attention(x, mask=AttentionMask(causal=True))[0]
    attention.is_causal = True
    close(attention(x, mask=alone)[0], expected[0])
    close(attention(x, mask=both)[0], expected[0])
    close(attention(x, mask=plain)[0], expected[1])


def test_everyone_sees_everyone_when_there_is_no_mask(x: Tensor, small_config: Any, build: Any) -> None:
    attention = build("self_attention", small_config(**F64))
    reversed_tokens = attention(x.flip(1))[0].flip(1)
    close(attention(x)[0], reversed_tokens)


@pytest.mark.parametrize("fields", [{}, ROPE, {"window_size": (2, 0)} | ROPE], ids=["plain", "rope", "window"])
@pytest.mark.parametrize("chunks", [[1] * 6, [4, 1, 1], [2, 4]], ids=str)
def test_decoding_equals_the_whole_when_cached(fields: Any, chunks: list[int], small_config: Any, build: Any) -> None:
    attention = build("self_attention", small_config(num_query_groups=2, **F64, **fields))
    x = torch.randn(2, 6, 32, dtype=torch.float64)
    cache = StaticKVCache(num_layers=1, batch_size=2, capacity=9, num_query_groups=2, head_size=8, dtype=torch.float64)
    pieces, start = [], 0
    for s in chunks:
        where = torch.arange(start, start + s)
        pieces.append(attention(x[:, where], mask=AttentionMask(causal=True), positions=where, cache=cache.layer(0))[0])
        start += s
    close(torch.cat(pieces, dim=1), attention(x, mask=AttentionMask(causal=True))[0])


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "not causal"])
def test_decoding_equals_each_row_alone_when_rows_are_left_padded(causal: bool, small_config: Any, build: Any) -> None:
    attention = build("self_attention", small_config(**ROPE, **F64))
    lengths, prompt = (5, 3), 4
    x = torch.randn(2, 5, 32, dtype=torch.float64)
    cache = StaticKVCache(num_layers=1, batch_size=2, capacity=8, num_query_groups=4, head_size=8, dtype=torch.float64)
    # Row 1 is two tokens shorter: its prompt has two tokens, behind two of padding.
    padded = torch.stack([x[0, :4], torch.cat([torch.zeros(2, 32, dtype=torch.float64), x[1, :2]])])
    where = torch.tensor([[0, 1, 2, 3], [-1, -1, 0, 1]])
    mask = AttentionMask(causal=causal)
    first = attention(padded, mask=mask, positions=where, cache=cache.layer(0))[0]
    last_tokens = torch.stack([x[0, 4:5], x[1, 2:3]])
    last = attention(last_tokens, mask=mask, positions=torch.tensor([[4], [2]]), cache=cache.layer(0))[0]
    for row, length in enumerate(lengths):
        alone = attention(x[row : row + 1, :length], mask=mask)[0]
        close(last[row, 0], alone[0, -1])
        if causal:
            close(first[row, prompt - length + 1 :], alone[0, : length - 1])


def test_self_attention_refuses_a_cache_when_positions_are_missing(x: Tensor, small_config: Any, build: Any) -> None:
    cache = StaticKVCache(num_layers=1, batch_size=2, capacity=9, num_query_groups=4, head_size=8)
    with pytest.raises(CacheError, match="a cache needs the positions of the tokens"):
        build("self_attention", small_config(**F64))(x, cache=cache.layer(0))


@pytest.mark.parametrize("groups", [1, 2, 4], ids=lambda g: f"{g} groups")
def test_cross_attention_is_the_equations_when_heads_are_grouped(
    groups: int, x: Tensor, small_config: Any, build: Any
) -> None:
    attention = build("cross_attention", small_config(num_query_groups=groups, **F64))
    other = torch.randn(2, 7, 32, dtype=torch.float64)
    query = F.linear(x, attention.linear_q.weight, attention.linear_q.bias).view(2, 5, 4, D)
    weight, bias = attention.linear_kv.weight.view(groups, 2, D, 32), attention.linear_kv.bias.view(groups, 2, D)
    key, value = (torch.stack([other @ weight[g, i].T + bias[g, i] for g in range(groups)], dim=2) for i in (0, 1))
    expected = attend(query, key, value, causal=False) @ attention.linear_proj.weight.T
    got, output_bias = attention(x, key_value_states=other)
    close(got, expected)
    assert output_bias is attention.linear_proj.bias
    padding = torch.arange(7) < torch.tensor([[7], [4]])
    masked, _ = attention(x, key_value_states=other, mask=AttentionMask(key_padding=padding))
    close(masked[0], got[0])
    close(masked[1:], attention(x[1:], key_value_states=other[1:, :4])[0])


def test_cross_attention_adds_causality_when_its_type_says_so(x: Tensor, small_config: Any, submodules_of: Any) -> None:
    config = small_config(**F64)
    attention = CrossAttention(config, submodules_of("cross_attention", config), 1, AttnMaskType.causal)
    other = torch.randn(2, 5, 32, dtype=torch.float64)
    got, _ = attention(x, key_value_states=other)
    for i in (1, 3):
        close(got[:, i - 1], attention(x[:, :i], key_value_states=other[:, :i])[0][:, -1])


@pytest.mark.parametrize("slot", ["self_attention", "cross_attention"])
def test_recomputed_core_gives_the_same_bits_when_training(slot: str, small_config: Any, build: Any) -> None:
    fields = {"attention_dropout": 0.3, "num_query_groups": 2}
    again = {"recompute_granularity": "selective", "recompute_modules": ("core_attn",)}
    results = []
    for config in (small_config(**fields), small_config(**fields, **again)):
        attention = build(slot, config)
        torch.manual_seed(5)
        x = torch.randn(2, 5, 32, requires_grad=True)
        arguments = {"key_value_states": x} if slot == "cross_attention" else {}
        output, _ = attention(x, mask=AttentionMask(causal=True), **arguments)
        output.sum().backward()
        results.append([output, x.grad, *(p.grad for p in attention.parameters() if p.grad is not None)])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("slot", ["self_attention", "cross_attention"])
def test_weight_gradients_wait_when_they_are_delayed(slot: str, small_config: Any, build: Any) -> None:
    x = torch.randn(2, 5, 32)
    arguments = {"key_value_states": x} if slot == "cross_attention" else {}
    now, later = (build(slot, small_config(delay_wgrad_compute=on)) for on in (False, True))
    for attention in (now, later):
        attention(x, **arguments)[0].sum().backward()
    weights = [name for name, _ in now.named_parameters() if name.endswith("weight")]
    assert len(weights) == (3 if slot == "cross_attention" else 2)
    assert all(later.get_parameter(name).grad is None for name in weights)
    later.backward_dw()
    for name in weights:
        torch.testing.assert_close(later.get_parameter(name).grad, now.get_parameter(name).grad)


@pytest.mark.parametrize(("slot", "cls"), [("self_attention", SelfAttention), ("cross_attention", CrossAttention)])
def test_projections_start_as_the_config_says(slot: str, cls: Any, small_config: Any, submodules_of: Any) -> None:
    config = small_config(num_layers=8, hidden_size=256, init_method_std=0.5)
    attention = cls(config, submodules_of(slot, config), 1)
    for name, module in attention.named_children():
        if name.startswith("linear"):
            std = 0.5 / 4 if name == "linear_proj" else 0.5
            assert abs(float(module.weight.detach().std()) / std - 1) < 0.05
            assert not module.bias.any()


@pytest.mark.parametrize("cls", [SelfAttention, CrossAttention])
def test_attention_refuses_ranks_when_groups_cannot_be_split(cls: Any, small_config: Any) -> None:
    group = SimpleNamespace(size=lambda: 3, rank=lambda: 0, group_name="g")
    with pytest.raises(ParallelError, match="4 query heads in 2 groups cannot be split over 3 ranks") as caught:
        cls(small_config(num_attention_heads=4, num_query_groups=2), SimpleNamespace(), 1, tp_group=group)
    assert (caught.value.groups, caught.value.heads, caught.value.ranks) == (2, 4, 3)
    assert "divides num_query_groups or is a multiple of it" in caught.value.hint


@pytest.mark.parametrize(
    ("fields", "place", "field"),
    [
        ({"qk_layernorm": True}, "q_layernorm", "qk_layernorm"),
        (ROPE, "rotary", "position_embedding_type"),
    ],
)
def test_self_attention_refuses_when_a_builder_is_missing(
    fields: Any, place: str, field: str, small_config: Any, submodules_of: Any
) -> None:
    config = small_config(**fields)
    submodules = replace(submodules_of("self_attention", config), **{place: None})
    with pytest.raises(ConfigError, match=f"{field} is .* and submodules has no {place}") as caught:
        SelfAttention(config, submodules, 1)
    assert caught.value.field == field


def test_parts_name_what_the_config_asks_for(small_config: Any) -> None:
    config = small_config(num_query_groups=2, attention_output_gate=True, qk_layernorm=True, **ROPE)
    request = ArchitectureRequest(context=BuildContext(), config=config)
    own = SelfAttention.parts(parts.self_attention(request, 1).request)
    assert set(own) == {"linear_qkv", "core_attention", "linear_proj", "q_layernorm", "k_layernorm", "rotary"}
    assert own["linear_qkv"].request.output_size == (2 * 4 + 2 * 2) * 8
    cross = CrossAttention.parts(parts.cross_attention(request, 1).request)
    assert set(cross) == {"linear_q", "linear_kv", "core_attention", "linear_proj"}
    assert "cross" in cross["core_attention"].request.features
