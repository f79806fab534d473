"""The conformance kit, with a Transformer Engine of plain torch: everything but the kernels themselves."""

from __future__ import annotations

import pytest
from transom.testing import CaseSkipped, cases_for

from .conftest import PLACES, implementation_on_the_cpu

CASES = [
    (slot, case)
    for slot in PLACES
    for case in cases_for(implementation_on_the_cpu(slot))
    if case.area not in ("import", "parallel")
]


@pytest.mark.parametrize(("slot", "case"), CASES, ids=[f"{slot}-{case.id}" for slot, case in CASES])
def test_implementation_conforms_but_for_its_kernels(slot, case, install):
    install()
    try:
        case.run()
    except CaseSkipped as reason:
        pytest.skip(str(reason))
