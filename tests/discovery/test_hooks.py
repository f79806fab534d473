"""Hooks of really installed distributions: they run where they are named, in order, and are told apart in errors."""

from __future__ import annotations

import json

import pytest

MAIN = "import sys; from transom.cli.main import main; sys.exit(main())"

RUN = """
import json, pickle, sys
import torch, transom
from transom.errors import TransomError

SPEC = {spec}

def names(plan):
    return [hook["hook"] for hook in plan.to_dict()["hooks"]]

def told(action):
    try:
        return action()
    except Exception as error:
        text = str(error)
        return {{"error": type(error).__name__, "text": text, "notes": getattr(error, "__notes__", [])}}

"""


@pytest.fixture
def run(tiny):
    """Give a function that runs code after `SPEC` and `told` are defined."""

    def run(site, code: str, *, environment: dict[str, str] | None = None, **fields):
        return site.run_with_torch(RUN.format(spec=tiny(**fields)) + code, **(environment or {}))

    return run


def test_installed_hook_changes_nothing_and_is_not_imported(hooks, run):
    code = """
model = transom.build(SPEC, seed=0)
loaded = [name for name in sys.modules if name.startswith(("acme", "pluggy"))]
print(json.dumps([loaded, names(transom.plan(SPEC)), str(model.plan) == str(transom.plan(SPEC))]))
"""
    assert run(hooks, code) == [[], [], True]


def test_module_built_replaces_what_the_parent_gets_and_the_plan_shows_it(hooks, run):
    code = """
tokens = torch.tensor([[1, 2, 3]])
model = transom.build(SPEC, seed=0).eval()
hooked = transom.build({**SPEC, "hooks": ["double"]}, seed=0).eval()
for layer in model.layers:
    for parameter in layer.mlp.linear_fc2.parameters():
        parameter.data *= 2
replaced = {node.path: [r.hook, r.by] for node in hooked.plan.nodes() for r in node.replacements}
planned = transom.plan({**SPEC, "hooks": ["double"]})
print(json.dumps({
    "same": torch.equal(model(tokens), hooked(tokens)),
    "replaced": replaced,
    "type": type(hooked.layers[0].mlp.linear_fc2).__name__,
    "text": str(hooked.plan),
    "dict": [node["replaced_by"] for node in hooked.plan.to_dict()["nodes"] if node["replaced_by"]],
    "planned": [node["replaced_by"] for node in planned.to_dict()["nodes"] if node["replaced_by"]],
    "fingerprints": [hooked.plan.fingerprint == planned.fingerprint, model.plan.fingerprint == planned.fingerprint],
    "pickled": pickle.loads(pickle.dumps(hooked.plan)) == hooked.plan,
    "rebuilt": type(transom.build(pickle.loads(pickle.dumps(planned))).layers[1].mlp.linear_fc2).__name__,
}))
"""
    out = run(hooks, code)
    entry = ["acme-hooks/double", "acme_hooks.parts.Scaled"]
    assert out["same"]
    assert out["replaced"] == {f"layers.{i}.mlp.linear_fc2": entry for i in range(2)}
    assert (out["type"], out["rebuilt"]) == ("Scaled", "Scaled")
    assert out["dict"] == [[{"hook": entry[0], "class": entry[1]}]] * 2
    assert out["planned"] == []
    assert out["fingerprints"] == [True, False]
    assert out["pickled"]
    lines = out["text"].splitlines()
    assert lines[1] == "hooks: double (acme-hooks 1.0)"
    (shown,) = [line.split() for line in lines if "replaced by" in line]
    assert shown[-4:] == ["replaced", "by", "acme-hooks/double", "acme_hooks.parts.Scaled"]


def test_replacement_with_a_layout_map_keeps_the_names_of_what_it_replaces(hooks, run):
    code = """
model = transom.build(SPEC, seed=0).eval()
hooked = transom.build({**SPEC, "hooks": ["renaming"]}, seed=1).eval()
loaded = hooked.load_state_dict(model.state_dict())
tokens = torch.tensor([[1, 2, 3]])
print(json.dumps({
    "same": sorted(hooked.state_dict()) == sorted(model.state_dict()) and torch.equal(hooked(tokens), model(tokens)),
    "loaded": [list(loaded.missing_keys), list(loaded.unexpected_keys)],
    "inner": [name for name, _ in hooked.named_parameters() if ".inner." in name],
}))
"""
    out = run(hooks, code)
    assert out["loaded"] == [[], []]
    assert out["inner"][:2] == ["layers.0.mlp.linear_fc2.inner.weight", "layers.0.mlp.linear_fc2.inner.bias"]
    assert out["same"]


def test_hooks_run_in_the_order_in_which_they_are_named(hooks, run):
    code = """
import acme_hooks.parts
model = transom.build({**SPEC, "hooks": HOOKS}, seed=0)
calls = acme_hooks.parts.Watch.calls
print(json.dumps([calls[:2], [c[2] for c in calls if c[1:2] == ["layers.0.mlp.linear_fc2"]], calls[-1][1:3],
                  len([c for c in calls if c[0] == "built"])]))
"""
    first, seen, last, count = run(hooks, 'HOOKS = ["watch", "double"]\n' + code)
    assert first == [["modify", "tiny"], ["resolved", "transom/decoder"]]
    assert seen == ["ColumnLinear"] or seen == ["RowLinear"]
    assert last[0] == ""
    assert count > 20
    assert run(hooks, 'HOOKS = ["double", "acme-hooks/watch"]\n' + code)[1] == ["Scaled"]


def test_modify_spec_answers_another_spec_and_leaves_the_first_alone(hooks, run):
    code = """
spec = transom.load_spec({**SPEC, "hooks": ["longer"]})
plan = transom.plan(spec)
print(json.dumps([spec.config.num_layers, plan.config.num_layers, plan.spec.config.num_layers,
                  len(transom.build(spec).layers), transom.plan(SPEC).config.num_layers]))
"""
    assert run(hooks, code) == [2, 4, 4, 4, 2]


def test_user_s_config_and_bundles_name_hooks_before_the_spec_s_own(hooks, run, write_config):
    hooks.install("acme-bundle", "[transom.bundles]\nbig = acme_bundle:big\n", code="")
    (hooks.root / "acme_bundle" / "big.toml").write_text('bundle = 1\nhooks = ["longer", "watch"]\n')
    code = 'print(json.dumps(names(transom.plan({**SPEC, "bundle": "big", "hooks": ["double", "longer"]}))))'
    environment = write_config('hooks = ["acme_hooks/watch"]')
    assert run(hooks, code, environment=environment) == [f"acme-hooks/{n}" for n in ("watch", "longer", "double")]


def test_lock_records_hooks_and_tells_where_they_differ(hooks, run):
    code = """
from transom.specs.lock import Lock, read_lock
lock = read_lock(json.loads(Lock.from_plan(transom.plan({**SPEC, "hooks": ["watch", "double"]})).to_text()))
def against(*asked, mode="compatible"):
    return told(lambda: names(transom.plan({**SPEC, "hooks": list(asked)}, lock=lock, lock_mode=mode)))
print(json.dumps([lock.to_dict()["hooks"], lock.distributions, against("watch", "double", mode="exact"),
    against("double", "watch")["text"], against("longer")["text"], against()["text"]]))
"""
    recorded, distributions, same, swapped, other, none = run(hooks, code)
    assert recorded == [
        {"hook": f"acme-hooks/{name}", "version": "1.0", "entry_point": f"acme_hooks.parts:{name.title()}"}
        for name in ("watch", "double")
    ]
    assert distributions == ["acme-hooks", "transom"]
    assert same == ["acme-hooks/watch", "acme-hooks/double"]
    locked = "hooks acme-hooks/watch, acme-hooks/double were locked, now"
    assert f"{locked} acme-hooks/double, acme-hooks/watch run" in swapped
    assert f"{locked} acme-hooks/longer run" in other
    assert f"{locked} none run" in none


def test_exact_lock_compares_versions_of_hooks(hooks, run):
    code = """
import msgspec
from transom.specs.lock import Lock, LockedHook
spec = {**SPEC, "hooks": ["watch"]}
lock = Lock.from_plan(transom.plan(spec))
old = LockedHook(hook="acme-hooks/watch", version="0.9", entry_point="acme_hooks:Old")
lock = msgspec.structs.replace(lock, hooks=[old])
print(json.dumps([lock.differences(transom.plan(spec), mode) for mode in ("compatible", "exact")]))
"""
    complaint = (
        "hook acme-hooks/watch 0.9 (acme_hooks:Old) was locked, now 1.0 (acme_hooks.parts:Watch)"  # as nodes are told
    )
    assert run(hooks, code) == [[], [complaint]]


NOTHING_MUCH = """
from transom import hookimpl

class Watch:
    @hookimpl
    def transom_after_resolve(self): ...
"""

FAULTY = """
import torch
from torch import nn
from transom import hookimpl
from transom.errors import SpecError

class Raises:
    @hookimpl
    def transom_module_built(self, module, path):
        if path == "layers.1.mlp":
            raise RuntimeError("no such luck")

class Refuses:
    @hookimpl
    def transom_after_resolve(self, plan):
        raise SpecError("not on my watch.", path="", file=None, line=None)

class Forgets:
    @hookimpl
    def transom_module_built(self, module, path):
        return nn.Linear(2, 2) if path.endswith("linear_fc1") else None

class Wrong:
    @hookimpl
    def transom_module_built(self, module):
        return "a module"

class Spec:
    @hookimpl
    def transom_modify_spec(self, spec):
        return {"config": 1}

class Enables:
    @hookimpl
    def transom_modify_spec(self, spec):
        import msgspec
        return msgspec.structs.replace(spec, hooks=[*spec.hooks, "raises"])

class Unbuilt:
    def __init__(self):
        raise OSError("no disk")

class Misspelt:
    @hookimpl
    def transom_modul_built(self, module): ...

class Greedy:
    @hookimpl
    def transom_module_built(self, module, colour): ...

class Nothing: ...

import pluggy

class Wraps:
    @pluggy.HookimplMarker("transom")(wrapper=True)
    def transom_after_resolve(self, plan):
        return (yield)
"""

FAULTS = {
    "raises": ("RuntimeError", "no such luck", "in transom_module_built of the hook raises (acme-bad 1.0) at layers.1"),
    "refuses": ("SpecError", "not on my watch.", "in transom_after_resolve of the hook refuses (acme-bad 1.0)"),
    "unbuilt": ("OSError", "no disk", "while making the hook unbuilt (acme-bad 1.0)"),
    "forgets": (
        "HookError",
        "transom_module_built of the hook forgets (acme-bad 1.0) replaced layers.0.mlp.linear_fc1 by what does not fit:"
        " it has no method `backward_dw`.",
        None,
    ),
    "wrong": ("HookError", "does not fit: it has no method", None),
    "spec": (
        "HookError",
        "transom_modify_spec of the hook spec (acme-bad 1.0) answered a dict, not a ModelSpec.",
        None,
    ),
    "enables": ("HookError", "changed `hooks`: only a spec or the user names those.", None),
    "misspelt": (
        "HookError",
        "the hook misspelt (acme-bad 1.0) does not fit: unknown hook 'transom_modul_built'",
        None,
    ),
    "greedy": ("HookError", "Argument(s) {'colour'} are declared in the hookimpl but can not be found", None),
    "nothing": ("HookError", "the hook nothing (acme-bad 1.0) marks no function with transom.hookimpl.", None),
    "wraps": ("HookError", "has transom_after_resolve as a wrapper: hooks run one after another, and none", None),
}


def test_faulty_hooks_are_named_in_their_errors_and_harm_no_other(hooks, run):
    hooks.install("acme-bad", {"hooks": {name: name.title() for name in FAULTS}}, code=FAULTY)
    code = f"""
names = {list(FAULTS)!r}
bad = {{name: told(lambda: transom.build({{**SPEC, "hooks": [name]}})) for name in names}}
fine = type(transom.build({{**SPEC, "hooks": ["double"]}}).layers[0].mlp.linear_fc2).__name__
print(json.dumps([bad, fine]))
"""
    bad, fine = run(hooks, code)
    assert fine == "Scaled"
    assert {name: found["error"] for name, found in bad.items()} == {name: fault[0] for name, fault in FAULTS.items()}
    for name, (_, text, note) in FAULTS.items():
        assert text in bad[name]["text"]
        assert note is None or any(each.startswith(note) for each in bad[name]["notes"]), bad[name]["notes"]


BROKEN = {
    "exits": ("raise SystemExit('bye')", "SystemExit: bye"),
    "fails": ("import libacme_gone", "ModuleNotFoundError: No module named 'libacme_gone'"),
    "lacks": ("", "AttributeError: module 'acme_lacks.parts' has no attribute 'Hook'"),
}


def test_hook_that_cannot_be_imported_is_an_error_where_it_is_named(hooks, run):
    for name, (source, _) in BROKEN.items():
        hooks.install(f"acme-{name}", {"hooks": {name: "Hook"}}, code=source)
    code = f"""
names = {list(BROKEN)!r}
print(json.dumps({{n: told(lambda: transom.plan({{**SPEC, "hooks": ["double", n]}})) for n in names}}))
"""
    out = run(hooks, code)
    for name, (_, reason) in BROKEN.items():
        assert out[name]["error"] == "PluginImportError"
        assert f"the hook {name} (acme-{name} 1.0) cannot be imported: {reason}" in out[name]["text"]


def test_unknown_hook_lists_what_is_available(hooks, run, write_config):
    code = "print(json.dumps(told(lambda: transom.plan(SPEC))))"
    out = run(hooks, code, hooks=["wach"])
    assert out["error"] == "HookError"
    assert out["text"].startswith("no hook is named 'wach'.\n  Asked by:   hooks in the mapping\n  Available:  ")
    assert all(f"{name} (acme-hooks 1.0)" in out["text"] for name in ("double", "longer", "renaming", "watch"))
    assert out["text"].endswith("\n  Try:        watch?")
    environment = write_config('hooks = ["gone"]')
    text = run(hooks, code, environment=environment)["text"]
    assert f"  Asked by:   hooks in {environment['TRANSOM_CONFIG']}\n" in text


def test_two_distributions_with_one_hook_name_make_only_its_bare_use_an_error(hooks, run):
    hooks.install("other-hooks", {"hooks": {"watch": "Watch"}}, code=NOTHING_MUCH)
    code = """
print(json.dumps([told(lambda: names(transom.plan({**SPEC, "hooks": [name]})))
                  for name in ("watch", "other_hooks/watch", "double")]))
"""
    bare, qualified, other = run(hooks, code)
    assert bare["error"] == "AmbiguousNameError"
    assert "a hook 'watch' is registered by 2 distributions." in bare["text"]
    assert "Try:        write acme-hooks/watch or other-hooks/watch" in bare["text"]
    assert (qualified, other) == (["other-hooks/watch"], ["acme-hooks/double"])


def test_hook_of_a_forbidden_distribution_may_not_run(hooks, run, write_config):
    code = 'print(json.dumps([told(lambda: transom.plan(SPEC)), [n for n in sys.modules if n.startswith("acme")]]))'
    out, loaded = run(hooks, code, hooks=["watch"], environment={"TRANSOM_PLUGINS_DENY": "acme-*"})
    assert out["error"] == "PolicyError"
    assert "the hook watch (acme-hooks 1.0) may not run: TRANSOM_PLUGINS_DENY has 'acme-*'." in out["text"]
    assert loaded == []


def test_list_of_hooks_that_is_wrong_is_a_spec_error(hooks, run):
    code = """
print(json.dumps([told(lambda: transom.plan({**SPEC, "hooks": asked})) for asked in (["watch", "watch"], ["a b"])]))
"""
    twice, malformed = run(hooks, code)
    assert twice["error"] == malformed["error"] == "SpecError"
    assert twice["text"].startswith("'watch' stands twice in ['watch', 'watch'].\n  Asked by:   hooks in the mapping")
    assert malformed["text"].startswith("'a b' is not an implementation's name in ['a b'].")


def test_error_that_a_hook_raises_is_printed_with_whose_it_is(hooks, tmp_path, tiny):
    hooks.install("acme-bad", {"hooks": {"refuses": "Refuses"}}, code=FAULTY)
    path = tmp_path / "tiny.json"
    path.write_text(json.dumps(eval(tiny(hooks=["refuses"]))))
    done = hooks.run_raw(MAIN, "plan", str(path))
    assert done.returncode == 2
    assert done.stderr == (
        "SpecError: not on my watch.\n  in transom_after_resolve of the hook refuses (acme-bad 1.0)\n"
    )
