"""Allow, deny and strict."""

from __future__ import annotations

import re

import pytest
from transom.errors import PolicyError
from transom.registry.policy import ALLOW, DENY, STRICT, Policy, parse_boolean


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        *((text, True) for text in ("1", "true", "yes", "on", "TRUE", " Yes ")),
        *((text, False) for text in ("0", "false", "no", "off", "False", "OFF ")),
    ],
)
def test_parse_boolean_reads_what_people_write(text, expected):
    assert parse_boolean(STRICT, text) is expected


@pytest.mark.parametrize("text", ["2", "y", "ja", "none", "", "0.0", "truefalse"])
def test_parse_boolean_refuses_nonsense(text):
    with pytest.raises(
        PolicyError, match=re.escape(f"TRANSOM_STRICT is {text!r}, which is neither true nor false.")
    ) as e:
        parse_boolean(STRICT, text)
    assert e.value.variable == "TRANSOM_STRICT"
    assert e.value.value == text
    assert e.value.asked_by == "the environment variable TRANSOM_STRICT"
    assert e.value.available == ("1", "true", "yes", "on", "0", "false", "no", "off")


@pytest.mark.parametrize(
    ("text", "expected"), [("0", False), ("false", False), ("1", True), ("", False), (None, False)]
)
def test_from_environment_reads_strict_as_a_switch_and_not_as_a_text(text, expected):
    assert Policy.from_environment({} if text is None else {STRICT: text}).strict is expected


def test_from_environment_reads_the_process_environment_by_default(monkeypatch):
    monkeypatch.setenv(ALLOW, "acme-*, good_norm ,")
    monkeypatch.setenv(DENY, "acme-evil")
    monkeypatch.setenv(STRICT, "on")
    assert Policy.from_environment() == Policy(allow=("acme-*", "good_norm"), deny=("acme-evil",), strict=True)


@pytest.mark.parametrize("variable", [ALLOW, DENY])
@pytest.mark.parametrize("text", [",", " , "])
def test_from_environment_refuses_a_list_without_patterns(variable, text):
    with pytest.raises(PolicyError, match=re.escape(f"{variable} is {text!r}, which has no pattern in it.")) as caught:
        Policy.from_environment({variable: text})
    assert (caught.value.variable, caught.value.value) == (variable, text)
    assert "unset it" in caught.value.hint


def test_from_environment_raises_when_strict_is_nonsense():
    with pytest.raises(PolicyError, match="TRANSOM_STRICT is 'perhaps'"):
        Policy.from_environment({STRICT: "perhaps"})


@pytest.mark.parametrize(
    ("policy", "distribution", "expected"),
    [
        (Policy(), "acme-attn", None),
        (Policy(allow=("acme-*",)), "acme-attn", None),
        (Policy(allow=("ACME_*",)), "Acme.Attn", None),
        (Policy(allow=("acme-*",)), "other", "TRANSOM_PLUGINS_ALLOW does not have it"),
        (Policy(allow=("transom",)), "other", "TRANSOM_PLUGINS_ALLOW does not have it"),
        (Policy(deny=("acme-*",)), "acme_attn", "TRANSOM_PLUGINS_DENY has 'acme-*'"),
        (Policy(allow=("acme-attn",), deny=("*",)), "acme-attn", "TRANSOM_PLUGINS_DENY has '*'"),
        (Policy(deny=("acme",)), "acme-attn", None),
        (Policy(deny=("*",)), "transom", None),
        (Policy(allow=("acme-*",)), "Transom", None),
    ],
)
def test_refusal_matches_globs_over_normalised_names(policy, distribution, expected):
    assert policy.refusal(distribution) == expected


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        (Policy(), ()),
        (Policy(allow=("acme-*", "transom"), deny=("other",)), ()),
        (Policy(allow=("acne-*",)), ("TRANSOM_PLUGINS_ALLOW has 'acne-*', which matches no installed plugin",)),
        (Policy(deny=("evil",)), ("TRANSOM_PLUGINS_DENY has 'evil', which matches no installed plugin",)),
        (
            Policy(deny=("transom",)),
            ("TRANSOM_PLUGINS_DENY has 'transom', which has no effect: core cannot be denied",),
        ),
    ],
)
def test_idle_names_the_patterns_that_change_nothing(policy, expected):
    assert policy.idle(["transom", "Acme_Attn", "other"]) == expected
