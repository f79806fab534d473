"""What a spec computes is told by a config, or refused: reading what was written gives the same spec."""

from __future__ import annotations

from typing import Any

import pytest
import transom
from transom import ModelSpec
from transom.checkpoint.hugging_face.export import choose_family, differences, exported_settings
from transom.checkpoint.hugging_face.families import FAMILIES
from transom.checkpoint.hugging_face.settings import Settings
from transom.errors import CheckpointError


def llama(**changes: Any) -> ModelSpec:
    config = {
        "num_layers": 2,
        "hidden_size": 16,
        "num_attention_heads": 4,
        "num_query_groups": 2,
        "ffn_hidden_size": 24,
        "normalization": "RMSNorm",
        "gated_linear_unit": True,
        "activation_func": "silu",
        "add_bias_linear": False,
        "position_embedding_type": "rope",
    }
    return transom.load_spec({"vocab_size": 9, "max_sequence_length": 32, "config": config | changes})


FAMILY_OF: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("llama", {}),
    "biases": ("llama", {"add_bias_linear": True}),
    "another head size": ("llama", {"kv_channels": 6}),
    "a window": ("mistral", {"window_size": (6, 0)}),
    "query biases": ("qwen2", {"add_qkv_bias": True}),
    "windows in some layers": (
        "qwen2",
        {"add_qkv_bias": True, "window_size": (6, 0), "window_attn_skip_freq": 2},
    ),
    "query and key norms": ("qwen3", {"qk_layernorm": True}),
    "a part rotated": ("phi3", {"rotary_percent": 0.5}),
    "norms over all heads": (
        "olmo2",
        {
            "qk_layernorm": True,
            "qk_layernorm_across_heads": True,
            "pre_layernorm": False,
            "post_attention_layernorm": True,
            "post_mlp_layernorm": True,
        },
    ),
    "caps and scales": (
        "gemma2",
        {
            "layernorm_zero_centered_gamma": True,
            "post_attention_layernorm": True,
            "post_mlp_layernorm": True,
            "embedding_multiplier": 4.0,
            "final_logit_softcapping": 30.0,
            "softmax_scale": 24**-0.5,
        },
    ),
    "learned positions": (
        "gpt2",
        {
            "num_query_groups": 4,
            "normalization": "LayerNorm",
            "gated_linear_unit": False,
            "activation_func": "gelu_tanh",
            "add_bias_linear": True,
            "position_embedding_type": "learned_absolute",
        },
    ),
    "parallel branches": (
        "gpt_neox",
        {
            "num_query_groups": 4,
            "normalization": "LayerNorm",
            "gated_linear_unit": False,
            "activation_func": "gelu",
            "add_bias_linear": True,
            "parallel_residual": True,
            "rotary_percent": 0.5,
        },
    ),
}


@pytest.mark.parametrize(("family", "changes"), FAMILY_OF.values(), ids=FAMILY_OF)
def test_the_first_family_that_computes_the_same_is_chosen(family: str, changes: dict[str, Any]) -> None:
    spec = llama(**changes)
    assert choose_family(spec).model_type == family
    settings = exported_settings(FAMILIES[family], spec, dtype="float32")
    again = transom.load_spec(FAMILIES[family].to_spec(Settings(settings, "config.json")))
    assert again.config.window_of(1) == spec.config.window_of(1)
    assert differences(FAMILIES[family], again) == []


def test_what_no_family_computes_is_refused_and_said_of_the_nearest() -> None:
    with pytest.raises(CheckpointError, match=r"cannot be told by a config\.json of any family there is") as caught:
        choose_family(llama(softmax_type="off-by-one", rotary_interleaved=True))
    assert caught.value.failed[0].startswith(("llama: ", "mistral: "))
    nearest = caught.value.differences["llama"]
    assert sorted(nearest) == [
        "rotary_interleaved is True, and would be False",
        "softmax_type is off-by-one, and would be vanilla",
    ]


def test_a_family_that_is_named_is_taken_or_refused() -> None:
    assert choose_family(llama(), "mistral").model_type == "mistral"
    with pytest.raises(CheckpointError, match=r"cannot be told by a config\.json of gpt2"):
        choose_family(llama(), "gpt2")
    with pytest.raises(CheckpointError, match="no family of models is named 'lllama'") as caught:
        choose_family(llama(), "lllama")
    assert "llama" in caught.value.available


def test_the_family_it_came_from_is_tried_first() -> None:
    assert choose_family(llama(), first="mistral").model_type == "mistral"
    assert choose_family(llama(add_qkv_bias=True), first="mistral").model_type == "qwen2"


def test_training_and_execution_make_no_difference() -> None:
    spec = llama(hidden_dropout=0.3, init_method_std=0.5, recompute_granularity="selective", recompute_modules=["mlp"])
    assert differences(FAMILIES["llama"], spec) == []


def test_another_activation_is_refused() -> None:
    assert differences(FAMILIES["gpt2"], llama(gated_linear_unit=False, activation_func="squared_relu"))


def test_what_says_nothing_of_the_computation_is_kept() -> None:
    original = {
        "model_type": "llama",
        "eos_token_id": 7,
        "rope_parameters": {"rope_theta": 5.0},
        "hidden_act": "swish",
        "dtype": "float32",
        "transformers_version": "5",
    }
    settings = exported_settings(FAMILIES["llama"], llama(), dtype="bfloat16", original=original)
    assert settings["eos_token_id"] == 7
    assert settings["hidden_act"] == "swish"
    assert settings["torch_dtype"] == "bfloat16"
    assert settings["architectures"] == ["LlamaForCausalLM"]
    assert not {"rope_parameters", "dtype", "transformers_version"} & settings.keys()
    other = exported_settings(FAMILIES["mistral"], llama(), dtype="float32", original=original)
    assert "eos_token_id" not in other
