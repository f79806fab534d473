from __future__ import annotations

import copy
import dataclasses
import functools
import pickle
import subprocess
import sys

import msgspec
import pytest
import torch
import torch.nn.functional as F
from transom.errors import ConfigError
from transom.transformer.initialization import NormalInit
from transom.transformer.rope_scaling import RopeScaling
from transom.transformer.transformer_config import TransformerConfig

SMALL = {"num_layers": 4, "hidden_size": 48, "num_attention_heads": 6}
ROPE = {"position_embedding_type": "rope"}
FULL = {"recompute_granularity": "full", "recompute_method": "block", "recompute_num_layers": 2}

WHOLE = "a whole number of at least 1 is needed"
ABOVE_ZERO = "a number above 0 is needed"
AT_LEAST_ZERO = "a number of at least 0 is needed"
PROBABILITY = "a probability from 0 to below 1 is needed"
UNLISTED = "it is not one of those there are"
NEEDS_ROPE = "it needs position_embedding_type: rope"
NEEDS_STAGES = "it needs pipeline_model_parallel_size above 1"
NEEDS_FULL = "it needs recompute_granularity: full"
CHOOSE_SPLIT = "it cannot be combined with account_for_embedding/loss_in_pipeline_split; choose one"
WINDOW = "two distances (left, right) of at least 0 are needed, null where unbounded"
ONE_EACH = "one entry for each of the 4 layers is needed"

# What is given beside SMALL, the field that is named, its value in the message, what would be right.
IMPOSSIBLE = [
    ({"num_layers": 0}, "num_layers", 0, WHOLE),
    ({"num_layers": True}, "num_layers", True, WHOLE),
    ({"num_layers": "4"}, "num_layers", "4", WHOLE),
    ({"num_layers": None}, "num_layers", None, WHOLE),
    ({"num_layers": 2.0}, "num_layers", 2.0, WHOLE),
    ({"hidden_size": -48}, "hidden_size", -48, WHOLE),
    ({"hidden_size": 50}, "hidden_size", 50, "a multiple of num_attention_heads (6) is needed, or kv_channels must"),
    ({"num_attention_heads": 0}, "num_attention_heads", 0, WHOLE),
    ({"num_query_groups": 4}, "num_query_groups", 4, "a divisor of num_attention_heads (6) is needed"),
    ({"num_query_groups": 12}, "num_query_groups", 12, "a divisor of num_attention_heads (6) is needed"),
    ({"kv_channels": 0}, "kv_channels", 0, WHOLE),
    ({"ffn_hidden_size": 1.5}, "ffn_hidden_size", 1.5, WHOLE),
    ({"hidden_dropout": -0.1}, "hidden_dropout", -0.1, PROBABILITY),
    ({"hidden_dropout": 1.0}, "hidden_dropout", 1.0, PROBABILITY),
    ({"attention_dropout": float("nan")}, "attention_dropout", "nan", PROBABILITY),
    ({"attention_dropout": "0.1"}, "attention_dropout", "0.1", PROBABILITY),
    ({"attention_dropout": False}, "attention_dropout", False, PROBABILITY),
    ({"attention_dropout": None}, "attention_dropout", None, PROBABILITY),
    ({"normalization": "layernorm"}, "normalization", "layernorm", UNLISTED),
    ({"layernorm_epsilon": 0}, "layernorm_epsilon", 0.0, ABOVE_ZERO),
    ({"layernorm_epsilon": float("inf")}, "layernorm_epsilon", "inf", ABOVE_ZERO),
    ({"add_bias_linear": 1}, "add_bias_linear", 1, "true or false is needed"),
    ({"gated_linear_unit": "yes"}, "gated_linear_unit", "yes", "true or false is needed"),
    ({"qk_layernorm": True, "qk_l2_norm": True}, "qk_l2_norm", True, "it cannot be combined with qk_layernorm"),
    ({"qk_layernorm_across_heads": True}, "qk_layernorm_across_heads", True, "it needs qk_layernorm"),
    (
        {"qk_layernorm": True, "qk_layernorm_across_heads": True, "tensor_model_parallel_size": 2},
        "tensor_model_parallel_size",
        2,
        "qk_layernorm_across_heads needs all heads on one rank",
    ),
    (
        {**ROPE, "rope_scaling": {"type": "longrope", "frequency_divisors": [1.0, 2.0]}},
        "rope_scaling",
        RopeScaling(type="longrope", frequency_divisors=(1.0, 2.0)),
        "a divisor for each of the 4 pairs that RoPE rotates is needed",
    ),
    ({"embedding_multiplier": 0}, "embedding_multiplier", 0.0, ABOVE_ZERO),
    ({"embedding_multiplier": None}, "embedding_multiplier", None, ABOVE_ZERO),
    ({"final_logit_softcapping": -1.0}, "final_logit_softcapping", -1.0, ABOVE_ZERO),
    ({"parallel_residual": 1}, "parallel_residual", 1, "true or false is needed"),
    ({"qk_norm_before_rope": False}, "qk_norm_before_rope", False, "it needs qk_layernorm or qk_l2_norm"),
    ({"activation_func": "swish"}, "activation_func", "swish", UNLISTED),
    ({"activation_func": torch.tanh}, "activation_func", torch.tanh, UNLISTED),
    ({"glu_linear_offset": 1.0}, "glu_linear_offset", 1.0, "it needs gated_linear_unit"),
    ({"glu_linear_offset": float("inf")}, "glu_linear_offset", "inf", "a finite number is needed"),
    ({"activation_func_clamp_value": 7.0}, "activation_func_clamp_value", 7.0, "it needs gated_linear_unit"),
    ({"activation_func_clamp_value": -7.0}, "activation_func_clamp_value", -7.0, ABOVE_ZERO),
    ({"softmax_scale": 0.0}, "softmax_scale", 0.0, ABOVE_ZERO),
    ({"softmax_type": "sink"}, "softmax_type", "sink", UNLISTED),
    ({"attn_logit_softcapping": -30}, "attn_logit_softcapping", -30.0, ABOVE_ZERO),
    ({"window_size": 8}, "window_size", 8, WINDOW),
    ({"window_size": (1, 2, 3)}, "window_size", (1, 2, 3), WINDOW),
    ({"window_size": (-1, 0)}, "window_size", (-1, 0), WINDOW),
    ({"window_size": [True, 0]}, "window_size", (True, 0), WINDOW),
    ({"window_size": (None, None)}, "window_size", (None, None), "unbounded on both sides is none; leave it out"),
    ({"window_attn_skip_freq": 2}, "window_attn_skip_freq", 2, "it needs window_size"),
    ({"window_size": (7, 0), "window_attn_skip_freq": 0}, "window_attn_skip_freq", 0, WHOLE),
    ({"window_size": (7, 0), "window_attn_skip_freq": [1, 0]}, "window_attn_skip_freq", (1, 0), ONE_EACH),
    (
        {"window_size": (7, 0), "window_attn_skip_freq": [1, 0, 2, 0]},
        "window_attn_skip_freq",
        (1, 0, 2, 0),
        "a list of 0 and 1, one a layer, is needed",
    ),
    ({"no_rope_freq": 4}, "no_rope_freq", 4, NEEDS_ROPE),
    (ROPE | {"no_rope_freq": [0, 1]}, "no_rope_freq", (0, 1), ONE_EACH),
    ({"position_embedding_type": "rotary"}, "position_embedding_type", "rotary", UNLISTED),
    ({"rotary_interleaved": True}, "rotary_interleaved", True, NEEDS_ROPE),
    ({"rotary_percent": 0.5}, "rotary_percent", 0.5, NEEDS_ROPE),
    (ROPE | {"rotary_percent": 0.0}, "rotary_percent", 0.0, "a share above 0 and up to 1 is needed"),
    (ROPE | {"rotary_percent": 1.1}, "rotary_percent", 1.1, "a share above 0 and up to 1 is needed"),
    (ROPE | {"rotary_percent": 0.2}, "rotary_percent", 0.2, "at least 2 of the head's 8 components must rotate"),
    (ROPE | {"rotary_percent": 0.4}, "rotary_percent", 0.4, "RoPE rotates pairs, and 3 components is an odd number"),
    (ROPE | {"kv_channels": 9}, "kv_channels", 9, "RoPE rotates pairs, and 9 components is an odd number"),
    (ROPE | {"rotary_base": 0}, "rotary_base", 0.0, ABOVE_ZERO),
    ({"seq_len_interpolation_factor": 2.0}, "seq_len_interpolation_factor", 2.0, NEEDS_ROPE),
    (ROPE | {"seq_len_interpolation_factor": 1}, "seq_len_interpolation_factor", 1.0, "a number above 1 is needed"),
    (
        ROPE | {"seq_len_interpolation_factor": 2.0, "rope_scaling": {"type": "linear", "factor": 2.0}},
        "seq_len_interpolation_factor",
        2.0,
        "it cannot be combined with rope_scaling; choose one",
    ),
    ({"rope_scaling": RopeScaling(type="linear")}, "rope_scaling", RopeScaling(type="linear"), NEEDS_ROPE),
    (ROPE | {"rope_scaling": 2.0}, "rope_scaling", 2.0, "a mapping with a type, or a RopeScaling, is needed"),
    (
        {"position_embedding_type": "relative", "relative_attention_num_buckets": 3},
        "relative_attention_num_buckets",
        3,
        "at least 4 are needed",
    ),
    (
        {"position_embedding_type": "relative", "relative_attention_max_distance": 16},
        "relative_attention_max_distance",
        16,
        "more than half of the 32 buckets is needed",
    ),
    ({"init_method": "normal"}, "init_method", "normal", "a function that fills a tensor in place is needed"),
    ({"output_layer_init_method": 0.02}, "output_layer_init_method", 0.02, "a function that fills a tensor in place"),
    ({"init_method_std": -0.02}, "init_method_std", -0.02, AT_LEAST_ZERO),
    ({"embedding_init_method_std": float("nan")}, "embedding_init_method_std", "nan", AT_LEAST_ZERO),
    ({"z_loss": -1e-4}, "z_loss", -1e-4, AT_LEAST_ZERO),
    ({"recompute_granularity": "all"}, "recompute_granularity", "all", UNLISTED),
    ({"recompute_method": "blocks"}, "recompute_method", "blocks", UNLISTED),
    (FULL | {"recompute_method": None}, "recompute_method", None, "recompute_granularity: full needs uniform or block"),
    ({"recompute_method": "block"}, "recompute_method", "block", NEEDS_FULL),
    (
        FULL | {"recompute_num_layers": None},
        "recompute_num_layers",
        None,
        "recompute_granularity: full needs a number of layers",
    ),
    ({"recompute_num_layers": 2}, "recompute_num_layers", 2, NEEDS_FULL),
    (FULL | {"recompute_num_layers": 5}, "recompute_num_layers", 5, "at most num_layers (4) is needed"),
    (
        {"recompute_granularity": "selective"},
        "recompute_modules",
        (),
        "recompute_granularity: selective needs a module's name",
    ),
    ({"recompute_modules": ["mlp"]}, "recompute_modules", ("mlp",), "it needs recompute_granularity: selective"),
    (
        {"recompute_granularity": "selective", "recompute_modules": ["moe"]},
        "recompute_modules",
        ("moe",),
        "'moe' cannot be recomputed alone",
    ),
    ({"recompute_modules": "mlp"}, "recompute_modules", "mlp", "a list of names is needed"),
    ({"sequence_parallel": True}, "sequence_parallel", True, "it needs tensor_model_parallel_size above 1"),
    (
        {"tensor_model_parallel_size": 4},
        "tensor_model_parallel_size",
        4,
        "a divisor of num_attention_heads (6) is needed",
    ),
    (
        {"tensor_model_parallel_size": 2, "num_query_groups": 3},
        "tensor_model_parallel_size",
        2,
        "a divisor or a multiple of num_query_groups (3) is needed",
    ),
    (
        {"tensor_model_parallel_size": 2, "ffn_hidden_size": 97},
        "tensor_model_parallel_size",
        2,
        "a divisor of ffn_hidden_size (97) is needed",
    ),
    ({"context_parallel_size": 0}, "context_parallel_size", 0, WHOLE),
    ({"virtual_pipeline_model_parallel_size": 2}, "virtual_pipeline_model_parallel_size", 2, NEEDS_STAGES),
    ({"pipeline_model_parallel_split_rank": 1}, "pipeline_model_parallel_split_rank", 1, NEEDS_STAGES),
    (
        {"pipeline_model_parallel_size": 2, "pipeline_model_parallel_split_rank": 2},
        "pipeline_model_parallel_split_rank",
        2,
        "the decoder has none of the 2 stages",
    ),
    (
        {
            "pipeline_model_parallel_size": 2,
            "pipeline_model_parallel_split_rank": 1,
            "num_layers_in_first_pipeline_stage": 1,
        },
        "pipeline_model_parallel_split_rank",
        1,
        "it cannot be combined with other ways to split the layers; choose one",
    ),
    (
        {"pipeline_model_parallel_size": 4, "pipeline_model_parallel_split_rank": 1},
        "num_layers",
        4,
        "4 layers (embedding and loss counted as asked) do not divide over 3 pipeline chunks",
    ),
    ({"num_layers_in_first_pipeline_stage": 1}, "num_layers_in_first_pipeline_stage", 1, NEEDS_STAGES),
    ({"num_layers_in_last_pipeline_stage": 1}, "num_layers_in_last_pipeline_stage", 1, NEEDS_STAGES),
    ({"account_for_embedding_in_pipeline_split": True}, "account_for_embedding_in_pipeline_split", True, NEEDS_STAGES),
    ({"account_for_loss_in_pipeline_split": True}, "account_for_loss_in_pipeline_split", True, NEEDS_STAGES),
    (
        {
            "pipeline_model_parallel_size": 2,
            "num_layers_in_first_pipeline_stage": 1,
            "account_for_loss_in_pipeline_split": True,
        },
        "num_layers_in_first_pipeline_stage",
        1,
        CHOOSE_SPLIT,
    ),
    (
        {
            "pipeline_model_parallel_size": 2,
            "num_layers_in_last_pipeline_stage": 1,
            "account_for_embedding_in_pipeline_split": True,
        },
        "num_layers_in_last_pipeline_stage",
        1,
        CHOOSE_SPLIT,
    ),
    (
        {"pipeline_model_parallel_size": 3},
        "num_layers",
        4,
        "4 layers (embedding and loss counted as asked) do not divide over 3 pipeline chunks",
    ),
    (
        {"pipeline_model_parallel_size": 2, "account_for_loss_in_pipeline_split": True},
        "num_layers",
        4,
        "5 layers (embedding and loss counted as asked) do not divide over 2 pipeline chunks",
    ),
    (
        {"pipeline_model_parallel_size": 2, "virtual_pipeline_model_parallel_size": 4},
        "num_layers",
        4,
        "do not divide over 8 pipeline chunks",
    ),
    (
        {
            "pipeline_model_parallel_size": 2,
            "num_layers_in_first_pipeline_stage": 4,
            "num_layers_in_last_pipeline_stage": 1,
        },
        "num_layers",
        4,
        "the first and the last pipeline stage ask for more layers than there are",
    ),
    (
        {
            "pipeline_model_parallel_size": 2,
            "num_layers_in_first_pipeline_stage": 1,
            "num_layers_in_last_pipeline_stage": 1,
        },
        "num_layers",
        4,
        "the two pipeline stages leave 2 layers over",
    ),
    (
        {
            "pipeline_model_parallel_size": 2,
            "virtual_pipeline_model_parallel_size": 2,
            "num_layers_in_first_pipeline_stage": 1,
        },
        "num_layers_in_first_pipeline_stage",
        1,
        "a multiple of virtual_pipeline_model_parallel_size (2) is needed",
    ),
    (
        {
            "pipeline_model_parallel_size": 2,
            "virtual_pipeline_model_parallel_size": 2,
            "num_layers_in_last_pipeline_stage": 3,
        },
        "num_layers_in_last_pipeline_stage",
        3,
        "a multiple of virtual_pipeline_model_parallel_size (2) is needed",
    ),
    ({"pipeline_model_parallel_layout": 4}, "pipeline_model_parallel_layout", 4, "a text such as Et*3|(tt|)*2,t*3,L"),
    ({"pipeline_model_parallel_layout": "Et*4L"}, "pipeline_model_parallel_layout", "Et*4L", NEEDS_STAGES),
    (
        {
            "pipeline_model_parallel_size": 2,
            "num_layers_in_first_pipeline_stage": 1,
            "pipeline_model_parallel_layout": "Et|t*3L",
        },
        "pipeline_model_parallel_layout",
        "Et|t*3L",
        "it cannot be combined with other ways to split the layers; choose one",
    ),
    ({"params_dtype": "float8"}, "params_dtype", "float8", UNLISTED),
    ({"params_dtype": torch.int64}, "params_dtype", "int64", UNLISTED),
    ({"fp16": True, "bf16": True}, "fp16", True, "it cannot be combined with bf16; choose one"),
    ({"fp16": True, "params_dtype": "float32"}, "params_dtype", "float32", "fp16 is set; leave one of them out"),
    ({"bf16": True, "params_dtype": "float16"}, "params_dtype", "float16", "bf16 is set; leave one of them out"),
]


@pytest.mark.parametrize(
    ("given", "field", "value", "right"), IMPOSSIBLE, ids=[f"{i}-{case[1]}" for i, case in enumerate(IMPOSSIBLE)]
)
def test_config_is_refused_when_impossible(given, field, value, right):
    with pytest.raises(ConfigError) as caught:
        TransformerConfig(**(SMALL | given))
    error = caught.value
    assert error.field == field
    assert error.path == f"config.{field}"
    shown = value if value in ("nan", "inf") else repr(value)
    assert error.what.startswith(f"{field} is {shown}; ")
    assert right in error.what


def test_config_error_lists_the_choices_and_the_nearest():
    with pytest.raises(ConfigError) as caught:
        TransformerConfig(**SMALL, normalization="RMSnorm")
    assert caught.value.available == ("LayerNorm", "RMSNorm")
    assert caught.value.hint == "RMSNorm?"


def test_config_derives_what_is_not_given():
    config = TransformerConfig(**SMALL)
    assert (config.num_query_groups, config.kv_channels, config.ffn_hidden_size) == (6, 8, 192)
    assert config.embedding_init_method_std == 0.02
    assert config.init_method == NormalInit(0.02)
    assert config.output_layer_init_method == NormalInit(pytest.approx(0.02 / 8**0.5))
    assert config.params_dtype == "float32"


def test_config_keeps_initialisations_that_are_given():
    config = TransformerConfig(
        **SMALL,
        embedding_init_method_std=0.1,
        init_method=torch.nn.init.ones_,
        output_layer_init_method=NormalInit(0.5),
    )
    assert config.embedding_init_method_std == 0.1
    assert config.init_method is torch.nn.init.ones_
    assert config.output_layer_init_method == NormalInit(0.5)


def test_config_keeps_head_size_that_does_not_multiply_to_hidden_size():
    config = TransformerConfig(num_layers=1, hidden_size=50, num_attention_heads=6, kv_channels=16)
    assert (config.kv_channels, config.hidden_size) == (16, 50)


@pytest.mark.parametrize(("flag", "dtype"), [("fp16", "float16"), ("bf16", "bfloat16")])
def test_config_dtype_follows_flag(flag, dtype):
    assert TransformerConfig(**SMALL, **{flag: True}).params_dtype == dtype


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (F.gelu, "gelu"),
        (F.silu, "silu"),
        (F.relu, "relu"),
        (torch.relu, "relu"),
        (torch.sigmoid, "sigmoid"),
        ("quick_gelu", "quick_gelu"),
    ],
)
def test_config_names_torch_functions(function, name):
    assert TransformerConfig(**SMALL, activation_func=function).activation_func == name


def test_config_names_partial_of_gelu_by_what_it_approximates():
    tanh = functools.partial(F.gelu, approximate="tanh")
    exact = functools.partial(F.gelu, approximate="none")
    assert TransformerConfig(**SMALL, activation_func=tanh).activation_func == "gelu_tanh"
    assert TransformerConfig(**SMALL, activation_func=exact).activation_func == "gelu"


def test_config_takes_no_stranger_for_a_torch_function_of_its_name():
    def gelu(x):
        return x

    with pytest.raises(ConfigError) as caught:
        TransformerConfig(**SMALL, activation_func=gelu)
    assert caught.value.value is gelu


def test_config_names_torch_dtype():
    assert TransformerConfig(**SMALL, params_dtype=torch.bfloat16).params_dtype == "bfloat16"


def test_config_is_frozen_hashable_and_equal_by_content():
    one, other = TransformerConfig(**SMALL), TransformerConfig(**SMALL, ffn_hidden_size=192)
    assert one == other
    assert len({one, other}) == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.num_layers = 5


def test_replace_lets_derived_fields_follow():
    config = TransformerConfig(**SMALL).replace(hidden_size=96, num_layers=1)
    assert (config.kv_channels, config.ffn_hidden_size) == (16, 384)
    assert config.output_layer_init_method == NormalInit(pytest.approx(0.02 / 2**0.5))


def test_replace_keeps_what_was_given():
    config = TransformerConfig(**SMALL, ffn_hidden_size=100, kv_channels=8).replace(hidden_size=96)
    assert (config.kv_channels, config.ffn_hidden_size) == (8, 100)
    assert config.replace(kv_channels=None).kv_channels == 16


def test_replace_refuses_unknown_field():
    with pytest.raises(ConfigError) as caught:
        TransformerConfig(**SMALL).replace(hiden_size=96)
    assert caught.value.what == "config has no field 'hiden_size'."
    assert caught.value.hint == "hidden_size?"


def test_replace_checks_anew():
    with pytest.raises(ConfigError) as caught:
        TransformerConfig(**SMALL).replace(num_attention_heads=5)
    assert caught.value.what.startswith("hidden_size is 48; a multiple of num_attention_heads (5) is needed")


RICH = SMALL | {
    "position_embedding_type": "rope",
    "rope_scaling": {"type": "llama3", "factor": 8.0, "original_max_position_embeddings": 64},
    "window_size": [7, None],
    "window_attn_skip_freq": [1, 1, 0, 1],
    "hidden_dropout": 0,
    "gated_linear_unit": True,
    "recompute_granularity": "selective",
    "recompute_modules": ["mlp"],
}


def test_to_dict_gives_what_was_given_as_plain_data():
    assert TransformerConfig(**RICH).to_dict() == RICH
    assert msgspec.json.decode(msgspec.json.encode(TransformerConfig(**RICH).to_dict())) == RICH


def test_to_dict_leaves_out_what_follows():
    assert TransformerConfig(**SMALL).to_dict() == SMALL


@pytest.mark.parametrize("name", ["init_method", "output_layer_init_method"])
def test_to_dict_refuses_functions(name):
    with pytest.raises(ConfigError) as caught:
        TransformerConfig(**SMALL, **{name: torch.nn.init.ones_}).to_dict()
    assert caught.value.what == f"{name} is a function, which cannot be written down."
    assert caught.value.value is torch.nn.init.ones_


def test_config_converts_from_plain_data():
    config = msgspec.convert(RICH, TransformerConfig, strict=True)
    assert config == TransformerConfig(**RICH)
    assert config.rope_scaling == RopeScaling(type="llama3", factor=8.0, original_max_position_embeddings=64)
    assert config.to_dict() == RICH


@pytest.mark.parametrize("change", [{"num_layers": "4"}, {"add_bias_linear": 1}, {"hidden_dropout": True}])
def test_config_converts_strictly(change):
    with pytest.raises(msgspec.ValidationError, match=f"Expected .* - at `\\$.{next(iter(change))}`"):
        msgspec.convert(SMALL | change, TransformerConfig, strict=True)


def test_config_has_a_json_schema():
    schema = msgspec.json.schema(TransformerConfig)["$defs"]["TransformerConfig"]
    assert schema["required"] == ["num_layers", "hidden_size", "num_attention_heads"]
    assert schema["properties"]["activation_func"]["enum"] == sorted(
        ["gelu", "gelu_tanh", "silu", "relu", "squared_relu", "quick_gelu", "sigmoid"]
    )


@pytest.mark.parametrize("again", [copy.deepcopy, copy.copy, lambda c: pickle.loads(pickle.dumps(c))])
def test_config_survives_copies(again):
    config = again(TransformerConfig(**RICH))
    assert config == TransformerConfig(**RICH)
    assert config.to_dict() == RICH


@pytest.mark.parametrize(
    ("freq", "windowed"),
    [(None, [1, 2, 3, 4]), (1, []), (2, [1, 3]), (3, [1, 2, 4]), ([1, 0, 0, 1], [1, 4])],
    ids=str,
)
def test_window_of_layer_follows_skip_freq(freq, windowed):
    config = TransformerConfig(**SMALL, window_size=(7, 0), window_attn_skip_freq=freq)
    assert [n for n in range(1, 5) if config.window_of(n) == (7, 0)] == windowed
    assert {config.window_of(n) for n in range(1, 5)} <= {(7, 0), None}


def test_window_of_layer_is_none_when_there_is_none():
    assert TransformerConfig(**SMALL).window_of(1) is None


@pytest.mark.parametrize(
    ("freq", "rotated"), [(None, [1, 2, 3, 4]), (4, [1, 2, 3]), (2, [1, 3]), ([1, 0, 0, 1], [2, 3])], ids=str
)
def test_has_rope_follows_no_rope_freq(freq, rotated):
    config = TransformerConfig(**SMALL, **ROPE, no_rope_freq=freq)
    assert [n for n in range(1, 5) if config.has_rope(n)] == rotated


def test_has_rope_is_false_for_other_position_embeddings():
    assert not TransformerConfig(**SMALL).has_rope(1)


def test_importing_and_making_a_config_loads_no_torch():
    code = (
        "import sys; from transom.transformer.transformer_config import TransformerConfig as T;"
        "T(num_layers=1, hidden_size=8, num_attention_heads=2); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
