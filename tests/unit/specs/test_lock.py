"""Locks: made of plans, compared with plans, and enough to make the same plan elsewhere."""

from __future__ import annotations

import copy
import json
import pickle
from dataclasses import make_dataclass

import pytest
from transom.errors import PlanMismatchError, ResolutionError, SpecError, UnknownImplementationError
from transom.registry.registry import Registry
from transom.specs.load import recipe_names
from transom.specs.lock import Lock, read_lock
from transom.specs.plan import plan


@pytest.fixture
def made(fakes, make_spec):
    return plan(make_spec(use={"mlp": "even_mlp | fake_mlp"}, options={"layers.2.mlp": {"times": 3}}), registry=fakes)


@pytest.fixture
def lock(made):
    return Lock.from_plan(made)


def changed(lock, path, **changes):
    """Give the lock with one node changed."""
    data = copy.deepcopy(lock.to_dict())
    next(node for node in data["nodes"] if node["path"] == path).update(changes)
    return read_lock(data)


def test_lock_holds_every_choice(made, lock):
    assert [node.path for node in lock.nodes] == [node.path for node in made.nodes()]
    node = next(node for node in lock.nodes if node.path == "layers.0.mlp")
    assert (node.slot, node.asked, node.api) == ("mlp", ["even_mlp", "fake_mlp"], "1.1")
    assert (node.chosen, node.version, node.entry_point) == ("acme-fakes/fake_mlp", "1.0", "acme_fakes.parts:MLP")
    assert [(old.ref, old.stage, old.reason) for old in node.refused] == [
        ("acme-fakes/even_mlp", "supports", "layer 1 is odd")
    ]
    assert node.request["layer_number"] == 1
    assert "config" not in node.request
    assert next(node for node in lock.nodes if node.path == "layers.2.mlp").options == {"times": 3}
    assert (lock.name, lock.device, lock.dtype, lock.mode) == ("fake", "cpu", "float32", "train")
    assert lock.distributions == ("acme-fakes",)


def test_lock_reads_back_what_it_writes(lock, tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(lock.to_dict()))
    assert read_lock(tmp_path / "a.json") == read_lock(json.loads(json.dumps(lock.to_dict()))) == lock
    assert read_lock(lock) is lock
    assert pickle.loads(pickle.dumps(lock)) == lock


@pytest.mark.parametrize("recipe", recipe_names())
def test_written_lock_of_a_recipe_agrees_exactly_with_its_plan(recipe):
    made = plan(recipe)
    assert read_lock(json.loads(Lock.from_plan(made).to_text())).differences(made, "exact") == []


def test_written_lock_agrees_exactly_with_what_json_cannot_tell(fakes, make_spec, monkeypatch):
    mlp = fakes.get("mlp", "fake_mlp").load()
    options = make_dataclass("Options", [("window", tuple[int, int]), ("names", frozenset[str]), ("times", int, 2)])
    monkeypatch.setattr(mlp, "Options", options)
    given = {"mlp": {"window": [1, 2], "names": ["b", "a", "c"]}}
    made = plan(make_spec(options=given, config={"window_size": [4, 0]}), registry=fakes)
    assert next(node.options.window for node in made.nodes() if node.slot == "mlp") == (1, 2)
    lock = read_lock(json.loads(Lock.from_plan(made).to_text()))
    assert lock.differences(made, "exact") == []
    assert plan(made.spec, registry=fakes, lock=lock, lock_mode="exact").fingerprint == made.fingerprint


def test_plan_under_its_lock_is_the_same_plan(made, lock):
    again = plan(made.spec, lock=lock, lock_mode="exact")
    assert again.fingerprint == made.fingerprint
    assert Lock.from_plan(again) == lock
    assert again.root.resolution.asked == ("fake_model",)


def test_plan_under_a_lock_looks_at_the_locks_distributions_alone(made, lock, monkeypatch):
    def scanned():
        raise AssertionError("everything installed was looked at")

    monkeypatch.setattr("transom.registry.registry.scan", scanned)
    assert plan(made.spec, lock=lock).fingerprint == made.fingerprint


def test_plan_takes_the_locks_choice_among_what_is_asked_for(fakes, make_spec):
    lock = Lock.from_plan(plan(make_spec(use={"mlp": "fake_mlp"}), registry=fakes))
    spec = make_spec(use={"mlp": "even_mlp | fake_mlp"})
    names = {node.path: node.resolution.chosen.name for node in plan(spec, registry=fakes).nodes()}
    locked = {node.path: node.resolution.chosen.name for node in plan(spec, lock=lock).nodes()}
    assert (names["layers.1.mlp"], locked["layers.1.mlp"]) == ("even_mlp", "fake_mlp")


def test_plan_under_a_lock_refuses_that_the_spec_asks_for_another(made, lock):
    with pytest.raises(PlanMismatchError) as caught:
        plan(made.spec, lock=lock, use={"layers.0.mlp": "even_mlp"})
    line = "layers.0.mlp: acme-fakes/fake_mlp was locked for even_mlp | fake_mlp, now even_mlp is asked for"
    assert caught.value.differences == (line,)
    assert caught.value.failed == (line,)
    assert caught.value.what == "the plan departs from its lock in 1 place (compatible)."
    assert caught.value.asked_by == "the lock"
    assert caught.value.hint.startswith("leave out use.layers.0.mlp in the call's arguments; or install what the lock ")
    assert caught.value.hint.endswith("or compare less strictly (--lock-mode free)")


def test_check_proposes_the_looser_modes_alone(made, lock):
    data = lock.to_dict() | {"torch": "1.0"}
    with pytest.raises(PlanMismatchError) as caught:
        read_lock(data).check(made, "exact")
    said = "install what the lock names, lock anew, or compare less strictly (--lock-mode compatible or free)"
    assert caught.value.hint == said


def test_plan_under_a_lock_says_how_to_install_what_it_names(made, lock):
    data = lock.to_dict()
    for node in data["nodes"]:
        if node["slot"] == "mlp":
            node |= {"chosen": "acme-online/online", "version": "0.1.0"}
    with pytest.raises(UnknownImplementationError, match="online") as caught:
        plan(made.spec, lock=data)
    assert caught.value.hint == "pip install acme-online==0.1.0"
    assert (caught.value.slot, caught.value.asked_by) == ("mlp", "the lock, at layers.0.mlp")


def test_plan_under_a_lock_tells_of_places_that_come_and_go(made, make_spec, lock, tmp_path, monkeypatch, fakes):
    monkeypatch.setattr("transom.specs.planner.default_registry", lambda: fakes)
    (tmp_path / "a.json").write_text(json.dumps(lock.to_dict()))
    with pytest.raises(PlanMismatchError) as caught:
        plan(make_spec(use={"mlp": "even_mlp | fake_mlp"}, config={"num_layers": 4}), lock=tmp_path / "a.json")
    assert "layers.3.mlp: in this plan, but not locked" in caught.value.differences
    assert caught.value.asked_by == f"the lock {tmp_path / 'a.json'}"
    with pytest.raises(PlanMismatchError) as caught:
        plan(make_spec(use={"mlp": "even_mlp | fake_mlp"}, config={"num_layers": 2}), lock=lock)
    assert "layers.2.mlp: locked, but not in this plan" in caught.value.differences


def test_plan_under_a_free_lock_is_the_specs(fakes, make_spec, lock):
    made = plan(make_spec(use={"mlp": "fake_mlp"}), registry=fakes, lock=lock, lock_mode="free")
    assert {node.resolution.chosen.name for node in made.nodes() if node.slot == "mlp"} == {"fake_mlp"}


def test_plan_under_a_lock_whose_distribution_is_gone_says_so(made, lock):
    locked = changed(lock, "layers.0.mlp", chosen="acme-gone/mlp")
    with pytest.raises(UnknownImplementationError, match="acme-gone is not installed") as caught:
        plan(made.spec, lock=locked)
    assert caught.value.asked_by == "the lock, at layers.0.mlp"


def test_plan_under_a_lock_whose_choice_cannot_serve_here_says_why(made, lock):
    locked = changed(lock, "layers.0.mlp", chosen="acme-fakes/even_mlp")
    with pytest.raises(ResolutionError, match="layer 1 is odd"):
        plan(made.spec, lock=locked)


def test_lock_of_what_a_program_registered_needs_this_process(fakes, make_spec, monkeypatch):
    monkeypatch.setattr("transom.specs.lock.default_registry", lambda: fakes)
    with fakes.override("norm", "mine", fakes.get("norm", "fake_norm").load()):
        made = plan(make_spec(use={"norm": "mine"}), registry=fakes)
        lock = Lock.from_plan(made)
        assert "registered" in lock.distributions
        assert plan(made.spec, lock=lock, lock_mode="exact").fingerprint == made.fingerprint


@pytest.mark.parametrize(
    ("changes", "compatible", "exact"),
    [
        ({"slot": "layer"}, ["slot layer was locked, now mlp"], None),
        ({"chosen": "acme/x"}, ["acme/x was locked, now acme-fakes/fake_mlp"], None),
        (
            {"version": "0.9"},
            [],
            ["acme-fakes/fake_mlp 0.9 (acme_fakes.parts:MLP) was locked, now 1.0 (acme_fakes.parts:MLP)"],
        ),
        (
            {"asked": ["fake_mlp"]},
            [],
            ["acme-fakes/fake_mlp was locked for fake_mlp, now even_mlp | fake_mlp is asked for"],
        ),
        ({"api": "2.0"}, ["slot contract 2.0 was locked, now 1.1"], None),
        ({"api": "1.7"}, [], []),
        ({"options": {"times": 4}}, ["options {'times': 4} were locked, now {}"], None),
        (
            {"request": {"layer_number": 9, "gone": 1}},
            [],
            [
                "another request was locked: layer_number 9 was locked, now 1, gone 1 was locked, now None, "
                "features None was locked, now [], masks None was locked, now ['causal'], "
                "is_expert None was locked, now False, after_norm None was locked, now False"
            ],
        ),
    ],
    ids=["slot", "chosen", "version", "asked", "api", "minor api", "options", "request"],
)
def test_differences_between_a_lock_and_a_plan(made, lock, changes, compatible, exact):
    other = changed(lock, "layers.0.mlp", **changes)
    place = "layers.0.mlp: "
    assert other.differences(made) == [place + line for line in compatible]
    assert other.differences(made, "exact") == [place + line for line in (compatible if exact is None else exact)]
    assert other.differences(made, "free") == []
    assert lock.differences(made, "exact") == []


def test_exact_differences_name_torch_the_device_and_what_bundles_came_from(made, lock):
    data = lock.to_dict() | {"torch": "1.0", "device": "cuda", "sources": {"acme-presets": "1.1"}}
    other = read_lock(data)
    torch = lock.torch
    assert other.differences(made, "exact") == [
        f"torch 1.0 was locked, now {torch}",
        "device cuda was locked, now cpu",
        "acme-presets 1.1 was locked, now none",
    ]
    assert other.differences(made) == []


def test_check_shows_twenty_differences_and_keeps_all(made, lock):
    data = lock.to_dict()
    for i, node in enumerate(data["nodes"]):
        node["api"], node["options"] = "2.0", {"a": i}
    with pytest.raises(PlanMismatchError) as caught:
        read_lock(data).check(made, asked_by="a.json")
    count = 2 * len(data["nodes"])
    assert caught.value.what == f"the plan departs from its lock in {count} places (compatible)."
    assert len(caught.value.failed) == 21
    # Each node's options differ; the contracts of three layers are told in one line: of five places in a layer.
    assert caught.value.failed[-1] == f"... and {count - 2 * 5 - 20} more"
    assert "layers.0 to 2.mlp.up: slot contract 2.0 was locked, now 1.0" in caught.value.failed
    assert len(caught.value.differences) == count
    assert caught.value.asked_by == "a.json"
    assert caught.value.differences[0].startswith("the model: ")


@pytest.mark.parametrize(("mode", "hint"), [("exakt", "exact?"), ("xyz", None)])
def test_lock_modes_are_three(made, lock, make_spec, fakes, mode, hint):
    for act in (lambda: lock.differences(made, mode), lambda: plan(make_spec(), registry=fakes, lock_mode=mode)):
        with pytest.raises(SpecError, match=rf"no lock mode is named '{mode}'\.") as caught:
            act()
        assert (caught.value.available, caught.value.hint) == (("exact", "compatible", "free"), hint)


@pytest.mark.parametrize(
    ("text", "what", "path"),
    [
        ("{", "not valid JSON: ", ""),
        ("[]", "a.json: expected `object`, got `array`.", ""),
        ('{"lock": 2}', "lock: invalid enum value 2.", "lock"),
        ('{"lock": 1, "lok": 1}', "no field is named 'lok'.", "lok"),
        ('{"lock": 1, "lock": 1}', "key 'lock' is given twice.", ""),
        ('{"lock": NaN}', "NaN is not a number", ""),
        ('{"lock": 1, "transom": "0"}', "torch is missing.", "torch"),
    ],
)
def test_read_lock_refuses_what_is_no_lock(tmp_path, text, what, path):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(SpecError) as caught:
        read_lock(tmp_path / "a.json")
    assert caught.value.what.startswith(what)
    assert (caught.value.path, caught.value.file) == (path, "a.json")


def test_read_lock_refuses_a_path_that_stands_twice(lock):
    data = lock.to_dict()
    data["nodes"].append(data["nodes"][3])
    with pytest.raises(SpecError, match=r"nodes: 'layers\.0\.input_layernorm' stands twice\.") as caught:
        read_lock(data)
    assert caught.value.path == "nodes"


def test_read_lock_says_why_it_cannot_read(tmp_path):
    with pytest.raises(SpecError, match=r"cannot read lock '.*a\.json': No such file or directory\.") as caught:
        read_lock(tmp_path / "a.json")
    assert caught.value.hint == "transom lock SPEC makes one"
    (tmp_path / "b.json").write_bytes(b"\xff")
    with pytest.raises(SpecError, match=r"it is not UTF-8 text\."):
        read_lock(str(tmp_path / "b.json"))


WORKER = """
import json, multiprocessing, sys

def work(arguments):
    from transom import plan
    from transom.registry.registry import default_registry
    spec, lock = arguments
    made = plan(spec, lock=lock)
    return made.fingerprint, default_registry()._index is None

def rebuild(pickled):
    import pickle
    from transom.registry.registry import default_registry
    return pickle.loads(pickled).fingerprint, default_registry()._index is None

if __name__ == "__main__":
    import pickle
    from transom import plan
    from transom.specs.lock import Lock
    made = plan(json.loads(sys.argv[1]))
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        locked = pool.map(work, [(made.spec, Lock.from_plan(made))] * 2)
        pickled = pool.map(rebuild, [pickle.dumps(made)])
    print(json.dumps([made.fingerprint, locked, pickled]))
"""


@pytest.mark.multiprocess
def test_spawned_workers_make_the_same_plan_without_looking_around(site, fakes, make_spec):
    (site.root.parent / "worker.py").write_text(WORKER)
    fingerprint, locked, pickled = site.run(
        "import runpy; runpy.run_path('worker.py', run_name='__main__')", json.dumps(make_spec())
    )
    assert locked == [[fingerprint, True]] * 2
    assert pickled == [[fingerprint, True]]


SLOT = """
import dataclasses
from typing import Protocol
from torch import nn
from transom.slots import Part, Request, Slot
from acme_fakes.parts import MLP as Base

class Builder(Protocol):
    def __call__(self, *, request): ...

class Interface(Protocol):
    def forward(self, x, /): ...

GATE = Slot(
    name="gate", kind="kernel", api=(2, 1), summary="none", request=Request, builder=Builder, interface=Interface
)

class Gate(nn.Module):
    def __init__(self, *, request):
        super().__init__()

    def forward(self, x, /):
        return x

class GatedMLP(Base):
    Submodules = dataclasses.make_dataclass("Submodules", [("gate", object, None)], bases=(Base.Submodules,))

    @classmethod
    def parts(cls, request):
        return {**Base.parts(request), "gate": Part(slot="gate", request=Request(context=request.context))}
"""


def test_slot_of_a_plugin_is_locked_with_its_contract_and_its_distribution(site, fakes, make_spec, monkeypatch):
    site.install("acme-slots", {"slots": {"gate": "GATE"}, "mlp": {"gated": "GatedMLP"}}, code=SLOT)
    site.install("acme-gates", {"gate": {"open": "acme_slots.parts:Gate"}}, code=None)
    made = plan(make_spec(use={"layers.1.mlp": "gated", "gate": "open"}), registry=Registry())
    node = next(node for node in made.nodes() if node.slot == "gate")
    assert (node.path, node.api, made.sources) == ("layers.1.mlp.gate", (2, 1), {"acme-slots": "1.0"})
    lock = Lock.from_plan(made)
    assert next(node.api for node in lock.nodes if node.slot == "gate") == "2.1"
    assert lock.distributions == ("acme-fakes", "acme-gates", "acme-slots")
    monkeypatch.setattr("transom.registry.registry.scan", lambda: pytest.fail("everything installed was looked at"))
    assert plan(made.spec, lock=lock, lock_mode="exact").fingerprint == made.fingerprint
    newer = changed(lock, "layers.1.mlp.gate", api="3.0")
    assert newer.differences(made) == ["layers.1.mlp.gate: slot contract 3.0 was locked, now 2.1"]
