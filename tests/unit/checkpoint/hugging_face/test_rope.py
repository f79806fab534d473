"""Both forms in which a config describes RoPE are read alike, and what is written is read again."""

from __future__ import annotations

from typing import Any

import pytest
from transom import TransformerConfig
from transom.checkpoint.hugging_face.rope import read_rope, write_rope
from transom.checkpoint.hugging_face.settings import Settings

LLAMA3 = {
    "factor": 8.0,
    "original_max_position_embeddings": 8192,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
}


def read(values: dict[str, Any], **options: Any) -> dict[str, Any]:
    settings = Settings(values, "config.json")
    found = read_rope(settings, **options)
    settings.check()
    return found


def test_nothing_said_is_the_usual() -> None:
    assert read({}) == {"position_embedding_type": "rope", "rotary_base": 10000.0, "rotary_percent": 1.0}
    assert read({}, share=0.25, is_partial=True)["rotary_percent"] == 0.25


@pytest.mark.parametrize(
    "values",
    [
        {"rope_theta": 5e5, "partial_rotary_factor": 0.5, "rope_scaling": {"type": "llama3", **LLAMA3}},
        {"rope_theta": 5e5, "partial_rotary_factor": 0.5, "rope_scaling": {"rope_type": "llama3", **LLAMA3}},
        {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, "partial_rotary_factor": 0.5, **LLAMA3}},
    ],
    ids=["oldest", "older", "newer"],
)
def test_all_forms_say_the_same(values: dict[str, Any]) -> None:
    assert read(values, is_partial=True) == {
        "position_embedding_type": "rope",
        "rotary_base": 5e5,
        "rotary_percent": 0.5,
        "rope_scaling": {"type": "llama3", **LLAMA3},
    }


def test_the_original_length_is_the_models_where_it_is_not_said() -> None:
    found = read({"max_position_embeddings": 4096, "rope_scaling": {"type": "yarn", "factor": 4.0}})
    assert found["rope_scaling"] == {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096}


def test_one_mscale_without_the_other_has_no_effect() -> None:
    yarn = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    assert read({"rope_scaling": yarn | {"mscale": 0.7}})["rope_scaling"] == yarn
    both = {"mscale": 0.7, "mscale_all_dim": 1.0}
    assert read({"rope_scaling": yarn | both})["rope_scaling"] == yarn | both


def test_families_that_rotate_whole_heads_refuse_a_part() -> None:
    with pytest.raises(ValueError, match=r"partial_rotary_factor is 0\.5: the family rotates whole heads"):
        read({"partial_rotary_factor": 0.5})


@pytest.mark.parametrize(
    ("scaling", "message"),
    [
        ({"type": "dynamic", "factor": 2.0}, "rope_type is 'dynamic'; there are default, linear, llama3, yarn"),
        ({"type": "linear"}, "rope_type is 'linear', and factor is missing"),
        ({"type": "yarn", "factor": 2.0, "truncate": False}, "truncate is False"),
        ("linear", "rope_scaling is 'linear', not a mapping"),
    ],
    ids=str,
)
def test_what_cannot_be_computed_is_refused(scaling: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read({"rope_scaling": scaling, "max_position_embeddings": 64})


@pytest.mark.parametrize(
    "scaling",
    [
        None,
        {"type": "linear", "factor": 2.0},
        {"type": "llama3", **LLAMA3},
        {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "attention_factor": 1.5},
    ],
    ids=str,
)
def test_what_is_written_is_read_again(scaling: dict[str, Any] | None) -> None:
    fields = {"position_embedding_type": "rope", "rotary_base": 500.0, "rotary_percent": 0.5}
    sizes = {"num_layers": 1, "hidden_size": 32, "num_attention_heads": 2}
    config = TransformerConfig(**sizes, **fields, rope_scaling=scaling)
    assert TransformerConfig(**sizes, **read(write_rope(config), is_partial=True)) == config
