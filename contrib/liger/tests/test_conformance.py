"""The conformance kit, with a Liger Kernel of plain torch: everything but the kernels themselves."""

from __future__ import annotations

import msgspec
import pytest
from transom import list_implementations
from transom.registry.implementation import Implementation
from transom.testing import CaseSkipped, cases_for


def _on_the_cpu(each: Implementation) -> Implementation:
    """The implementation with a card that declares the CPU, where the stand-in runs."""
    found = Implementation(each.slot, each.name, each.distribution, each.version, each.value)
    card = msgspec.structs.replace(found.card, devices=("cpu",), min_compute_capability=None)
    found.__dict__["_card"] = (card, None)
    return found


OURS = [_on_the_cpu(each) for each in list_implementations() if each.distribution == "transom-liger"]
CASES = [(each, case) for each in OURS for case in cases_for(each) if case.area not in ("import", "parallel")]


@pytest.mark.parametrize(("of", "case"), CASES, ids=[f"{of.name}-{case.id}" for of, case in CASES])
def test_parts_conform_but_for_their_kernels(of, case, liger):
    try:
        case.run()
    except CaseSkipped as reason:
        pytest.skip(str(reason))
