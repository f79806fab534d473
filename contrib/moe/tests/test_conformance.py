"""The conformance kit on everything that this distribution registers."""

from __future__ import annotations

import pytest
from transom import list_implementations
from transom.testing import Case, CaseSkipped, cases_for

OURS = [each for each in list_implementations() if each.distribution == "transom-moe"]
# Torch's own, while it traces functions with derivatives of their own.
pytestmark = pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
CASES = [case for each in OURS for case in cases_for(each)]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_implementation_conforms(case: Case) -> None:
    try:
        case.run()
    except CaseSkipped as reason:
        pytest.skip(str(reason))
