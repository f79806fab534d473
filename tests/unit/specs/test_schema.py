"""The spec's JSON Schema accepts what `load_spec` accepts, and refuses what is unknown or of a wrong type."""

from __future__ import annotations

import copy
import json

import jsonschema
import pytest
import yaml
from transom.specs.load import load_spec, recipe_names
from transom.specs.schema import spec_schema
from transom.specs.spec import ModelSpec

SCHEMA = spec_schema()
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
MINIMAL = {
    "vocab_size": 16,
    "max_sequence_length": 8,
    "config": {"num_layers": 2, "hidden_size": 8, "num_attention_heads": 2},
}


def test_schema_is_one():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("name", recipe_names())
def test_recipes_are_valid(name):
    from importlib.resources import files

    VALIDATOR.validate(yaml.safe_load(files("transom").joinpath("recipes", f"{name}.yaml").read_text()))


@pytest.mark.parametrize("name", recipe_names())
def test_what_a_spec_writes_is_valid(name):
    VALIDATOR.validate(json.loads(json.dumps(load_spec(name).to_dict())))


@pytest.mark.parametrize(
    "changes",
    [
        {"use": {"linear": "a | b", "layers.*.mlp": ["a", "b"]}},
        {"options": {"mlp": {"anything": [1, {"at": "all"}]}}},
        {"bundle": "fast"},
        {"bundle": ["fast", "acme/faster"]},
        {"masks": ["padding", "packed"]},
        {"train": {"steps": 3, "betas": [0.9, 0.95], "learning_rate": 1}},
        {"config": {"window_size": [3, 0]}},
        {"config": {"position_embedding_type": "rope", "rope_scaling": {"type": "linear", "factor": 2}}},
    ],
)
def test_schema_and_reader_both_accept(changes):
    data = _changed(changes)
    VALIDATOR.validate(data)
    assert isinstance(load_spec(data), ModelSpec)


@pytest.mark.parametrize(
    "changes",
    [
        {"vocab": 3},
        {"vocab_size": "16"},
        {"vocab_size": 0},
        {"masks": ["paddin"]},
        {"use": {"linear": 3}},
        {"options": {"mlp": 3}},
        {"train": {"step": 3}},
        {"config": {"hiden_size": 3}},
        {"config": {"hidden_size": 8.5}},
        {"config": {"normalization": "rms"}},
        {"config": {"init_method": "normal"}},
        {"config": {"rope_scaling": {"type": "linear", "fctor": 2}}},
        {"name": "a\nb"},
    ],
)
def test_schema_and_reader_both_refuse(changes):
    data = _changed(changes)
    assert not VALIDATOR.is_valid(data)
    with pytest.raises(ValueError, match=r"\."):
        load_spec(data)


def test_every_field_is_described():
    for definition in SCHEMA["$defs"].values():
        assert definition["description"]
        assert all(field["description"] for field in definition["properties"].values())


def test_slots_are_completed_as_keys_of_use():
    use = SCHEMA["$defs"]["ModelSpec"]["properties"]["use"]["properties"]
    assert use["core_attention"]["description"] == "softmax(q·k) v, with masks"
    assert use["linear"]["description"] == "both of column_linear and row_linear"


def _changed(changes):
    data = copy.deepcopy(MINIMAL)
    data["config"] |= changes.get("config", {})
    return data | {name: value for name, value in changes.items() if name != "config"}
