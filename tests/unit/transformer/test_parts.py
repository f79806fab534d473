from __future__ import annotations

from typing import Any

import pytest
from transom.slots import SLOTS, ArchitectureRequest, BuildContext
from transom.slots.request import Part
from transom.transformer import parts

ROPE = {"position_embedding_type": "rope", "hidden_size": 32, "num_attention_heads": 4}


@pytest.fixture
def make_request(make_config):
    def make(*, mode: str = "train", masks: tuple[str, ...] = ("causal",), **fields: Any) -> ArchitectureRequest:
        config = make_config(**fields)
        context = BuildContext(mode=mode, tensor_parallel_size=config.tensor_model_parallel_size)
        return ArchitectureRequest(context=context, config=config, masks=frozenset(masks))

    return make


def _all(request: ArchitectureRequest) -> dict[str, Part]:
    return {
        "column_linear": parts.column_linear(request, 8, 16, bias=True),
        "row_linear": parts.row_linear(request, 16, 8, bias=True),
        "embedding": parts.embedding(request, 10, 8),
        "norm": parts.norm(request, 8),
        "activation": parts.activation(request),
        "rotary": parts.rotary(request),
        "core_attention": parts.core_attention(request, 1),
        "bias_dropout_add": parts.bias_dropout_add(request),
        "loss": parts.loss(request, 10),
        "mlp": parts.mlp(request, 1),
        "self_attention": parts.self_attention(request, 1),
        "cross_attention": parts.cross_attention(request, 1),
        "layer": parts.layer(request, 1),
    }


RICH = {
    "tensor_model_parallel_size": 2,
    "context_parallel_size": 2,
    "sequence_parallel": True,
    "delay_wgrad_compute": True,
    "gated_linear_unit": True,
    "activation_func_clamp_value": 1.0,
    "glu_linear_offset": 1.0,
    "layernorm_zero_centered_gamma": True,
    "z_loss": 0.1,
    "attn_logit_softcapping": 30.0,
    "softmax_type": "learnable",
    "window_size": (3, 0),
    "rotary_percent": 0.5,
    "rope_scaling": {"type": "xpos"},
}


@pytest.mark.parametrize("fields", [{}, ROPE | RICH], ids=["plain", "rich"])
def test_parts_name_slots_and_ask_for_features_that_there_are(make_request, fields):
    request = make_request(**fields)
    for slot, part in _all(request).items():
        assert part.slot == slot
        assert type(part.request) is SLOTS[slot].request
        assert part.request.features <= set(SLOTS[slot].features), slot
        assert part.request.context is request.context
        assert hash(part.request) == hash(_all(request)[slot].request)


@pytest.mark.parametrize(
    ("fields", "features"),
    [
        ({}, set()),
        ({"delay_wgrad_compute": True}, {"delay_wgrad"}),
        ({"tensor_model_parallel_size": 2}, {"tensor_parallel"}),
        ({"tensor_model_parallel_size": 2, "sequence_parallel": True}, {"tensor_parallel", "sequence_parallel"}),
    ],
)
def test_linears_ask_for_what_the_config_needs(make_request, fields, features):
    request = make_request(**fields)
    assert parts.column_linear(request, 8, 16, bias=True).request.features == features
    assert parts.row_linear(request, 8, 16, bias=True).request.features == features
    assert parts.row_linear(request, 8, 16, bias=True, is_expert=True).request.features == features | {"expert"}


def test_linears_say_their_sizes_and_path(make_request):
    part = parts.column_linear(make_request(), 8, 32, bias=False, stride=2, is_expert=True, path="up")
    wanted = part.request
    assert (wanted.input_size, wanted.output_size, wanted.bias, wanted.stride, wanted.is_expert) == (
        8,
        32,
        False,
        2,
        True,
    )
    assert part.path == "up"


@pytest.mark.parametrize(
    ("fields", "features"),
    [
        ({}, {"layernorm"}),
        ({"normalization": "RMSNorm"}, {"rmsnorm"}),
        ({"layernorm_zero_centered_gamma": True}, {"layernorm", "zero_centered_gamma"}),
    ],
)
def test_norm_asks_for_its_kind(make_request, fields, features):
    wanted = parts.norm(make_request(layernorm_epsilon=1e-3, **fields), 24).request
    assert (wanted.features, wanted.hidden_size, wanted.eps) == (features, 24, 1e-3)


@pytest.mark.parametrize(
    ("fields", "features"),
    [
        ({}, {"gelu"}),
        ({"activation_func": "silu", "gated_linear_unit": True}, {"silu", "gated"}),
        ({"gated_linear_unit": True, "activation_func_clamp_value": 7.0}, {"gelu", "gated", "clamp"}),
        ({"gated_linear_unit": True, "glu_linear_offset": 1.0}, {"gelu", "gated", "glu_offset"}),
    ],
)
def test_activation_asks_for_its_function_and_gate(make_request, fields, features):
    assert parts.activation(make_request(**fields)).request.features == features


@pytest.mark.parametrize(
    ("fields", "features", "rotated"),
    [
        ({}, {"half_split"}, 8),
        ({"rotary_interleaved": True}, {"interleaved"}, 8),
        ({"rotary_percent": 0.5}, {"half_split", "partial"}, 4),
        ({"seq_len_interpolation_factor": 2.0}, {"half_split", "linear"}, 8),
        ({"rope_scaling": {"type": "xpos"}}, {"half_split", "xpos"}, 8),
        (
            {"rope_scaling": {"type": "yarn", "factor": 2.0, "original_max_position_embeddings": 64}},
            {"half_split", "yarn"},
            8,
        ),
    ],
)
def test_rotary_asks_for_style_and_scaling(make_request, fields, features, rotated):
    wanted = parts.rotary(make_request(**(ROPE | fields))).request
    assert (wanted.features, wanted.head_size, wanted.rotary_dim) == (features, 8, rotated)


NO_DROPOUT = {"attention_dropout": 0.0}


@pytest.mark.parametrize(
    ("fields", "features"),
    [
        ({}, {"causal", "dropout"}),
        (NO_DROPOUT, {"causal"}),
        (NO_DROPOUT | {"num_query_groups": 1}, {"causal", "gqa"}),
        (NO_DROPOUT | {"window_size": (3, 0)}, {"causal", "window"}),
        (NO_DROPOUT | {"attn_logit_softcapping": 30.0}, {"causal", "softcap"}),
        (NO_DROPOUT | {"softmax_type": "off-by-one"}, {"causal", "sink_off_by_one"}),
        (NO_DROPOUT | {"softmax_type": "learnable"}, {"causal", "sink_learnable"}),
        (NO_DROPOUT | {"position_embedding_type": "alibi"}, {"causal", "alibi"}),
        (NO_DROPOUT | {"position_embedding_type": "relative"}, {"causal", "bias_grad"}),
    ],
)
def test_core_attention_asks_for_what_the_config_needs(make_request, fields, features):
    assert parts.core_attention(make_request(**fields), 1).request.features == features


def test_core_attention_asks_for_no_dropout_in_inference(make_request):
    assert parts.core_attention(make_request(mode="infer"), 1).request.features == {"causal"}


def test_core_attention_asks_for_the_masks_that_may_come(make_request):
    request = make_request(masks=("causal", "packed", "padding"), **NO_DROPOUT)
    assert parts.core_attention(request, 1).request.features == {"causal", "packed", "padding"}
    assert parts.core_attention(request, 1, cross=True).request.features == {"packed", "padding", "cross"}


@pytest.mark.parametrize(
    ("fields", "masks", "told"),
    [
        ({}, (), False),
        ({"window_size": (3, 0)}, (), False),
        ({}, ("packed", "padding", "keep"), False),
        ({}, ("prefix",), True),
        ({"window_size": (3, 0)}, ("padding",), True),
        ({"position_embedding_type": "alibi"}, ("packed",), True),
    ],
)
def test_core_attention_of_shares_is_told_positions_where_distances_count_and_any_key_may_be_seen(
    make_request, fields, masks, told
):
    alone, shared = (
        parts.core_attention(make_request(masks=("causal", *masks), **NO_DROPOUT, **fields, **size), 1).request.features
        for size in ({}, {"context_parallel_size": 2})
    )
    assert shared - alone == {"context_parallel", "bottom_right"} | ({"positions"} if told else set())


def test_architectures_whose_tokens_read_one_another_are_asked_for_shares(make_request):
    request = make_request(context_parallel_size=2)
    for part in (parts.self_attention(request, 1), parts.cross_attention(request, 1), parts.layer(request, 1)):
        assert part.request.features == {"context_parallel"}
    assert parts.mlp(request, 1).request.features == frozenset()


def test_core_attention_has_the_window_of_its_layer(make_request):
    request = make_request(window_size=(3, 0), window_attn_skip_freq=2)
    windows = [parts.core_attention(request, number).request.window for number in (1, 2)]
    assert windows == [(3, 0), None]
    assert "window" not in parts.core_attention(request, 2).request.features
    assert parts.core_attention(request, 1, cross=True).request.window is None


@pytest.mark.parametrize(
    ("groups", "ranks", "heads_of_rank", "groups_of_rank"), [(8, 1, 8, 8), (4, 2, 4, 2), (8, 8, 1, 1)]
)
def test_core_attention_counts_the_heads_of_one_rank(make_request, groups, ranks, heads_of_rank, groups_of_rank):
    wanted = parts.core_attention(
        make_request(
            hidden_size=32,
            num_attention_heads=8,
            num_query_groups=groups,
            tensor_model_parallel_size=ranks,
            attn_logit_softcapping=20,
        ),
        1,
    ).request
    assert (wanted.num_attention_heads, wanted.num_query_groups) == (heads_of_rank, groups_of_rank)
    assert (wanted.head_size, wanted.value_head_size, wanted.softcap, wanted.dropout) == (4, 4, 20.0, 0.1)


@pytest.mark.parametrize(("mode", "dropout", "features"), [("train", 0.1, {"dropout"}), ("infer", 0.1, set())])
def test_bias_dropout_add_asks_for_dropout_in_training(make_request, mode, dropout, features):
    wanted = parts.bias_dropout_add(make_request(mode=mode, hidden_dropout=dropout)).request
    assert (wanted.features, wanted.dropout) == (features, dropout)
    assert parts.bias_dropout_add(make_request(mode=mode, hidden_dropout=0.0)).request.features == set()


def test_loss_and_embedding_say_their_sizes(make_request):
    request = make_request(z_loss=1e-4)
    loss, table = parts.loss(request, 100).request, parts.embedding(request, 100, 8, path="tokens")
    assert (loss.vocab_size, loss.z_loss, loss.ignore_index, loss.features) == (100, 1e-4, -100, {"z_loss"})
    assert (table.request.num_embeddings, table.request.embedding_dim, table.path) == (100, 8, "tokens")


def test_architectures_pass_on_what_their_own_parts_need(make_request):
    request = make_request(masks=("causal", "padding"), tensor_model_parallel_size=2)
    for part in (
        parts.mlp(request, 2),
        parts.self_attention(request, 2),
        parts.cross_attention(request, 2),
        parts.layer(request, 2),
    ):
        wanted = part.request
        assert (wanted.config, wanted.masks, wanted.layer_number) == (request.config, request.masks, 2)
        assert wanted.features == {"tensor_parallel"}
    assert parts.layer(request, 1, cross_attention=True).request.features == {"tensor_parallel", "cross_attention"}


def test_mlp_passes_on_the_sizes_of_an_expert(make_request):
    wanted = parts.mlp(make_request(), 1, is_expert=True, input_size=6, ffn_hidden_size=20).request
    assert (wanted.is_expert, wanted.input_size, wanted.ffn_hidden_size) == (True, 6, 20)
