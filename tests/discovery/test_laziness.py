"""Listing reads data; only what is chosen is imported."""

from __future__ import annotations

LIST = """
import json, sys
import transom
before = sorted(m for m in ("torch", "importlib_metadata", "transom.registry", "numpy") if m in sys.modules)
implementations = transom.list_implementations()
facts = [(i.slot, i.ref, i.card is not None) for i in implementations]
from transom.registry.registry import default_registry
default_registry().problems()
after = sorted(m for m in sys.modules if m == "torch" or m.startswith(("acme", "transom.transformer", "transom_")))
print(json.dumps({"before": before, "after": after, "facts": facts}))
"""


def test_listing_imports_neither_torch_nor_a_plugin(site, make_card):
    site.install("acme-norm", {"norm": {"fast": "Fast"}, "loss": {"loss": "Loss"}}, card=make_card("norm.fast"))
    out = site.run(LIST)
    assert out["before"] == out["after"] == []
    assert ["norm", "acme-norm/fast", True] in out["facts"]
    assert ["loss", "acme-norm/loss", False] in out["facts"]
    assert ["norm", "transom/torch_norm", True] in out["facts"]


def test_card_is_read_through_a_pth_file(site, tmp_path, make_card):
    source = type(site)(tmp_path / "src")
    source.install("acme-norm", {"norm": {"fast": "Fast"}}, card=make_card("norm.fast"))
    next(source.root.glob("*.dist-info")).rename(site.root / "acme_norm-1.0.dist-info")
    (site.root / "acme_norm.pth").write_text(f"{source.root}\n")
    out = site.run(f"import site; site.addsitedir({str(site.root)!r})\n" + LIST)
    assert ["norm", "acme-norm/fast", True] in out["facts"]


HOOK = """
import sys
from importlib.util import spec_from_file_location

class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == "acme_norm":
            return spec_from_file_location(name, DIRECTORY + "/__init__.py", submodule_search_locations=[DIRECTORY])

sys.meta_path.append(Finder)
"""


def test_card_is_read_through_an_import_hook(site, tmp_path, make_card):
    source = type(site)(tmp_path / "src")
    source.install("acme-norm", {"norm": {"fast": "Fast"}}, card=make_card("norm.fast"))
    next(source.root.glob("*.dist-info")).rename(site.root / "acme_norm-1.0.dist-info")
    out = site.run(f"DIRECTORY = {str(source.root / 'acme_norm')!r}\n" + HOOK + LIST)
    assert ["norm", "acme-norm/fast", True] in out["facts"]
    assert out["after"] == []


def test_two_thousand_distributions_are_listed_in_one_pass(site, make_card):
    for number in range(2000):
        info = site.root / f"pkg_{number}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: pkg-{number}\nVersion: 1.0\n\nText\n")
        if number % 2 == 0:
            (info / "entry_points.txt").write_text(f"[console_scripts]\npkg = pkg_{number}:main\n")
        if number % 100 == 0:
            (info / "entry_points.txt").write_text(f"[transom.norm]\nn{number} = pkg_{number}.parts:Norm\n")
    counting = """
import json, importlib_metadata
from transom.registry import scan
passes, opened = [], []
distributions = importlib_metadata.distributions
def counted(**scope):
    passes.append(scope)
    return distributions(**scope)
importlib_metadata.distributions = counted
header = scan._header
scan._header = lambda distribution: opened.append(1) or header(distribution)
from transom.registry.registry import default_registry
registry = default_registry()
names = [i.name for i in registry.implementations("norm") if i.distribution.startswith("pkg-")]
registry.get("norm", "n0"), registry.implementations(), registry.problems()
others = len(registry.index.distributions) - len(names)
print(json.dumps({"names": names, "passes": passes, "opened": len(opened), "others": others}))
"""
    out = site.run(counting)
    assert set(out["names"]) == {f"n{number}" for number in range(0, 2000, 100)}
    assert out["passes"] == [{}]
    assert out["opened"] == 20 + out["others"]
