"""Options of a spec where a call's `use` names another than the spec does."""

from __future__ import annotations

import logging

import pytest
from transom.errors import SpecError
from transom.specs.idle_options import without_idle
from transom.specs.load import load_spec
from transom.specs.plan import plan
from transom.specs.use import Assignments

PLACE = "layers.{}.mlp"


@pytest.fixture
def registry(fakes):
    """Add an MLP that takes no options."""
    full = fakes.get("mlp", "fake_mlp").load()
    fakes.register("mlp", "plain_mlp", type("Plain", (full,), {"Options": None}))
    return fakes


def times(made):
    return [None if n.options is None else n.options.times for n in made.nodes() if n.slot == "mlp"]


@pytest.mark.parametrize("pattern", ["mlp", "layers.*.mlp", "mlp/fake_mlp", "mlp/acme-fakes/fake_mlp"])
def test_plan_drops_options_where_the_call_names_another(registry, make_spec, caplog, pattern):
    with caplog.at_level(logging.INFO, logger="transom"):
        made = plan(
            make_spec(options={pattern: {"times": 3}}), registry=registry, use=Assignments({"mlp": "plain_mlp"})
        )
    assert times(made) == [None] * 3
    said = f"options.{pattern} in the mapping has no effect at layers.*.mlp: --use mlp=plain_mlp"
    assert caplog.messages == [said]
    assert made.idle_options == {pattern: ()}


def test_plan_keeps_options_where_the_call_names_nobody_else(registry, make_spec, caplog):
    spec = make_spec(options={"mlp": {"times": 3}})
    with caplog.at_level(logging.INFO, logger="transom"):
        assert times(plan(spec, registry=registry, use={"mlp": "acme-fakes/fake_mlp"})) == [3, 3, 3]
        assert caplog.messages == []
        made = plan(spec, registry=registry, use={PLACE.format(1): "plain_mlp"})
    assert times(made) == [3, None, 3]
    assert made.idle_options == {"mlp": (PLACE.format(0), PLACE.format(2))}
    assert len(caplog.messages) == 1


def test_plan_drops_options_of_a_chain_for_its_member_that_takes_none(registry, make_spec):
    spec = make_spec(use={"mlp": "even_mlp | fake_mlp | plain_mlp"}, options={"mlp": {"times": 3}})
    assert times(plan(spec, registry=registry, use={"mlp": "plain_mlp"})) == [None] * 3
    assert times(plan(spec, registry=registry, use={"mlp": "fake_mlp"})) == [3] * 3


def test_plan_lets_a_call_s_own_options_hold_beside_those_that_it_drops(registry, make_spec):
    given = {"spec": make_spec(options={"mlp": {"times": 3}}), "registry": registry}
    made = plan(**given, use={"mlp": "even_mlp | plain_mlp"}, options={"mlp/even_mlp": {"times": 5}})
    assert times(made) == [None, 5, None]


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"mlp": {"times": 5}}, "registered/plain_mlp takes no options."),
        (
            {"mlp/fake_mlp": {"times": 5}},
            "nothing at 'mlp' is asked to be 'fake_mlp', so options.mlp/fake_mlp would have no effect.",
        ),
    ],
)
def test_plan_refuses_a_call_s_own_options_that_nobody_takes(registry, make_spec, options, what):
    with pytest.raises(SpecError) as caught:
        plan(make_spec(), registry=registry, use={"mlp": "plain_mlp"}, options=options)
    assert caught.value.what == what
    assert caught.value.asked_by == f"options.{next(iter(options))} in the call's arguments"


def test_plan_refuses_options_of_the_spec_s_own_choice_and_says_how_to_bind_them(registry, make_spec):
    with pytest.raises(SpecError, match="registered/plain_mlp takes no options") as caught:
        plan(make_spec(use={"mlp": "even_mlp | plain_mlp"}, options={"mlp": {"times": 5}}), registry=registry)
    said = "remove the entry, or write options.mlp/even_mlp: {...}, which holds only where even_mlp is chosen"
    assert caught.value.hint == said


@pytest.mark.parametrize("pattern", ["mlp", "mlp/fake_mlp"])
def test_without_idle_gives_a_spec_that_means_the_same(registry, make_spec, pattern):
    spec = load_spec(make_spec(options={pattern: {"times": 3}, "layers.0": {}}))
    assert without_idle(spec, {}) is spec
    spec = load_spec(make_spec(options={pattern: {"times": 3}}))
    use = {PLACE.format(1): "plain_mlp"}
    told = plan(spec, registry=registry, use=use)
    found = without_idle(spec, told.idle_options)
    own = "" if pattern == "mlp" else "/fake_mlp"
    assert found.options == {f"layers.{i}.mlp{own}": {"times": 3} for i in (0, 2)}
    again = plan(load_spec(found.to_dict() | {"use": spec.use | use}), registry=registry)
    assert again.fingerprint == told.fingerprint
