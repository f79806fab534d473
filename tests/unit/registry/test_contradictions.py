"""Cards against entry points."""

from __future__ import annotations

from transom.registry.contradictions import card_problems
from transom.registry.implementation import Implementation
from transom.slots import SLOTS


def _implementation(name="fast", slot="norm", package="acme_norm"):
    return Implementation(slot, name, package.replace("_", "-"), "1.0", f"{package}.parts:Fast")


def _complaints(*implementations):
    return [(p.distribution, p.what) for p in card_problems(implementations, SLOTS)]


def test_card_problems_finds_none_where_both_agree(site, make_card):
    site.install("acme-norm", card=make_card("norm.fast", features=["rmsnorm"]))
    assert _complaints(_implementation()) == []


def test_card_problems_finds_none_without_a_card(site):
    site.install("acme-norm")
    assert _complaints(_implementation(), Implementation("norm", "mine", "registered", "", "a:b", print)) == []


def test_card_problems_names_what_only_one_of_them_has(site, make_card):
    site.install("acme-norm", card=make_card("norm.fast", "norm.old"))
    assert _complaints(_implementation(), _implementation("new")) == [
        ("acme-norm", "has no section [norm.new], which the entry point promises"),
        ("acme-norm", "has a section [norm.old], for which there is no entry point"),
    ]


def test_card_problems_tells_of_a_broken_card_once(site, make_card):
    site.install("acme-norm", card=make_card("norm.fast", colour="red"))
    site.install("acme-good", card=make_card("norm.fast"))
    complaints = _complaints(_implementation(), _implementation("new"), _implementation(package="acme_good"))
    what = "norm.fast in the card of acme-norm is wrong: Object contains unknown field `colour`."
    assert complaints == [("acme-norm", what)]


def test_card_problems_names_features_that_the_slot_does_not_know(site, make_card):
    site.install("acme-norm", card=make_card("norm.fast", "router.top", features=["rms_norm", "rmsnorm", "zzz"]))
    assert _complaints(_implementation(), _implementation("top", "router")) == [
        ("acme-norm", "[norm.fast] declares 'rms_norm', which is no feature of norm; 'rmsnorm' was meant?"),
        ("acme-norm", "[norm.fast] declares 'zzz', which is no feature of norm"),
    ]
