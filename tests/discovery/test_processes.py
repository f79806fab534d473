"""Worker processes: a resolution travels, and a locked worker looks at nothing but what it was told."""

from __future__ import annotations

import pytest

WORKER = """
import json, multiprocessing, sys
from transom.registry.registry import Registry, default_registry
from transom.registry.resolve import resolve
from transom.registry.scan import index_of
from transom.slots import BuildContext
from transom.slots.norm import NormRequest

request = NormRequest(context=BuildContext(), features=frozenset({"rmsnorm"}), hidden_size=8, eps=1e-5)

def work(resolution):
    builder = resolution.chosen.load()
    return builder.__module__, default_registry()._index is None, resolution.chosen.card.api

def resolve_again(_):
    return resolve("norm", "good", request).chosen

if __name__ == "__main__":
    resolution = resolve("norm", "absent | good", request)
    with multiprocessing.get_context(sys.argv[1]).Pool(2) as pool:
        facts = pool.map(work, [resolution] * 4)
        same = {c == resolution.chosen for c in pool.map(resolve_again, range(4))}
    print(json.dumps({"facts": facts, "same": list(same)}))
"""


@pytest.mark.multiprocess
@pytest.mark.parametrize(("method", "is_unscanned"), [("spawn", True), ("fork", False)])
def test_resolution_travels_to_workers(site, make_card, method, is_unscanned):
    site.install("acme-good", {"norm": {"good": "Fast"}}, card=make_card("norm.good", features=["rmsnorm"]))
    (site.root.parent / "worker.py").write_text(WORKER)
    out = site.run("import runpy; runpy.run_path('worker.py', run_name='__main__')", method)
    assert out["facts"] == [["acme_good.parts", is_unscanned, "1.0"]] * 4
    assert out["same"] == [True]


def test_locked_worker_looks_at_the_named_distributions_alone(site, make_card):
    site.install("acme-good", {"norm": {"good": "Fast"}}, card=make_card("norm.good", features=["rmsnorm"]))
    site.install("acme-other", {"norm": {"other": "Fast"}})
    code = """
import importlib_metadata
asked = []
distributions = importlib_metadata.distributions
def counted(**scope):
    asked.append(scope)
    return distributions(**scope)
importlib_metadata.distributions = counted
registry = Registry(index_of(["transom", "acme-good"]))
resolution = resolve("norm", "acme-good/good", request, registry=registry)
print(json.dumps([resolution.chosen.ref, asked, [c.ref for c in registry.implementations("norm")]]))
"""
    chosen, asked, names = site.run(WORKER.partition("def work")[0] + code)
    assert chosen == "acme-good/good"
    assert asked == [{"name": "transom"}, {"name": "acme-good"}]
    assert names == ["transom/torch_norm", "acme-good/good"]
