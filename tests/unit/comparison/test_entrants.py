"""Who is compared."""

from __future__ import annotations

import pytest
import torch
from transom.comparison.entrants import _plans, entrants, reason
from transom.errors import InputError, ResolutionError, UnknownImplementationError, UserConfigError
from transom.specs.load import load_spec

SPEC = {
    "name": "small",
    "vocab_size": 32,
    "max_sequence_length": 16,
    "config": {"num_layers": 2, "hidden_size": 16, "num_attention_heads": 2},
}
SETTINGS = {"mode": "train", "device": "cpu", "dtype": None}


def test_entrants_have_the_same_weights_none_of_which_is_alike_everywhere():
    found = entrants(load_spec(SPEC), "linear", ["torch_linear", "parallel_linear"], SETTINGS, {})
    one, other = (module.state_dict() for module in found.modules.values())
    assert found.path == "layers.0.self_attention.linear_qkv"
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert all(bool((each != each.flatten()[0]).any()) for each in one.values())


def test_entrants_fill_a_place_that_no_other_entry_fills():
    entries = {"layers.0.self_attention.core_attention": "dot_product"}
    found = entrants(load_spec(SPEC), "core_attention", ["dot_product", "torch_dot_product"], SETTINGS, entries)
    assert found.path == "layers.1.self_attention.core_attention"


def test_entrants_name_who_fills_no_place_because_of_other_entries():
    entries = {f"layers.{i}.self_attention.core_attention": "dot_product" for i in range(2)}
    names = ["dot_product", "torch_dot_product"]
    with pytest.raises(InputError) as raised:
        entrants(load_spec(SPEC), "core_attention", names[1:], SETTINGS, entries)
    assert raised.value.slot == "core_attention"


def test_entrants_refuse_a_name_that_nothing_has():
    with pytest.raises(UnknownImplementationError) as raised:
        entrants(load_spec(SPEC), "norm", ["torch_nrom"], SETTINGS, {})
    assert raised.value.asked_by == "implementations (--impl)"


def test_entrants_stop_at_a_config_that_is_wrong(tmp_path, monkeypatch):
    (tmp_path / "config.toml").write_text("auto = 3\n")
    monkeypatch.setenv("TRANSOM_CONFIG", str(tmp_path / "config.toml"))
    with pytest.raises(UserConfigError):
        entrants(load_spec(SPEC), "norm", ["torch_norm"], SETTINGS, {})


def test_plans_give_options_of_the_spec_to_those_for_whom_they_are():
    spec = SPEC | {"use": {"kv_cache": "paged"}, "options": {"kv_cache": {"block_size": 4}}}
    plans, errors = _plans(load_spec(spec), "kv_cache", dict.fromkeys(["paged", "static"], ""), {}, {})
    options = {name: [n.options for n in made.nodes() if n.slot == "kv_cache"] for name, made in plans.items()}
    assert (options["paged"][0].block_size, options["static"], errors) == (4, [None], {})


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (RuntimeError("no kernel\nfor this machine"), "RuntimeError: no kernel"),
        (NotImplementedError(), "NotImplementedError"),
        (InputError("it is too long.", hint="cut it"), "it is too long"),
        (ResolutionError("nobody serves.", failed=["a: no cuda", "b: no bfloat16"]), "no cuda; no bfloat16"),
    ],
)
def test_reason_is_one_line(error, text):
    assert reason(error) == text
