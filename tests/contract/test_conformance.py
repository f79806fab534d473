"""Every first-party implementation passes the conformance kit, as an ordinary plugin."""

from __future__ import annotations

import pytest
from transom import list_implementations
from transom.testing import CaseSkipped, cases_for

CASES = [
    (implementation, case)
    for implementation in list_implementations()
    if implementation.builder is None and implementation.distribution.split("-")[0] == "transom"
    for case in cases_for(implementation)
]


@pytest.mark.parametrize(
    "case",
    [case for _, case in CASES],
    ids=[f"{implementation.slot}-{implementation.name}-{case.id}" for implementation, case in CASES],
)
def test_first_party_implementation_conforms(case):
    try:
        case.run()
    except CaseSkipped as reason:
        pytest.skip(str(reason))


def test_every_slot_has_a_first_party_implementation_under_test():
    from transom.slots import SLOTS

    assert {implementation.slot for implementation, _ in CASES} == set(SLOTS)
