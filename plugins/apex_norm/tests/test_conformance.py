"""The conformance kit, with an Apex of plain torch: everything but the kernels themselves."""

from __future__ import annotations

import msgspec
import pytest
from transom.registry.implementation import Implementation
from transom.testing import CaseSkipped, cases_for


def _on_the_cpu(name: str, value: str) -> Implementation:
    """The implementation with a card that declares the CPU, where the stand-in runs."""
    found = Implementation("norm", name, "transom-apex-norm", "0.1.0", value)
    card = msgspec.structs.replace(found.card, devices=("cpu",), min_compute_capability=None)
    found.__dict__["_card"] = (card, None)
    return found


IMPLEMENTATIONS = [
    _on_the_cpu("apex_norm", "transom_apex_norm.norm:ApexNorm"),
    _on_the_cpu("apex_fast_layer_norm", "transom_apex_norm.fast:ApexFastLayerNorm"),
]
CASES = [
    (each, case) for each in IMPLEMENTATIONS for case in cases_for(each) if case.area not in ("import", "parallel")
]


@pytest.mark.parametrize(("of", "case"), CASES, ids=[f"{of.name}-{case.id}" for of, case in CASES])
def test_norm_conforms_but_for_its_kernels(of, case, apex):
    try:
        case.run()
    except CaseSkipped as reason:
        pytest.skip(str(reason))
