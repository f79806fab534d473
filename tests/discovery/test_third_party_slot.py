"""A slot of a third party, really installed: listed, asked for by an architecture, resolved, planned, built, locked."""

from __future__ import annotations

import json

CODE = """
from dataclasses import dataclass, field
from typing import Protocol
from torch import nn
from transom.slots import Part, Request, Slot
from transom.transformer import parts as standard

@dataclass(frozen=True, kw_only=True)
class RouterRequest(Request):
    experts: int

class Router(Protocol):
    def forward(self, x): ...
    def __call__(self, x): ...

class RouterBuilder(Protocol):
    def __call__(self, experts, hidden_size, *, request): ...

ROUTER = Slot(
    name="acme_router", kind="kernel", api=(1, 2), summary="weighs experts", request=RouterRequest,
    builder=RouterBuilder, interface=Router, features={"noisy": "adds noise"}, default="top")

class Top(nn.Module):
    def __init__(self, experts, hidden_size, *, request):
        super().__init__()
        self.weight = nn.Parameter(__import__("torch").zeros(experts, hidden_size))
        self.request = request

    def forward(self, x):
        return (x @ self.weight.T).softmax(-1)

class Even(Top):
    @classmethod
    def supports(cls, request):
        return [] if request.experts % 2 == 0 else [f"an even number of experts, not {request.experts}"]

@dataclass(frozen=True)
class MoESubmodules:
    router: object = None

class MoE(nn.Module):
    Submodules = MoESubmodules

    @classmethod
    def parts(cls, request):
        return {"router": Part(slot="acme_router", request=RouterRequest(context=request.context, experts=3))}

    def __init__(self, config, submodules, *, is_expert=False, input_size=None, ffn_hidden_size=None, tp_group=None):
        super().__init__()
        self.router = submodules.router(3, config.hidden_size)

    def forward(self, hidden_states, per_token_scale=None):
        return hidden_states * self.router(hidden_states).amax(-1, keepdim=True), None
"""

RUN = """
import json, pickle
import torch, transom
from transom.errors import TransomError
from transom.registry.registry import default_registry
from transom.specs.lock import Lock, read_lock

SPEC = {spec}

def told(**use):
    try:
        plan = transom.plan(SPEC, use=use)
    except TransomError as error:
        return [type(error).__name__, str(error)]
    return [node.resolution.chosen.ref for node in plan.nodes() if node.slot == "acme_router"]

plan = transom.plan(SPEC)
model = transom.build(plan, seed=0).eval()
lock = read_lock(json.loads(Lock.from_plan(plan).to_text()))
again = transom.plan(SPEC, lock=lock, lock_mode="exact")
node = next(node for node in plan.nodes() if node.slot == "acme_router")
print(json.dumps({{
    "listed": [i.ref for i in transom.list_implementations("acme_router")],
    "slot": default_registry().slots["acme_router"].summary,
    "path": node.path, "api": list(node.api), "experts": node.request.experts,
    "built": [type(layer.mlp.router).__name__ for layer in model.layers],
    "bound": model.layers[0].mlp.router.request == node.request,
    "runs": list(model(torch.tensor([[1, 2]])).shape),
    "state": [name for name in model.state_dict() if "router" in name],
    "default": told(), "chain": told(acme_router="even | top"), "glob": told(**{{"layers.1.mlp.router": "loud"}}),
    "alone": told(acme_router="even"), "unknown": told(acme_router="topp"), "noisy": told(acme_router="loud"),
    "locked": [lock.sources, again.fingerprint == plan.fingerprint, pickle.loads(pickle.dumps(plan)) == plan],
}}))
"""


def _card() -> str:
    fields = 'devices = ["any"]\ndtypes = ["any"]\nmodes = ["train", "infer"]\n'
    routers = "".join(
        f'[acme_router.{name}]\napi = "1.{i}"\n{fields}' for i, name in enumerate(("top", "even", "loud"))
    )
    return f'card = 1\n{routers}[mlp.moe]\napi = "1.0"\n{fields}'.replace('"1.2"', '"1.3"')


def test_slot_of_a_third_party_is_filled_like_core_s(site, tiny):
    points = {
        "slots": {"acme_router": "ROUTER"},
        "acme_router": {"top": "Top", "even": "Even", "loud": "Top"},
        "mlp": {"moe": "MoE"},
    }
    site.install("acme-moe", points, card=_card(), code=CODE)
    out = site.run(RUN.format(spec=tiny(use={"mlp": "acme-moe/moe"})))
    assert out["listed"] == ["acme-moe/even", "acme-moe/loud", "acme-moe/top"]
    assert (out["slot"], out["path"], out["api"], out["experts"]) == (
        "weighs experts",
        "layers.0.mlp.router",
        [1, 2],
        3,
    )
    assert (out["built"], out["bound"], out["runs"]) == (["Top", "Top"], True, [1, 2, 16])
    assert out["state"] == ["layers.0.mlp.router.weight", "layers.1.mlp.router.weight"]
    assert out["default"] == out["chain"] == ["acme-moe/top"] * 2
    assert out["alone"][0] == out["noisy"][0] == out["glob"][0] == "ResolutionError"
    assert "acme-moe/even: an even number of experts, not 3 (supports)" in out["alone"][1]
    contract = "it is written for acme_router contract 1.3, this transom has 1.2"
    assert contract in out["noisy"][1]
    assert "Asked by:   use.layers.1.mlp.router" in out["glob"][1]
    assert out["unknown"][0] == "UnknownImplementationError"
    assert "no acme_router is named 'topp'." in out["unknown"][1]
    assert out["locked"] == [{"acme-moe": "1.0"}, True, True]


def test_slot_of_a_third_party_is_listed_and_checked_by_the_command_line(site):
    points = {"slots": {"acme_router": "ROUTER"}, "acme_router": {"top": "Top"}}
    card = _card().partition("[acme_router.even]")[0]
    metadata = "Metadata-Version: 2.1\nName: acme-moe\nVersion: 1.0\nRequires-Dist: transom\n"
    site.install("acme-moe", points, card=card, code=CODE, metadata=metadata)
    main = "import sys; from transom.cli.main import main; sys.exit(main())"
    listed = json.loads(site.run_raw(main, "list", "acme_router", "--json").stdout)
    assert [facts["ref"] for facts in listed["implementations"]] == ["acme-moe/top"]
    assert listed["problems"] == []
    done = site.run_raw(main, "check", "acme-moe")
    assert (done.returncode, done.stdout) == (0, "\nacme-moe: Nothing is wrong.\n"), done.stderr


CASES = """
import torch
from acme_moe.parts import RouterRequest
from transom.testing import Case, ConformanceError

def plain_request(context):
    return RouterRequest(context=context, experts=4)

def cases(subject):
    def sums_to_one():
        request = plain_request(subject.context())
        weights = subject.build(request, 4, 8, request=request)(torch.randn(3, 8))
        if not torch.allclose(weights.sum(-1), torch.ones(3)):
            raise ConformanceError("the weights of the experts do not add up to one")
    yield Case("routing", "sum", "the experts' weights add up to one", sums_to_one, subject.dtype, subject.device)
"""
WRONG = """
class Wrong(Top):
    def forward(self, x):
        return 2 * super().forward(x)
"""


def test_slot_of_a_third_party_is_conformance_tested_like_core_s(site):
    points = {"slots": {"acme_router": "ROUTER"}, "acme_router": {"top": "Top", "wrong": "Wrong"}}
    card = _card().partition("[acme_router.even]")[0]
    card += card.partition("[acme_router.top]")[2].join(["[acme_router.wrong]", ""])
    code = CODE.replace('default="top")', 'default="top", conformance="acme_moe.cases")')
    site.install("acme-moe", points, card=card, code=code + WRONG)
    (site.root / "acme_moe" / "cases.py").write_text(CASES)
    main = "import sys; from transom.cli.main import main; sys.exit(main())"
    done = site.run_raw(main, "check", "acme_router/top", "--conformance", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    statuses = {outcome["case"]: outcome["status"] for outcome in json.loads(done.stdout)[0]["cases"]}
    assert statuses["routing/sum[cpu-float32]"] == statuses["import/hygiene"] == statuses["refused/noisy"] == "passed"
    done = site.run_raw(main, "check", "acme_router/wrong", "--conformance")
    assert done.returncode == 1
    assert "the weights of the experts do not add up to one" in done.stdout
