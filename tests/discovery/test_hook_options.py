"""Options of hooks: typed by the hook, told with their path when they are wrong, and part of plans and locks."""

from __future__ import annotations

import json

import pytest

MAIN = "import sys; from transom.cli.main import main; sys.exit(main())"

CODE = """
from dataclasses import dataclass, field
from torch import nn
from transom import hookimpl

class Scaled(nn.Module):
    def __init__(self, inner, by):
        super().__init__()
        self.inner, self.by = inner, by

    def forward(self, x, /):
        out, bias = self.inner(x)
        return self.by * out, bias

    def backward_dw(self):
        self.inner.backward_dw()

class Scale:
    '''Multiplies what linears of a name answer.'''

    @dataclass(frozen=True)
    class Options:
        by: float
        places: list[str] = field(default_factory=lambda: ["linear_fc2"])

    def __init__(self, options):
        self.options = options

    @hookimpl
    def transom_module_built(self, module, path):
        if path.split(".")[-1] in self.options.places:
            return Scaled(module, self.options.by)

    @hookimpl
    def transom_doctor(self):
        return [] if self.options.by else ["it would scale by nothing"]

class Plain:
    @hookimpl
    def transom_after_resolve(self, plan): ...

class Deaf:
    class Options:
        by = 1

    @hookimpl
    def transom_after_resolve(self, plan): ...

class Stubborn:
    @dataclass
    class Options:
        by: float = 1

    @hookimpl
    def transom_after_resolve(self, plan): ...
"""

RUN = """
import json, pickle
import torch, transom
from transom.specs.lock import Lock, read_lock

SPEC = {spec}

def told(action):
    try:
        return action()
    except Exception as error:
        data = {{n: getattr(error, n, None) for n in ("path", "file", "line", "hint", "what", "asked_by", "available")}}
        return {{"error": type(error).__name__, "text": str(error), **data}}

def hooked(*hooks):
    return {{**SPEC, "hooks": list(hooks)}}

def scale(**options):
    return hooked({{"hook": "scale", "options": options}})

"""


@pytest.fixture
def scaling(site):
    points = {"scale": "Scale", "plain": "Plain", "deaf": "Deaf", "stubborn": "Stubborn"}
    site.install("acme-scale", {"hooks": points}, code=CODE)
    return site


@pytest.fixture
def run(scaling, tiny):
    """Give a function that runs code after `SPEC`, `hooked` and `told` are defined."""

    def run(code: str, *, environment: dict[str, str] | None = None, **fields):
        return scaling.run_with_torch(RUN.format(spec=tiny(**fields)) + code, **(environment or {}))

    return run


def test_hook_gets_its_typed_options_and_the_plan_says_them(run):
    code = """
tokens = torch.tensor([[1, 2, 3]])
plain = transom.build(SPEC, seed=0).eval()
model = transom.build(scale(by=2), seed=0).eval()
for layer in plain.layers:
    for parameter in layer.mlp.linear_fc2.parameters():
        parameter.data *= 2
plan = pickle.loads(pickle.dumps(transom.plan(scale(by=2))))
print(json.dumps({
    "same": torch.equal(plain(tokens), model(tokens)),
    "type": type(plan.hooks[0].options.by).__name__,
    "again": transom.build(plan, seed=0).layers[0].mlp.linear_fc2.by,
    "hooks": plan.to_dict()["hooks"],
    "text": str(plan).splitlines()[1],
    "prints": len({transom.plan(scale(by=by)).fingerprint for by in (2, 2.0, 3)}),
}))
"""
    out = run(code)
    options = {"by": 2.0, "places": ["linear_fc2"]}
    hook = {"hook": "acme-scale/scale", "version": "1.0", "entry_point": "acme_scale.parts:Scale", "options": options}
    assert out["same"]
    assert (out["type"], out["again"], out["prints"]) == ("float", 2.0, 2)
    assert out["hooks"] == [hook]
    assert out["text"] == "hooks: scale (acme-scale 1.0) {'by': 2.0, 'places': ['linear_fc2']}"


SPEC_FILE = """\
vocab_size: 16
max_sequence_length: 8
config: {num_layers: 2, hidden_size: 16, num_attention_heads: 2}
hooks:
  - plain
  - hook: acme-scale/scale
    options:
      OPTION
"""

WRONG = {
    "by: fast": ("hooks.1.options.by", 8, "hooks.1.options.by: expected `float`, got `str`."),
    "bi: 2": ("hooks.1.options.bi", 8, "no field is named 'bi' in hooks.1.options."),
    "places: [a]": ("hooks.1.options.by", 8, "hooks.1.options.by is missing."),
    "{by: 2, places: [a, 1]}": ("hooks.1.options.places.1", 8, "hooks.1.options.places.1: expected `str`, got `int`."),
}


def test_wrong_option_is_told_with_its_path_and_line(run, tmp_path):
    code = "print(json.dumps([told(lambda: transom.plan(path)) for path in {paths!r}]))"
    paths = []
    for number, option in enumerate(WRONG):
        paths.append(str(tmp_path / f"{number}.yaml"))
        (tmp_path / f"{number}.yaml").write_text(SPEC_FILE.replace("OPTION", option))
    told = run(code.format(paths=paths))
    for number, (found, (path, line, what)) in enumerate(zip(told, WRONG.values(), strict=True)):
        assert (found["error"], found["path"], found["file"]) == ("SpecError", path, f"{number}.yaml")
        assert found["line"] == line
        assert found["what"] == f"options of the hook scale (acme-scale 1.0): {what}"


def test_hook_without_options_takes_none(run):
    found = run('print(json.dumps(told(lambda: transom.plan(hooked({"hook": "plain", "options": {"by": 2}})))))')
    assert found["text"] == (
        "the hook plain (acme-scale 1.0) takes no options.\n"
        "  Asked by:   hooks in the mapping\n"
        "  Try:        remove the entry, or name one that does"
    )
    assert (found["error"], found["path"]) == ("SpecError", "hooks.0.options")


def test_required_option_of_a_hook_that_is_named_alone_is_missed(run):
    found = run('print(json.dumps(told(lambda: transom.plan(hooked("plain", "scale")))))')
    assert (found["path"], found["asked_by"]) == ("hooks.1.options.by", "hooks in the mapping")


def test_entry_of_hooks_that_is_no_hook_is_told_with_its_path(run):
    code = """
entries = ({"hok": "scale"}, {"options": {}}, 3, {"hook": "scale", "options": [1]})
print(json.dumps([told(lambda: transom.load_spec(hooked("plain", entry))) for entry in entries]))
"""
    found = run(code)
    assert [each["path"] for each in found] == ["hooks.1.hok", "hooks.1.hook", "hooks.1", "hooks.1.options"]
    assert found[0]["hint"] == "hook?"
    assert found[1]["what"] == "hooks.1.hook is missing."


def test_hook_whose_class_keeps_no_options_is_at_fault(run):
    code = 'print(json.dumps([told(lambda: transom.plan(hooked(name))) for name in ("deaf", "stubborn")]))'
    deaf, stubborn = run(code)
    assert deaf["error"] == "PluginImportError"
    assert deaf["what"] == (
        "the options of the hook deaf (acme-scale 1.0) cannot be read: Options is neither a dataclass nor a "
        "msgspec.Struct."
    )
    assert stubborn["error"] == "HookError"
    assert "has `Options`, and cannot be made with `options=` alone" in stubborn["what"]


def test_lock_records_options_and_tells_where_they_differ(run):
    code = """
lock = read_lock(json.loads(Lock.from_plan(transom.plan(scale(by=2))).to_text()))
def against(by, mode):
    return told(lambda: transom.plan(scale(by=by), lock=lock, lock_mode=mode).to_dict()["hooks"][0]["options"]["by"])
print(json.dumps([lock.to_dict()["hooks"][0]["options"], against(2, "exact"), against(3, "compatible")["text"],
    against(3, "free")]))
"""
    recorded, same, other, free = run(code)
    assert recorded == {"by": 2.0, "places": ["linear_fc2"]}
    assert (same, free) == (2.0, 3.0)
    assert (
        "hook acme-scale/scale: options {'by': 2.0, 'places': ['linear_fc2']} were locked, "
        "now {'by': 3.0, 'places': ['linear_fc2']}"
    ) in other


def test_options_of_the_spec_win_over_those_of_bundles_and_of_the_user(scaling, run, write_config):
    scaling.install("acme-bundle", "[transom.bundles]\nbig = acme_bundle:big\n", code="")
    (scaling.root / "acme_bundle" / "big.toml").write_text(
        'bundle = 1\nhooks = [{hook = "acme-scale/scale", options = {by = 3}}]\n'
    )
    environment = write_config('hooks = [{hook = "scale", options = {by = 2}}, "plain"]')
    code = """
specs = (SPEC, {**SPEC, "bundle": "big"}, {**scale(by=4), "bundle": "big"}, hooked("scale"))
found = [transom.plan(spec).to_dict()["hooks"] for spec in specs]
print(json.dumps([[hooks[0]["options"]["by"], [hook["hook"] for hook in hooks]] for hooks in found]))
"""
    order = ["acme-scale/scale", "acme-scale/plain"]
    assert run(code, environment=environment) == [[2, order], [3, order], [4, order], [2, order]]


def test_wrong_option_in_the_user_s_config_is_told_with_its_file(run, write_config, scaling):
    environment = write_config('hooks = [{hook = "scale", options = {by = "2"}}]')
    found = run("print(json.dumps(told(lambda: transom.plan(SPEC))))", environment=environment)
    assert (found["path"], found["file"]) == ("hooks.0.options.by", environment["TRANSOM_CONFIG"])
    done = scaling.run_raw(MAIN, "doctor", **environment)
    assert done.returncode == 1
    assert "options of the hook scale (acme-scale 1.0): hooks.0.options.by: expected `float`" in done.stdout


def test_doctor_asks_a_hook_with_its_options_and_needs_none_of_the_others(scaling, write_config):
    done = scaling.run_raw(MAIN, "doctor", "--json", **write_config('hooks = [{hook = "scale", options = {by = 0}}]'))
    told = {(each["level"], each["where"], each["what"]) for each in json.loads(done.stdout)["findings"]}
    assert ("wrong", "[transom.hooks] scale", "it would scale by nothing") in told
    untold = scaling.run_raw(MAIN, "doctor", "--json")
    wrong = [each["where"] for each in json.loads(untold.stdout)["findings"] if each["level"] == "wrong"]
    assert "[transom.hooks] scale" not in wrong
    assert "[transom.hooks] deaf" in wrong
