"""Whether what a card promises can be had on a machine."""

from __future__ import annotations

import pytest
from transom.diagnosis.promises import promise
from transom.registry.registry import Registry
from transom.registry.scan import scan

CPU = {"type": "cpu", "name": "cpu"}


def _cuda(*capability: int) -> dict:
    return {"type": "cuda", "name": "a card", "capability": list(capability)}


@pytest.mark.parametrize(
    ("fields", "devices", "missing"),
    [
        ({}, [CPU], ()),
        ({"devices": ["cuda", "cpu"]}, [CPU], ()),
        ({"devices": ["cuda"]}, [CPU], ("it runs on cuda; this machine has cpu (hardware)",)),
        ({"devices": ["cuda"], "min_compute_capability": "9.0"}, [CPU, _cuda(9, 0)], ()),
        ({"devices": ["cuda"], "min_compute_capability": "9.0"}, [_cuda(8, 0), _cuda(10, 0)], ()),
        (
            {"devices": ["cuda"], "min_compute_capability": "9.0"},
            [CPU, _cuda(8, 6)],
            ("it needs compute capability 9.0; this machine's newest device has 8.6 (hardware)",),
        ),
        (
            {"requires": ["no-such-package>=3"]},
            [CPU],
            ("it requires no-such-package>=3, which is not installed (requires)",),
        ),
    ],
)
def test_promise_says_what_is_missing_here(site, make_card, fields, devices, missing):
    site.install("acme-norm", {"norm": {"fast": "Fast"}}, card=make_card("norm.fast", features=["rmsnorm"], **fields))
    found = promise(Registry(scan([str(site.root)])).get("norm", "fast"), devices)
    assert found.missing == missing
    assert (found.slot, found.name, found.features) == ("norm", "fast", 1)
    assert found.to_dict()["holds"] is (not missing)


def test_promise_says_how_to_install_what_is_missing(site, make_card):
    card = make_card("norm.fast", requires=["no-such-package>=3"], install="pip install 'acme[fast]'")
    site.install("acme-norm", {"norm": {"fast": "Fast"}}, card=card)
    assert promise(Registry(scan([str(site.root)])).get("norm", "fast"), [CPU]).hint == "pip install 'acme[fast]'"


def test_promise_says_where_what_is_to_be_installed_would_run(site, make_card):
    card = make_card("norm.fast", requires=["no-such-package>=3"], install="pip install it", devices=["cuda"])
    site.install("acme-norm", {"norm": {"fast": "Fast"}}, card=card)
    found = promise(Registry(scan([str(site.root)])).get("norm", "fast"), [CPU])
    assert (len(found.missing), found.hint) == (2, "pip install it; on a machine with cuda")


def test_promise_of_what_declares_nothing_is_none(site):
    site.install("acme-norm", {"norm": {"fast": "Fast"}})
    assert promise(Registry(scan([str(site.root)])).get("norm", "fast"), [CPU]) is None
