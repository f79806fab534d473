"""Text to plain data."""

from __future__ import annotations

import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transom.errors import SpecError
from transom.specs import read
from transom.specs.read import MAX_DEPTH, check_plain, read_text


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3e-4", 3e-4),
        ("1e6", 1e6),
        ("12", 12),
        ("-7", -7),
        ("0x10", 16),
        ("0o17", 15),
        (".5", 0.5),
        ("true", True),
        ("False", False),
        ("no", "no"),
        ("on", "on"),
        ("~", None),
        ("null", None),
        ("'12'", "12"),
        ('"true"', "true"),
        ("1_000", "1_000"),
        ("2026-01-01", "2026-01-01"),
        ("12:30", "12:30"),
        ("a | b", "a | b"),
    ],
)
def test_yaml_scalar_follows_the_core_schema(text: str, value: object) -> None:
    data, _ = read_text(f"key: {text}", "yaml")
    assert data == {"key": value}
    assert type(data["key"]) is type(value)


def test_yaml_keeps_the_line_of_every_value() -> None:
    data, lines = read_text("a: 1\nb:\n  c: [2,\n    3]\n", "yaml")
    assert data == {"a": 1, "b": {"c": [2, 3]}}
    assert lines[("a",)] == 1
    assert lines[("b", "c")] == 3
    assert lines[("b", "c", 1)] == 4


@pytest.mark.parametrize(
    ("kind", "text", "what", "line"),
    [
        ("yaml", "a: 1\na: 2\n", "key 'a' is given twice", 2),
        ("yaml", "a: &x [1]\nb: *x\n", "anchors and aliases are not read", 1),
        ("yaml", "a: 1\nb: *x\n", "anchors and aliases are not read", 2),
        ("yaml", "a: !!python/object/apply:os.system [ls]\n", "tag tag:yaml.org,2002:python/object/apply:os.system", 1),
        ("yaml", "a: !mine 3\n", "tag !mine is not read", 1),
        ("yaml", "x: 1\n3: 2\n", "key 3 is not a string", 2),
        ("yaml", "? [1]\n: 2\n", "a mapping's key is not a string", 1),
        ("yaml", "a: .nan\n", ".nan is not a number that a spec may hold", 1),
        ("yaml", "a: 1\nb: -.inf\n", "-.inf is not a number", 2),
        ("yaml", "a: 1e999\n", "a is inf, not a finite number", 1),
        ("yaml", "a: 9223372036854775808\n", "which does not fit 64 bits", 1),
        ("yaml", "a: [1\nb: 2\n", "not valid YAML", 2),
        ("yaml", "a: 1\n---\nb: 2\n", "several YAML documents", None),
        ("yaml", "a: \x07", "not valid YAML", None),
        ("toml", "a = 1\na = 2\n", "not valid TOML", 2),
        ("toml", "a = nan\n", "a is nan, not a finite number", None),
        ("toml", "a = 2026-01-01\n", "a is a date; a spec is plain data", None),
        ("json", '{"a": 1,\n "a": 2}', "key 'a' is given twice", None),
        ("json", '{"a": 1,\n}', "not valid JSON", None),
        ("json", '{"a": NaN}', "NaN is not a number that a spec may hold", None),
        ("json", '{"a": ' + "9" * 5000 + "}", "not valid JSON", None),
        ("json", '{"a": ' + "9" * 100 + "}", "does not fit 64 bits", None),
    ],
)
def test_read_text_refuses_what_a_spec_may_not_hold(kind: str, text: str, what: str, line: int | None) -> None:
    with pytest.raises(SpecError) as caught:
        read_text(text, kind, file="model.spec")
    assert what in str(caught.value)
    assert caught.value.file == "model.spec"
    assert "model.spec" in str(caught.value)
    if line is not None:
        assert caught.value.line == line
        assert f"line {line}" in str(caught.value)


@pytest.mark.parametrize("kind", ["yaml", "json", "toml"])
@pytest.mark.parametrize("depth", [MAX_DEPTH + 5, 3_000, 60_000])
def test_read_text_refuses_deep_nesting(kind: str, depth: int) -> None:
    text = "[" * depth + "]" * depth
    text = {"yaml": text, "json": text, "toml": f"a = {text}"}[kind]
    with pytest.raises(SpecError, match="nested deeper than 32 levels"):
        read_text(text, kind)


def test_read_text_refuses_very_many_values() -> None:
    with pytest.raises(SpecError, match="holds more than 200000 values"):
        read_text("[" + "1," * 200_000 + "1]", "json")


def test_read_text_reads_yaml_no_further_than_to_the_last_value_it_may_have(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read, "MAX_ITEMS", 20)
    with pytest.raises(SpecError, match=r"^the spec holds more than 20 values") as refused:
        read_text("- 1\n" * 30 + "- [what ends nowhere", "yaml")
    assert refused.value.line == 20  # the list itself is a value too


def test_read_text_refuses_a_very_long_text() -> None:
    with pytest.raises(SpecError, match="at most 8000000 are read"):
        read_text(" " * 8_000_001, "json")


@given(st.text(max_size=60), st.sampled_from(["yaml", "json", "toml"]))
def test_read_text_raises_nothing_but_spec_errors(text: str, kind: str) -> None:
    with suppress(SpecError):
        read_text(text, kind, file="f")


_plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63) + 1, 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=8),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.from_regex(r"[a-z]{1,6}", fullmatch=True), inner, max_size=3),
    max_leaves=12,
)


@given(st.dictionaries(st.from_regex(r"[a-z]{1,6}", fullmatch=True), _plain, max_size=4))
def test_yaml_gives_back_what_json_wrote(data: dict[str, object]) -> None:
    assert read_text(json.dumps(data), "yaml")[0] == data
    assert read_text(json.dumps(data), "json")[0] == data


@pytest.mark.parametrize(("text", "path"), [('{"a": {"b": ["\\ud800"]}}', "a.b.0"), ('{"a": {"\\udfff": 1}}', "a")])
def test_read_text_refuses_half_of_a_surrogate_pair(text: str, path: str) -> None:
    with pytest.raises(SpecError, match=r"holds '\\ud[8f][0f][0f]', which is not Unicode text\.") as caught:
        read_text(text, "json", file="f")
    assert caught.value.path == path


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"mlp": {"a": float("nan")}}, r"mlp\.a is nan, not a finite number\."),
        ({"mlp": {"a": object()}}, r"mlp\.a is a object; a spec is plain data\."),
        ({"mlp": {1: 2}}, r"key 1 is not a string\."),
    ],
)
def test_check_plain_refuses_what_a_program_gives(options: object, text: str) -> None:
    with pytest.raises(SpecError, match=text) as caught:
        check_plain(options, {}, "the call's arguments")
    assert caught.value.file == "the call's arguments"
