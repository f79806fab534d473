"""Spelling: distributions, implementations, chains."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.utils import canonicalize_name
from transom.errors import SpecError
from transom.registry.names import is_name, near, normalise, parse_chain, split_reference

_DISTRIBUTION = st.from_regex(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?", fullmatch=True)


@given(_DISTRIBUTION)
def test_normalise_agrees_with_packaging(name):
    assert normalise(name) == canonicalize_name(name)


@pytest.mark.parametrize("name", ["flash_attention", "fa3", "a.b-c", "_x", "Auto"])
def test_is_name_accepts_word_characters(name):
    assert is_name(name)


@pytest.mark.parametrize("name", ["", "auto", "a b", "a|b", "a/b", "-x", ".x", "naïve", "x\n"])
def test_is_name_refuses_what_a_chain_could_not_say(name):
    assert not is_name(name)


@pytest.mark.parametrize(
    ("reference", "expected"),
    [("flash", (None, "flash")), ("acme-attn/flash", ("acme-attn", "flash")), ("Acme.Attn/f-2", ("Acme.Attn", "f-2"))],
)
def test_split_reference_separates_the_distribution(reference, expected):
    assert split_reference(reference) == expected


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("a", ("a",)),
        (" a ", ("a",)),
        ("a|b | acme-attn/c", ("a", "b", "acme-attn/c")),
        (["a", "auto"], ("a", "auto")),
        (("a ",), ("a",)),
    ],
)
def test_parse_chain_keeps_the_order(asked, expected):
    assert parse_chain(asked) == expected


@pytest.mark.parametrize(
    ("asked", "what"),
    [
        ("", "'' is not an implementation's name in ''."),
        ("a | ", "'' is not an implementation's name in 'a | '."),
        ("a || b", "'' is not an implementation's name in 'a || b'."),
        ("a/b/c", "'a/b/c' is not an implementation's name in 'a/b/c'."),
        ("flash attention", "'flash attention' is not an implementation's name in 'flash attention'."),
        (["a", 3], "3 is not an implementation's name in ['a', 3]."),
        (["a | b"], "'a | b' is not an implementation's name in ['a | b']."),
        ("a | b | a", "'a' stands twice in 'a | b | a'."),
        ([], "no name in []."),
    ],
)
def test_parse_chain_says_what_is_wrong(asked, what):
    with pytest.raises(SpecError, match=re.escape(what)) as caught:
        parse_chain(asked, asked_by="use.norm in tiny.yaml")
    assert caught.value.asked_by == caught.value.path == "use.norm in tiny.yaml"
    assert caught.value.hint == "write a name, distribution/name, or several of them: first | second"


@given(st.text() | st.lists(st.text() | st.integers()))
def test_parse_chain_raises_nothing_but_a_spec_error(asked):
    try:
        names = parse_chain(asked)
    except SpecError:
        return
    assert names
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("flash_atention", "flash_attention"), ("FLASH_ATTENTION", "flash_attention"), ("dotproduct", "dot_product")],
)
def test_near_finds_what_was_meant(name, expected):
    assert near(name, ["norm", "flash_attention", "dot_product"])[0] == expected


def test_near_finds_nothing_where_nothing_is_near():
    assert near("zzz", ["norm", "flash_attention"]) == ()
