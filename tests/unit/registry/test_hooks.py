"""Hooks by name: found, imported, called."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from transom.errors import AmbiguousNameError, HookError, PluginImportError, PolicyError, SpecError
from transom.registry.hook_specs import HookSpecs, hookimpl
from transom.registry.hook_use import HookUse
from transom.registry.hooks import Hook, HookList, enabled_hooks, find_hook, load_hooks, user_hooks
from transom.registry.policy import Policy
from transom.registry.registry import Registry
from transom.registry.scan import Index, scan

CODE = """
from transom import hookimpl

class Counts:
    made = 0

    def __init__(self):
        type(self).made += 1

    @hookimpl
    def transom_module_built(self, path):
        if path == "layers.9":
            raise KeyError(path)
        return f"{path} {self.made}"

class Nothing: ...

made = Counts()
"""
MOMENTS = (
    "transom_modify_spec",
    "transom_after_resolve",
    "transom_module_built",
    "transom_cli_commands",
    "transom_doctor",
)


@pytest.fixture
def registry(site):
    points = {"counts": "Counts", "made": "made", "nothing": "Nothing", "both": "Counts"}
    site.install("acme-hooks", {"hooks": points}, code=CODE)
    site.install("other-hooks", {"hooks": {"both": "Counts", "gone": "Gone"}}, code=CODE)
    return Registry(scan([str(site.root)]))


def _find(registry, ref, policy=None):
    return find_hook(ref, registry, policy or Policy(), asked_by="hooks in my.yaml")


def test_find_hook_imports_nothing(registry):
    import sys

    hook = _find(registry, "counts")
    assert hook == Hook("counts", "acme-hooks", "1.0", "acme_hooks.parts:Counts")
    assert (hook.ref, hook.label) == ("acme-hooks/counts", "counts (acme-hooks 1.0)")
    assert _find(registry, "Other_Hooks/both").distribution == "other-hooks"
    assert "acme_hooks" not in sys.modules


def test_find_hook_refuses_a_bare_name_of_two_distributions(registry):
    with pytest.raises(AmbiguousNameError, match=r"a hook 'both' is registered by 2 distributions\.") as caught:
        _find(registry, "both")
    assert caught.value.candidates == ("acme-hooks/both", "other-hooks/both")
    assert caught.value.hint == "write acme-hooks/both or other-hooks/both"
    assert caught.value.available == ("both (acme-hooks 1.0)", "both (other-hooks 1.0)")


@pytest.mark.parametrize(
    ("ref", "hint"),
    [
        ("count", "counts?"),
        ("lora", "install the distribution that provides it, or remove the name"),
        ("absent-hooks/counts", "acme-hooks/counts?"),
    ],
)
def test_find_hook_lists_what_there_is_when_it_finds_none(registry, ref, hint):
    with pytest.raises(HookError, match=re.escape(f"no hook is named {ref!r}.")) as caught:
        _find(registry, ref)
    assert (caught.value.hook, caught.value.hint, caught.value.asked_by) == (ref, hint, "hooks in my.yaml")
    assert "counts (acme-hooks 1.0)" in caught.value.available


@pytest.mark.parametrize(
    ("ref", "hint"),
    [
        ("acme-hooks/nope", "write acme-hooks/both or acme-hooks/counts or acme-hooks/made or acme-hooks/nothing, or "),
        ("Acme_Hooks/count", "counts?"),
        ("acme-hooks/gone", "other-hooks/gone?"),
    ],
)
def test_find_hook_tells_the_names_of_a_distribution_that_lacks_one(registry, ref, hint):
    with pytest.raises(HookError) as caught:
        _find(registry, ref)
    assert caught.value.what == f"no hook is named {ref!r}: acme-hooks 1.0 has none of this name."
    assert caught.value.hint.startswith(hint)
    assert caught.value.available == tuple(f"{name} (acme-hooks 1.0)" for name in ("both", "counts", "made", "nothing"))


def test_find_hook_says_so_when_none_is_installed():
    with pytest.raises(HookError, match=r"no hook is named 'lora'\.") as caught:
        _find(Registry(Index()), "lora")
    assert caught.value.available == ("none is installed",)
    assert caught.value.hint == "install the distribution that provides it, or remove the name"


def test_find_hook_obeys_the_policy(registry):
    with pytest.raises(PolicyError, match=r"the hook counts \(acme-hooks 1.0\) may not run: ") as caught:
        _find(registry, "counts", Policy(deny=("acme-*",)))
    assert caught.value.distribution == "acme-hooks"


def test_enabled_hooks_keep_the_first_place_of_what_several_lists_name(registry):
    asked = [HookList(["acme-hooks/made"], "the config"), HookList((), "a bundle"), HookList(["counts", "made"], "s")]
    assert [each.hook.name for each in enabled_hooks(asked, registry, Policy())] == ["made", "counts"]


def test_enabled_hooks_take_the_options_of_the_last_list_that_gives_some(registry):
    first, second = HookUse(hook="made", options={"a": 1}), HookUse(hook="acme-hooks/made", options={"b": 2})
    lists = [HookList([first], "the config"), HookList(["counts", second], "a bundle"), HookList(["made"], "the spec")]
    made, counts = enabled_hooks(lists, registry, Policy())
    assert (made.options, made.place.source, made.index) == ({"b": 2}, "a bundle", 1)
    assert (counts.hook.name, counts.options) == ("counts", {})


def test_enabled_hooks_refuse_a_name_that_stands_twice_in_one_list(registry):
    with pytest.raises(SpecError, match="'made' stands twice") as caught:
        enabled_hooks([HookList(["made", "made"], "my.yaml")], registry, Policy())
    assert caught.value.asked_by == "hooks in my.yaml"


def test_enabled_hooks_refuse_two_spellings_of_one_hook_in_one_list(registry):
    with pytest.raises(SpecError, match=r"'made' and 'acme-hooks/made' are one hook\.") as caught:
        enabled_hooks([HookList(["made", "counts", "acme-hooks/made"], "my.yaml")], registry, Policy())
    assert (caught.value.asked_by, caught.value.path, caught.value.hint) == (
        "hooks in my.yaml",
        "hooks",
        "name it once",
    )


def test_user_hooks_are_those_of_the_config(registry, monkeypatch, tmp_path):
    path = tmp_path / "config.toml"
    path.write_text('hooks = ["gone", {hook = "counts", options = {rank = 8}}]')
    monkeypatch.setenv("TRANSOM_CONFIG", str(path))
    found = user_hooks(registry, Policy())
    assert [each.hook.ref for each in found] == ["other-hooks/gone", "acme-hooks/counts"]
    assert [each.options for each in found] == [{}, {"rank": 8}]


def test_class_is_instantiated_for_every_load_and_an_instance_is_taken_as_it_is(registry):
    counts, made = _find(registry, "counts"), _find(registry, "made")
    answers = [load_hooks([counts])[0].call("transom_module_built", module=None, path="p", resolution=None)]
    answers += [load_hooks([hook])[0].call("transom_module_built", path="p") for hook in (made, counts)]
    assert answers == ["p 2", "p 2", "p 3"]


def test_call_answers_nothing_for_what_the_hook_does_not_implement(registry):
    (live,) = load_hooks([_find(registry, "counts")])
    assert live.call("transom_doctor") is None


def test_call_adds_a_note_to_what_the_hook_raises(registry):
    (live,) = load_hooks([_find(registry, "counts")])
    with pytest.raises(KeyError, match=r"layers\.9") as caught:
        live.call("transom_module_built", path="layers.9")
    assert caught.value.__notes__ == ["in transom_module_built of the hook counts (acme-hooks 1.0) at layers.9"]


def test_load_refuses_what_implements_nothing_and_names_the_moments(registry):
    with pytest.raises(HookError, match=r"the hook nothing \(acme-hooks 1.0\) marks no function with") as caught:
        _find(registry, "nothing").load()
    assert caught.value.hook == "acme-hooks/nothing"
    assert caught.value.available == MOMENTS


def test_load_raises_what_the_import_raises(registry):
    with pytest.raises(PluginImportError, match=r"the hook gone \(other-hooks 1.0\) cannot be imported") as caught:
        _find(registry, "gone").load()
    assert (caught.value.slot, caught.value.name) == ("hooks", "gone")


OPTIONS = """
from dataclasses import dataclass
from transom import hookimpl

class Base:
    @hookimpl
    def transom_doctor(self):
        return [str(self.options.by)]

class Scale(Base):
    @dataclass
    class Options:
        by: int

    def __init__(self, options):
        self.options = options

class Plain(Scale):
    class Options: ...

class Deaf(Base):
    @dataclass
    class Options: ...
"""


@pytest.fixture
def scaling(site):
    points = {"scale": "Scale", "plain": "Plain", "deaf": "Deaf"}
    site.install("acme-scale", {"hooks": points}, code=OPTIONS)
    return Registry(scan([str(site.root)]))


def test_class_is_made_with_its_options(scaling):
    hook = _find(scaling, "scale")
    typed = replace(hook, options=hook.imported().Options(by=3))
    assert typed.load().call("transom_doctor") == ["3"]


def test_examine_needs_no_options(scaling, registry):
    _find(scaling, "scale").examine()
    _find(registry, "counts").examine()
    with pytest.raises(HookError, match="marks no function with"):
        _find(registry, "nothing").examine()


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("plain", "has `Options` that is neither a dataclass nor a msgspec.Struct"),
        ("deaf", "has `Options`, and cannot be made with `options=` alone"),
    ],
)
def test_class_that_does_not_keep_its_options_is_refused(scaling, name, complaint):
    hook = _find(scaling, name)
    for attempt in (hook.examine, replace(hook, options=3).load):
        with pytest.raises(HookError, match=re.escape(complaint)) as caught:
            attempt()
        assert caught.value.hook == f"acme-scale/{name}"


def test_error_names_the_hook(registry):
    (live,) = load_hooks([_find(registry, "counts")])
    error = live.error("transom_doctor", "answered a number")
    assert isinstance(error, HookError)
    assert error.what == "transom_doctor of the hook counts (acme-hooks 1.0) answered a number."
    assert error.hook == "acme-hooks/counts"


def test_moments_are_those_of_the_design():
    assert tuple(name for name in vars(HookSpecs) if not name.startswith("_")) == MOMENTS


def test_hookimpl_returns_the_function_it_marks():
    def transom_doctor():
        return ["it is late"]

    assert hookimpl(transom_doctor) is transom_doctor
    assert transom_doctor() == ["it is late"]
