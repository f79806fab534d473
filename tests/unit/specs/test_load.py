"""Reading specs: files of three kinds, recipes, mappings; every refusal names file, path and line."""

from __future__ import annotations

import copy
import json
import pickle

import pytest
from transom.errors import ConfigError, SpecError
from transom.specs.load import load_spec, recipe_names
from transom.specs.spec import ModelSpec
from transom.transformer.transformer_config import TransformerConfig

MINIMAL = {
    "vocab_size": 16,
    "max_sequence_length": 8,
    "config": {"num_layers": 2, "hidden_size": 8, "num_attention_heads": 2},
}
YAML = """\
vocab_size: 16
max_sequence_length: 8
config:
  num_layers: 2
  hidden_size: 8
  num_attention_heads: 2
"""
TOML = """\
vocab_size = 16
max_sequence_length = 8
[config]
num_layers = 2
hidden_size = 8
num_attention_heads = 2
"""


def changed(**changes):
    data = copy.deepcopy(MINIMAL)
    data["config"] |= changes.pop("config", {})
    return data | changes


@pytest.mark.parametrize(
    ("name", "text"), [("a.yaml", YAML), ("a.yml", YAML), ("a.toml", TOML), ("a.json", json.dumps(MINIMAL))]
)
def test_load_spec_reads_a_file_as_its_ending_says(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    spec = load_spec(tmp_path / name)
    assert (spec.vocab_size, spec.config.hidden_size, spec.name, spec.source) == (16, 8, "a", name)
    assert load_spec(str(tmp_path / name)) == spec


def test_load_spec_reads_every_recipe():
    assert {"tiny-gpt2", "tiny-llama"} <= set(recipe_names())
    for name in recipe_names():
        assert load_spec(name).name == name


def test_load_spec_reads_a_mapping_with_objects_in_it():
    config = TransformerConfig(num_layers=2, hidden_size=8, num_attention_heads=2)
    spec = load_spec({**MINIMAL, "config": config, "train": load_spec("tiny-llama").train})
    assert spec.config == config
    assert spec.train.steps == load_spec("tiny-llama").train.steps
    assert (spec.name, spec.source) == ("model", "the mapping")


def test_load_spec_returns_a_spec_as_it_is():
    spec = load_spec(MINIMAL)
    assert load_spec(spec) is spec


@pytest.mark.parametrize("name", recipe_names())
def test_spec_reads_back_what_it_writes(name):
    spec = load_spec(name)
    assert load_spec(json.loads(json.dumps(spec.to_dict()))) == spec


def test_spec_remembers_where_it_was_read_from_when_pickled(tmp_path):
    (tmp_path / "a.yaml").write_text(YAML)
    spec = load_spec(tmp_path / "a.yaml")
    again = pickle.loads(pickle.dumps(spec))
    assert (again, again.source, again.lines()) == (spec, "a.yaml", spec.lines())
    assert spec.lines()["config", "hidden_size"] == 5


def test_spec_made_in_a_program_calls_itself_by_its_name():
    config = TransformerConfig(num_layers=2, hidden_size=8, num_attention_heads=2)
    spec = ModelSpec(vocab_size=4, max_sequence_length=4, config=config, name="mine")
    assert (spec.source, spec.lines()) == ("spec 'mine'", {})


@pytest.mark.parametrize(
    ("data", "path", "what"),
    [
        (changed(vocab=3), "vocab", "no field is named 'vocab'."),
        (changed(config={"hiden_size": 3}), "config.hiden_size", "no field is named 'hiden_size' in config."),
        (changed(vocab_size="16"), "vocab_size", "vocab_size: expected `int`, got `str`."),
        (changed(vocab_size=0), "vocab_size", "vocab_size: expected `int` >= 1."),
        (changed(name="a\nb"), "name", "name: expected `str` matching regex '^[^\\\\x00-\\\\x1f\\\\x7f]+$'."),
        (changed(use={"mlp": "a", "norm": 3}), "use.norm", "use.norm: expected `str | array`, got `int`."),
        (changed(options={"mlp": 3}), "options.mlp", "options.mlp: expected `object`, got `int`."),
        (changed(train={"steps": 0}), "train.steps", "train.steps is 0; it must be 1 or more."),
        (changed(masks=["paddin"]), "masks", "masks: no kind of mask is named 'paddin'; there are causal, bottom"),
        ({k: v for k, v in MINIMAL.items() if k != "config"}, "config", "config is missing."),
        (changed(use={"mlp": object()}), "", "a object stands in the mapping; a spec is plain data."),
        (changed(use={"mlp": b""}), "", "a bytes stands in the mapping; a spec is plain data."),
        ({(1, 2): 3}, "", "the mapping is not plain data: keys must be str, int, float, bool or None, not tuple."),
        (changed(vocab_size=float("nan")), "", "NaN is not a number that a spec may hold."),
    ],
)
def test_load_spec_refuses_a_mapping_and_says_where(data, path, what):
    with pytest.raises(SpecError) as caught:
        load_spec(data)
    assert caught.value.path == path
    assert caught.value.what.startswith(what)


def test_load_spec_refuses_a_mapping_that_holds_itself():
    data = changed()
    data["options"] = data
    with pytest.raises(SpecError, match=r"the mapping is not plain data: Circular reference detected\."):
        load_spec(data)


@pytest.mark.parametrize(("text", "kind"), [("", "empty"), ("3", "a int"), ("- 1", "a list")])
def test_load_spec_refuses_a_file_that_is_no_mapping(tmp_path, text, kind):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(SpecError) as caught:
        load_spec(tmp_path / "a.yaml")
    assert caught.value.what == f"a spec is a mapping, not {kind}."
    assert (caught.value.file, caught.value.hint) == ("a.yaml", "see the packaged tiny-llama")


def test_load_spec_keeps_what_a_wrong_config_says(tmp_path):
    (tmp_path / "a.yaml").write_text(YAML.replace("hidden_size: 8", "hidden_size: 9"))
    with pytest.raises(ConfigError) as caught:
        load_spec(tmp_path / "a.yaml")
    error = caught.value
    assert (error.field, error.value, error.path, error.line) == ("hidden_size", 9, "config.hidden_size", 5)
    assert error.what.startswith("hidden_size is 9; a multiple of num_attention_heads (2) is needed")
    assert error.asked_by == "config.hidden_size, line 5, a.yaml"


def test_load_spec_names_the_line_of_a_value_in_yaml(tmp_path):
    (tmp_path / "a.yaml").write_text(YAML + "use:\n  mlp: x\n  norm:\n    - 3\n")
    with pytest.raises(SpecError) as caught:
        load_spec(tmp_path / "a.yaml")
    assert (caught.value.path, caught.value.line) == ("use.norm.0", 10)


def test_load_spec_lists_the_specs_beside_a_missing_file(tmp_path):
    (tmp_path / "b.yaml").write_text(YAML)
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(SpecError) as caught:
        load_spec(tmp_path / "a.yaml")
    assert caught.value.what == f"no spec file {str(tmp_path / 'a.yaml')!r}."
    assert caught.value.available == ("b.yaml",)
    with pytest.raises(SpecError, match="no spec file") as caught:
        load_spec(tmp_path / "nowhere" / "a.yaml")
    assert caught.value.available == ()


def test_load_spec_refuses_a_file_whose_ending_says_nothing(tmp_path):
    (tmp_path / "a.txt").write_text(YAML)
    with pytest.raises(SpecError) as caught:
        load_spec(tmp_path / "a.txt")
    assert caught.value.what == f"{str(tmp_path / 'a.txt')!r} has no ending that says how to read it."
    assert caught.value.hint == "name it .yaml, .toml or .json"


@pytest.mark.parametrize(
    ("name", "hint"),
    [("tiny-lama", "tiny-llama?"), ("zzz", "a path ending in .yaml, .toml or .json, or a recipe's name")],
)
def test_load_spec_names_the_nearest_recipe(name, hint):
    with pytest.raises(SpecError) as caught:
        load_spec(name)
    assert caught.value.what == f"no spec file and no packaged recipe is named {name!r}."
    assert caught.value.hint == hint
    assert "tiny-llama" in caught.value.available


def test_load_spec_refuses_a_file_that_cannot_be_read(tmp_path):
    (tmp_path / "a.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(SpecError, match=r"cannot read .*a\.yaml: it is not UTF-8 text\."):
        load_spec(tmp_path / "a.yaml")
    locked = tmp_path / "b.yaml"
    locked.symlink_to(locked)  # a loop: no file, whoever reads
    with pytest.raises(SpecError, match="no spec file"):
        load_spec(locked)


def test_load_spec_tells_why_the_system_does_not_read(tmp_path, monkeypatch):
    (tmp_path / "a.yaml").write_text(YAML)

    def denied(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.read_text", denied)
    with pytest.raises(SpecError, match=r"cannot read .*a\.yaml: Permission denied\."):
        load_spec(tmp_path / "a.yaml")
