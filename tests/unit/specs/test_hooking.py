"""Which hooks run for a spec, and what they make of it; their whole life is in tests/discovery."""

from __future__ import annotations

import msgspec
import pytest
from transom.errors import HookError, SpecError
from transom.registry.hooks import load_hooks
from transom.registry.registry import Registry
from transom.registry.scan import Index, scan
from transom.specs import hooking
from transom.specs.hooking import hooks_of, modified
from transom.specs.load import load_spec

CODE = """
from dataclasses import dataclass
import msgspec
from transom import hookimpl

class Longer:
    @dataclass
    class Options:
        by: int = 1

    def __init__(self, options):
        self.options = options

    @hookimpl
    def transom_modify_spec(self, spec):
        return msgspec.structs.replace(spec, max_sequence_length=spec.max_sequence_length + self.options.by)

class Looks:
    @hookimpl
    def transom_modify_spec(self, spec): ...

class Answers:
    @hookimpl
    def transom_modify_spec(self, spec):
        return {"config": 1}

class Enables:
    @hookimpl
    def transom_modify_spec(self, spec):
        return msgspec.structs.replace(spec, hooks=["looks"])

class Bundles:
    @hookimpl
    def transom_modify_spec(self, spec):
        return msgspec.structs.replace(spec, bundle="big")
"""
BUNDLE = 'bundle = 1\nhooks = ["looks", {hook = "longer", options = {by = 3}}]\n'


@pytest.fixture
def registry(site):
    points = "".join(f"{name.lower()} = acme_hooks.parts:{name}\n" for name in NAMES)
    site.install("acme-hooks", f"[transom.hooks]\n{points}[transom.bundles]\nbig = acme_hooks:big\n", code=CODE)
    (site.root / "acme_hooks" / "big.toml").write_text(BUNDLE)
    return Registry(scan([str(site.root)]))


NAMES = ("Longer", "Looks", "Answers", "Enables", "Bundles")


def _spec(make_spec, **fields):
    return load_spec(make_spec(**fields))


def _told(hooks):
    return [(hook.name, getattr(hook.options, "by", None)) for hook in hooks]


def test_hooks_of_gives_none_and_looks_at_nothing_where_none_is_named(make_spec):
    assert hooks_of(_spec(make_spec), None) == ()


def test_hooks_of_gives_those_of_the_user_then_of_bundles_then_the_spec_s_own(
    registry, make_spec, tmp_path, monkeypatch
):
    spec = _spec(make_spec, bundle="big", hooks=["answers", "longer"])
    assert _told(hooks_of(spec, registry)) == [("looks", None), ("longer", 3), ("answers", None)]
    (tmp_path / "config.toml").write_text('hooks = ["enables", {hook = "longer", options = {by = 2}}]')
    monkeypatch.setenv("TRANSOM_CONFIG", str(tmp_path / "config.toml"))
    names = [("enables", None), ("longer", 3), ("looks", None), ("answers", None)]
    assert _told(hooks_of(spec, registry)) == names
    assert _told(hooks_of(_spec(make_spec), registry)) == [("enables", None), ("longer", 2)]


def test_hooks_of_gives_defaults_where_no_options_are_written(registry, make_spec):
    assert _told(hooks_of(_spec(make_spec, hooks=["longer"]), registry)) == [("longer", 1)]


def test_hooks_of_tells_a_wrong_option_with_its_path(registry, make_spec):
    spec = _spec(make_spec, hooks=["looks", {"hook": "longer", "options": {"by": 1.5}}])
    with pytest.raises(SpecError) as caught:
        hooks_of(spec, registry)
    assert (caught.value.path, caught.value.file) == ("hooks.1.options.by", "the mapping")


def test_hooks_of_looks_elsewhere_for_what_a_lock_does_not_know(registry, make_spec, monkeypatch):
    spec = _spec(make_spec, hooks=["longer"])
    monkeypatch.setattr(hooking, "default_registry", lambda: registry)
    with pytest.raises(HookError, match="no hook is named 'longer'"):
        hooks_of(spec, Registry(Index()))
    assert _told(hooks_of(spec, Registry(Index()), is_locked=True)) == [("longer", 1)]


def _modified(spec, registry):
    return modified(spec, load_hooks(hooks_of(spec, registry)))


def test_modified_hands_the_spec_from_hook_to_hook_and_keeps_where_it_came_from(registry, make_spec):
    spec = _spec(make_spec, hooks=["looks", {"hook": "longer", "options": {"by": 3}}])
    changed = _modified(spec, registry)
    assert (spec.max_sequence_length, changed.max_sequence_length) == (8, 11)
    assert changed.source == "the mapping"
    assert modified(spec, ()) is spec


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("answers", "answered a dict, not a ModelSpec."),
        ("enables", "changed `hooks`: only a spec or the user names those."),
        ("bundles", "changed `bundle`: only a spec or the user names those."),
    ],
)
def test_modified_refuses_an_answer_that_breaks_the_contract(registry, make_spec, name, what):
    with pytest.raises(HookError) as caught:
        _modified(_spec(make_spec, hooks=[name]), registry)
    assert caught.value.what == f"transom_modify_spec of the hook {name} (acme-hooks 1.0) {what}"
    assert caught.value.hook == f"acme-hooks/{name}"


def test_spec_with_options_of_hooks_is_written_as_it_is_read(make_spec):
    hooks = ["looks", {"hook": "longer", "options": {"by": 3}}]
    spec = _spec(make_spec, hooks=hooks)
    assert spec.to_dict()["hooks"] == hooks
    assert load_spec(spec.to_dict()).hooks == spec.hooks
    assert msgspec.structs.replace(spec, hooks=[]) != spec
