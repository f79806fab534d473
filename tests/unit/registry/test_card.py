"""Cards: found without importing, validated strictly."""

from __future__ import annotations

import importlib
import json
import os
import re
import sys
import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transom.errors import CardError
from transom.registry.card import CardSection, Deprecation, card_schema, find_card, read_card

FULL = """
card = 1
[core_attention.flash]
api = "1.2"
requires = ["flash-attn>=2.6", "triton; sys_platform == 'linux'"]
install = "pip install flash"
devices = ["cuda"]
min_compute_capability = "8.0"
dtypes = ["bfloat16", "float16", "float8_e4m3fn"]
features = ["causal", "gqa"]
modes = ["infer"]
compiles = true
deterministic = true
options = "acme.attention:Options"
[core_attention.flash.deprecated]
message = "goes in 2.0"
replacement = "flash4"
[norm.fast]
api = "1.0"
devices = ["any"]
dtypes = ["any"]
modes = ["train", "infer"]
[norm.fast.options]
type = "object"
"""


def _write(tmp_path, text):
    path = tmp_path / "transom.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_read_card_gives_every_field(tmp_path):
    card = read_card(_write(tmp_path, FULL), distribution="acme")
    assert card.sections["core_attention", "flash"] == CardSection(
        api="1.2",
        requires=("flash-attn>=2.6", "triton; sys_platform == 'linux'"),
        install="pip install flash",
        devices=("cuda",),
        min_compute_capability="8.0",
        dtypes=("bfloat16", "float16", "float8_e4m3fn"),
        features=("causal", "gqa"),
        modes=("infer",),
        compiles=True,
        deterministic=True,
        options="acme.attention:Options",
        deprecated=Deprecation(message="goes in 2.0", replacement="flash4"),
    )


def test_read_card_declares_nothing_that_is_not_written(tmp_path):
    section = read_card(_write(tmp_path, FULL), distribution="acme").sections["norm", "fast"]
    assert (section.features, section.requires, section.compiles, section.deterministic) == ((), (), False, False)
    assert (section.install, section.min_compute_capability, section.deprecated) == (None, None, None)
    assert section.options == {"type": "object"}


def test_read_card_reads_a_changed_file_again(tmp_path, make_card):
    path = _write(tmp_path, make_card("norm.one"))
    assert list(read_card(path, distribution="acme").sections) == [("norm", "one")]
    path.write_text(make_card("norm.one", "norm.other"))
    os.utime(path, ns=(0, 0))
    assert list(read_card(path, distribution="acme").sections) == [("norm", "one"), ("norm", "other")]


@pytest.mark.parametrize(
    ("content", "where", "what"),
    [
        ("card = 1\n[norm", "", "the card of acme is not TOML: "),
        (b"card = 1 # \xff", "", "the card of acme is not UTF-8: "),
        ("card = 1\nx = " + "1" * 5000, "", "the card of acme is not TOML: "),
        ("card = 1\nx = " + "[" * 5000 + "]" * 5000, "", "the card of acme is nested too deeply."),
        ("", "card", "card in the card of acme has no version."),
        ("card = 2", "card", "card in the card of acme is of version 2."),
        ("card = '1'", "card", "card in the card of acme is of version '1'."),
        ("card = true", "card", "card in the card of acme is of version True."),
        ("card = 1\nnorm = 3", "norm", "norm in the card of acme is not a table of implementations."),
        (
            "card = 1\n[norm]\nfast = 3",
            "norm.fast",
            "norm.fast in the card of acme is wrong: Expected `object`, got `int`.",
        ),
    ],
)
def test_read_card_refuses_a_file_that_is_no_card(tmp_path, content, where, what):
    path = _write(tmp_path, content)
    with pytest.raises(CardError, match=re.escape(what)) as caught:
        read_card(path, distribution="acme")
    assert (caught.value.distribution, caught.value.file, caught.value.path) == ("acme", str(path), where)
    assert caught.value.asked_by == str(path)


@pytest.mark.parametrize(
    ("fields", "where", "complaint"),
    [
        ({"api": None}, "norm.fast", "Object missing required field `api`"),
        ({"devices": None}, "norm.fast", "Object missing required field `devices`"),
        ({"colour": "red"}, "norm.fast", "Object contains unknown field `colour`"),
        ({"api": 1.0}, "norm.fast.api", "Expected `str`, got `float`"),
        ({"api": "1"}, "norm.fast.api", r"Expected `str` matching regex '^\\d+\\.\\d+$'"),
        ({"devices": []}, "norm.fast.devices", "Expected `array` of length >= 1"),
        ({"devices": "cuda"}, "norm.fast.devices", "Expected `array`, got `str`"),
        ({"devices": ["cuda", "CPU"]}, "norm.fast.devices[1]", "Expected `str` matching regex '^[a-z]+$'"),
        ({"devices": ["cuda", "any"]}, "norm.fast.devices", "'any' stands beside others"),
        ({"dtypes": ["fp16"]}, "norm.fast.dtypes[0]", "Expected `str` matching regex"),
        ({"dtypes": ["any", "float32"]}, "norm.fast.dtypes", "'any' stands beside others"),
        ({"modes": ["eval"]}, "norm.fast.modes[0]", "Invalid enum value 'eval'"),
        ({"features": ["Not One"]}, "norm.fast.features[0]", "Expected `str` matching regex"),
        ({"compiles": "yes"}, "norm.fast.compiles", "Expected `bool`, got `str`"),
        ({"deterministic": 1}, "norm.fast.deterministic", "Expected `bool`, got `int`"),
        ({"install": ""}, "norm.fast.install", "Expected `str` of length >= 1"),
        ({"min_compute_capability": "8"}, "norm.fast.min_compute_capability", "Expected `str` matching regex"),
        ({"devices": ["cpu"], "min_compute_capability": "8.0"}, "norm.fast.min_compute_capability", "no device is "),
        ({"options": "acme"}, "norm.fast.options", "'acme' does not refer to a dataclass as module:Name"),
        ({"requires": ["flash >="]}, "norm.fast.requires[0]", "'flash >=' is not a requirement: "),
        ({"requires": ["a", "b | c >="]}, "norm.fast.requires[1]", "'c >=' is not a requirement: "),
        ({"requires": ["a |"]}, "norm.fast.requires[0]", "'' is not a requirement: "),
        ({"requires": ["a", "b; python_version ~= 'x'"]}, "norm.fast.requires[1]", "is not a requirement: "),
        ({"deprecated": "soon"}, "norm.fast.deprecated", "Expected `object | null`, got `str`"),
    ],
)  # fmt: skip
def test_read_card_names_the_wrong_field(tmp_path, make_card, fields, where, complaint):
    path = _write(tmp_path, make_card("norm.good") + "\n\n" + make_card("norm.fast", **fields).removeprefix("card = 1"))
    with pytest.raises(CardError, match=re.escape(f"{where} in the card of acme is wrong: ")) as caught:
        read_card(path, distribution="acme")
    assert complaint in caught.value.what
    assert caught.value.path == where


@pytest.mark.parametrize(
    ("fields", "hint"),
    [
        ({"compile": True}, "compiles?"),
        ({"zzz": True}, "the fields are api, devices, dtypes, modes, features, requires, install, "),
        ({"api": 1}, 'major.minor as text: api = "1.0"'),
        ({"devices": ["CPU"]}, 'a list of device types: devices = ["cpu", "cuda"], or ["any"]'),
        ({"compiles": 1}, None),
    ],
)
def test_read_card_hints_at_what_was_meant(tmp_path, make_card, fields, hint):
    with pytest.raises(CardError) as caught:
        read_card(_write(tmp_path, make_card("norm.fast", **fields)), distribution="acme")
    assert caught.value.hint == hint or (hint and caught.value.hint.startswith(hint))


def test_read_card_says_when_the_file_is_gone(tmp_path):
    with pytest.raises(CardError, match=re.escape("the card of acme cannot be read: No such file or directory.")):
        read_card(tmp_path / "transom.toml", distribution="acme")


_TOML = st.recursive(
    st.text(max_size=8) | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.booleans(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


def _inline(value):
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(k)} = {_inline(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_inline, value)) + "]"
    return json.dumps(value)


@given(st.dictionaries(st.sampled_from(["card", "norm", "x"]), st.just(1) | _TOML, max_size=3))
def test_read_card_raises_nothing_but_a_card_error_for_any_toml(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("card") / "transom.toml"
    path.write_text("\n".join(f"{json.dumps(key)} = {_inline(value)}" for key, value in data.items()))
    try:
        read_card(path, distribution="acme")
    except CardError:
        return
    assert data["card"] == 1


@given(st.binary(max_size=60))
def test_read_card_raises_nothing_but_a_card_error_for_any_bytes(tmp_path_factory, content):
    path = _write(tmp_path_factory.mktemp("card"), b"card = 1\n" + content)
    try:
        read_card(path, distribution="acme")
    except CardError:
        return
    assert tomllib.loads(path.read_text())["card"] == 1


def test_find_card_looks_beside_the_package_without_importing_it(site, make_card):
    site.install("acme-norm", {"norm": {"fast": "Fast"}}, card=make_card("norm.fast"), code="raise SystemExit")
    assert find_card("acme_norm.parts.deep") == site.root / "acme_norm" / "transom.toml"
    assert "acme_norm" not in sys.modules


def test_find_card_finds_none_where_there_is_none(site):
    site.install("acme-norm", {"norm": {"fast": "Fast"}})
    (site.root / "single.py").write_text("")
    importlib.invalidate_caches()
    assert find_card("acme_norm.parts") is None
    assert find_card("single") is None
    assert find_card("no_such_package_anywhere") is None


def test_find_card_survives_a_module_without_a_spec(monkeypatch):
    monkeypatch.setitem(sys.modules, "acme_specless", type(sys)("acme_specless"))
    assert find_card("acme_specless.parts") is None


def test_find_card_goes_down_a_namespace_to_its_first_package(site):
    for name in ("attn", "norm"):
        (site.root / "acme_space" / "kernels" / name).mkdir(parents=True)
        (site.root / "acme_space" / "kernels" / name / "__init__.py").write_text("")
        (site.root / "acme_space" / "kernels" / name / "transom.toml").write_text("card = 1")
    importlib.invalidate_caches()
    assert find_card("acme_space.kernels.norm.parts") == site.root / "acme_space/kernels/norm/transom.toml"
    assert find_card("acme_space.kernels.other.parts") is None
    assert find_card("acme_space") is None


def test_card_schema_describes_exactly_the_fields_of_a_section():
    schema = card_schema()
    section = schema["$defs"]["CardSection"]
    assert set(section["properties"]) == set(CardSection.__struct_fields__)
    assert set(section["required"]) == {"api", "devices", "dtypes", "modes"}
    assert section["additionalProperties"] is False
    assert schema["properties"]["card"]["const"] == 1
    assert schema["required"] == ["card"]
    assert schema["additionalProperties"]["additionalProperties"] == {"$ref": "#/$defs/CardSection"}
    json.dumps(schema)


def test_card_of_core_has_a_section_for_every_entry_point_and_no_other():
    from transom.registry.registry import default_registry
    from transom.slots import SLOTS

    core = [c for c in default_registry().implementations() if c.is_core]
    card = read_card(core[0].card_file, distribution="transom")
    assert set(card.sections) == {(c.slot, c.name) for c in core}
    for (slot, _), section in card.sections.items():
        assert set(section.features) <= set(SLOTS[slot].features)
