"""The conformance kit on this machine's CUDA device, for every first-party implementation that a card sends there."""

from __future__ import annotations

import warnings

import pytest
import torch
from transom import list_implementations
from transom.testing import CaseSkipped, cases_for

# Packages warn of what is theirs.
pytestmark = pytest.mark.filterwarnings("default")


def cases_on_cuda(implementation):
    """Its cases on the device, or one that says that there is none."""
    if not torch.cuda.is_available():
        return [None]
    with warnings.catch_warnings():  # to make cases, it is asked whether it can train, which may import its package
        warnings.simplefilter("default")
        return [case for case in cases_for(implementation) if case.device == "cuda"]


CASES = [
    (implementation, case)
    for implementation in list_implementations()
    if implementation.builder is None
    and implementation.distribution.startswith("transom-")
    and implementation.card is not None
    and "cuda" in implementation.card.devices
    for case in cases_on_cuda(implementation)
]


@pytest.mark.parametrize(
    ("implementation", "case"),
    CASES,
    ids=[f"{each.slot}-{each.name}-{case.id if case else 'all'}" for each, case in CASES],
)
def test_implementation_conforms_on_cuda(implementation, case, tell):
    row = f"{implementation.slot} {implementation.name}"
    tell(row, f"{implementation.distribution} {implementation.version}", "conforms", "passed")
    if case is None:
        pytest.skip(f"{row}: torch finds no CUDA device here")
    try:
        case.run()
    except CaseSkipped as reason:
        pytest.skip(f"{row}: {reason}")
