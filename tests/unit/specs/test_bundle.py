"""Bundles: presets that plugins publish as data, under the spec's own entries."""

from __future__ import annotations

import sys

import pytest
from transom.errors import AmbiguousNameError, PolicyError, SpecError, UnknownSlotError
from transom.registry.policy import Policy
from transom.registry.registry import Registry
from transom.registry.scan import Index
from transom.specs.bundle import load_bundles
from transom.specs.lock import Lock
from transom.specs.plan import plan

CODE = "raise AssertionError('a bundle is data: its package is not imported')"


@pytest.fixture
def publish(site, fakes):
    """Give a function that installs a bundle and returns a registry that sees it."""

    def install(text, name="fast", distribution="acme-presets", stem="fast", version="1.0"):
        package = distribution.replace("-", "_")
        info = site.install(distribution, {"bundles": {name: f"{package}:{stem}"}}, code=CODE, version=version)
        (site.root / package / "__init__.py").write_text(CODE)
        if text is not None:
            data = site.root / package / f"{stem.replace('.', '/')}.toml"
            data.parent.mkdir(exist_ok=True)
            data.write_bytes(text if isinstance(text, bytes) else text.encode())
        assert info.exists()
        return Registry()

    return install


def chosen(made, slot="mlp"):
    return [node.resolution.chosen.name for node in made.nodes() if node.slot == slot]


def test_bundle_names_who_fills_places(publish, make_spec):
    registry = publish('bundle = 1\ndescription = "for even layers"\n[use]\nmlp = "even_mlp | fake_mlp"\n')
    spec = make_spec(bundle="fast")
    del spec["use"]["mlp"]
    made = plan(spec, registry=registry)
    assert chosen(made) == ["fake_mlp", "even_mlp", "fake_mlp"]
    node = next(node for node in made.nodes() if node.path == "layers.0.mlp")
    assert node.asked_by == "use.mlp in bundle fast (acme-presets 1.0)"
    assert "acme_presets" not in sys.modules


def test_specs_own_entries_win_over_a_bundles_however_specific(publish, make_spec):
    registry = publish('bundle = 1\n[use]\n"layers.1.mlp" = "even_mlp"\nnorm = "nobody"\n')
    assert chosen(plan(make_spec(bundle="fast"), registry=registry)) == ["fake_mlp"] * 3


def test_calls_entries_win_over_a_bundles(publish, make_spec):
    registry = publish('bundle = 1\n[use]\n"layers.1.mlp" = "even_mlp"\nmlp = "fake_mlp"\n')
    spec = make_spec(bundle="fast")
    del spec["use"]["mlp"]
    assert chosen(plan(spec, registry=registry)) == ["fake_mlp", "even_mlp", "fake_mlp"]
    assert chosen(plan(spec, registry=registry, use={"mlp": "fake_mlp"})) == ["fake_mlp"] * 3


def test_later_bundle_wins_over_an_earlier_one(publish, make_spec):
    publish('bundle = 1\n[use]\nmlp = "even_mlp | fake_mlp"\n', name="first", distribution="acme-first")
    registry = publish('bundle = 1\n[use]\nmlp = "fake_mlp"\n', name="second", distribution="acme-second")
    spec = make_spec(bundle=["first", "acme-second/second"])
    del spec["use"]["mlp"]
    assert chosen(plan(spec, registry=registry)) == ["fake_mlp"] * 3
    assert chosen(plan(spec | {"bundle": ["second", "first"]}, registry=registry))[1] == "even_mlp"


def test_bundle_s_options_hold_for_its_own_choice_alone(publish, make_spec):
    registry = publish('bundle = 1\n[use]\nmlp = "acme-fakes/fake_mlp"\n[options.mlp]\ntimes = 9\n')
    use = {"layers.0.mlp": "fake_mlp", "layers.1.mlp": "even_mlp"}
    spec = make_spec(bundle="fast", use=use, config={"num_layers": 4})
    del spec["use"]["mlp"]
    options = {n.path: n.options for n in plan(spec, registry=registry).nodes() if n.slot == "mlp"}
    assert [None if each is None else each.times for each in options.values()] == [9, None, 9, 9]


def test_bundle_sets_options(publish, make_spec):
    registry = publish('bundle = 1\n[options."layers.0.mlp"]\ntimes = 9\n')
    made = plan(make_spec(bundle="fast"), registry=registry)
    assert next(n.options.times for n in made.nodes() if n.path == "layers.0.mlp") == 9


def test_bundle_may_speak_of_places_that_a_model_lacks(publish, make_spec):
    registry = publish('bundle = 1\n[use]\nactivation = "some"\n"encoder.**" = "other"\n')
    assert chosen(plan(make_spec(bundle="fast"), registry=registry)) == ["fake_mlp"] * 3


def test_bundle_that_misspells_a_slot_is_refused(publish, make_spec):
    registry = publish('bundle = 1\n[use]\nnrom = "fake_norm"\n')
    with pytest.raises(UnknownSlotError) as caught:
        plan(make_spec(bundle="fast"), registry=registry)
    assert caught.value.asked_by == "use.nrom in bundle fast (acme-presets 1.0)"


def test_bundle_lies_beside_the_package_or_in_a_folder_there(publish, make_spec):
    registry = publish('bundle = 1\n[use]\nmlp = "even_mlp | fake_mlp"\n', stem="bundles.fast")
    spec = make_spec(bundle="fast")
    del spec["use"]["mlp"]
    assert chosen(plan(spec, registry=registry))[1] == "even_mlp"


def test_lock_knows_the_bundles_distribution(publish, make_spec):
    registry = publish('bundle = 1\n[use]\nmlp = "even_mlp | fake_mlp"\n')
    spec = make_spec(bundle="fast")
    del spec["use"]["mlp"]
    made = plan(spec, registry=registry)
    lock = Lock.from_plan(made)
    assert (lock.sources, lock.distributions) == ({"acme-presets": "1.0"}, ("acme-fakes", "acme-presets"))
    assert plan(spec, lock=lock, lock_mode="exact").fingerprint == made.fingerprint


@pytest.mark.parametrize(
    ("bundle", "what", "hint"),
    [
        ("fsat", "no bundle is named 'fsat'.", "fast?"),
        ("other/fast", "no bundle is named 'other/fast'.", "fast?"),
        ("zzz", "no bundle is named 'zzz'.", "install the distribution that publishes it, or remove the entry"),
        (["fast", "fast"], "bundle 'fast' is named twice.", None),
    ],
)
def test_unknown_bundle_lists_what_is_available(publish, make_spec, bundle, what, hint):
    registry = publish("bundle = 1\n")
    with pytest.raises(SpecError) as caught:
        plan(make_spec(bundle=bundle), registry=registry)
    error = caught.value
    assert (error.what, error.hint, error.path) == (what, hint, "bundle")
    assert error.asked_by == "bundle in the mapping"
    assert ("fast (acme-presets 1.0)" in error.available) == (hint is not None)


def test_unknown_bundle_says_when_none_is_installed():
    with pytest.raises(SpecError) as caught:
        load_bundles("fast", Registry(Index()), Policy(), asked_by="a test")
    assert caught.value.available == ("none is installed",)


def test_bundle_of_two_distributions_must_be_qualified(publish, make_spec):
    publish("bundle = 1\n", distribution="acme-one")
    registry = publish("bundle = 1\n", distribution="acme-two")
    with pytest.raises(AmbiguousNameError) as caught:
        plan(make_spec(bundle="fast"), registry=registry)
    assert caught.value.what == "2 distributions publish a bundle 'fast'."
    assert caught.value.candidates == caught.value.available == ("acme-one/fast", "acme-two/fast")
    assert caught.value.hint == "write which: bundle: acme-one/fast"
    assert plan(make_spec(bundle="acme_two/fast"), registry=registry).sources == {"acme-two": "1.0"}


def test_bundle_of_a_denied_distribution_is_refused(publish, make_spec, monkeypatch):
    registry = publish("bundle = 1\n")
    monkeypatch.setenv("TRANSOM_PLUGINS_DENY", "acme-presets")
    with pytest.raises(PolicyError) as caught:
        plan(make_spec(bundle="fast"), registry=registry)
    what = "bundle 'fast' of acme-presets may not be used: TRANSOM_PLUGINS_DENY has 'acme-presets'."
    assert (caught.value.what, caught.value.asked_by) == (what, "bundle in the mapping")


@pytest.mark.parametrize(
    ("text", "what", "path"),
    [
        (None, "bundle 'fast' of acme-presets has no file fast.toml in package acme_presets.", "bundle"),
        (b"\xff", "bundle 'fast' cannot be read: it is not UTF-8 text.", "bundle"),
        ("bundle = ", "not valid TOML: ", ""),
        ("", "bundle is missing.", "bundle"),
        ("bundle = 2", "bundle: invalid enum value 2.", "bundle"),
        ("bundle = 1\nconfig = {}", "no field is named 'config'.", "config"),
        ("bundle = 1\n[use]\nmlp = 3", "use.mlp: expected `str | array`, got `int`.", "use.mlp"),
    ],
)
def test_bundle_that_is_wrong_is_refused_with_its_path(publish, make_spec, text, what, path):
    registry = publish(text)
    with pytest.raises(SpecError) as caught:
        plan(make_spec(bundle="fast"), registry=registry)
    assert caught.value.what.startswith(what)
    assert caught.value.path == path


def test_bundle_that_the_system_does_not_read_says_why(publish, make_spec, monkeypatch):
    registry = publish("bundle = 1\n")

    def denied(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.read_text", denied)
    with pytest.raises(SpecError, match=r"bundle 'fast' cannot be read: Permission denied\."):
        plan(make_spec(bundle="fast"), registry=registry)
