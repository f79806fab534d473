from __future__ import annotations

import pytest
from transom.errors import ConfigError
from transom.transformer.rope_scaling import RopeScaling
from transom.transformer.transformer_config import TransformerConfig

DIVISORS = "a list of numbers above 0, one a pair, is needed."


@pytest.mark.parametrize(
    ("scaling", "field", "right"),
    [
        ({"type": "ntk"}, "type", "type is 'ntk'; it is not one of those there are."),
        ({"factor": 2.0}, "type", "type is None; it must be given."),
        ({"type": "linear", "facter": 2.0}, "facter", "config.rope_scaling has no field 'facter'."),
        ({"type": "linear", "factor": 0.5}, "factor", "factor is 0.5; a number of at least 1 is needed."),
        ({"type": "linear", "factor": "2"}, "factor", "factor is '2'; a finite number above 0 is needed."),
        ({"type": "linear", "factor": float("nan")}, "factor", "factor is nan; a finite number above 0 is needed."),
        ({"type": "linear", "beta_fast": 16.0}, "beta_fast", "beta_fast is 16.0; type linear has no such number."),
        ({"type": "xpos", "factor": 2.0}, "factor", "factor is 2.0; type xpos has no such number."),
        ({"type": "xpos", "scale_base": 0}, "scale_base", "scale_base is 0; a finite number above 0 is needed."),
        (
            {"type": "llama3", "factor": 8.0},
            "original_max_position_embeddings",
            "original_max_position_embeddings is None; "
            "type llama3 needs the trained context, a whole number of tokens.",
        ),
        (
            {"type": "llama3", "factor": 8.0, "original_max_position_embeddings": 64, "low_freq_factor": 4.0},
            "low_freq_factor",
            "low_freq_factor is 4.0; a number below high_freq_factor (4.0) is needed.",
        ),
        (
            {"type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64, "beta_slow": 32},
            "beta_slow",
            "beta_slow is 32; a number below beta_fast (32.0) is needed.",
        ),
        ({"type": "longrope"}, "frequency_divisors", f"frequency_divisors is None; {DIVISORS}"),
        (
            {"type": "longrope", "frequency_divisors": [1.0, 0]},
            "frequency_divisors",
            f"frequency_divisors is (1.0, 0); {DIVISORS}",
        ),
        (
            {"type": "linear", "factor": 2.0, "frequency_divisors": [1.0]},
            "frequency_divisors",
            "frequency_divisors is (1.0,); type linear has no such number.",
        ),
        (
            {"type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64, "mscale_all_dim": 1.0},
            "mscale_all_dim",
            "mscale_all_dim is 1.0; it needs mscale.",
        ),
    ],
)
def test_rope_scaling_is_refused_when_impossible(scaling, field, right):
    with pytest.raises(ConfigError) as caught:
        RopeScaling.from_mapping(scaling)
    assert caught.value.what == right
    assert caught.value.path == f"config.rope_scaling.{field}"


def test_rope_scaling_is_checked_when_a_config_gets_a_mapping():
    with pytest.raises(ConfigError) as caught:
        TransformerConfig(
            num_layers=1,
            hidden_size=8,
            num_attention_heads=2,
            position_embedding_type="rope",
            rope_scaling={"type": "linear", "factor": 0.5},
        )
    assert caught.value.path == "config.rope_scaling.factor"


@pytest.mark.parametrize(
    "scaling",
    [
        {"type": "linear", "factor": 2.0},
        {"type": "xpos", "scale_base": 256.0},
        {"type": "longrope", "frequency_divisors": [1.0, 1.5], "attention_factor": 1.2},
        {"type": "llama3", "factor": 8.0, "original_max_position_embeddings": 64, "low_freq_factor": 2.0},
        {"type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64, "mscale": 0.7, "mscale_all_dim": 1.0},
    ],
    ids=lambda scaling: scaling["type"],
)
def test_rope_scaling_gives_back_the_data_it_was_made_of(scaling):
    made = RopeScaling.from_mapping(scaling)
    assert made.to_dict() == scaling
    assert hash(made) == hash(RopeScaling(**scaling))
