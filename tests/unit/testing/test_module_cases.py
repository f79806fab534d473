from __future__ import annotations

import pytest
import torch
from transom.testing import ConformanceError
from transom.testing.module_cases import _expect_repeated
from transom.testing.subject import Subject


@pytest.mark.parametrize(
    ("device", "factor", "passes"), [("cpu", 1e-6, False), ("cuda", 1e-6, True), ("cuda", 0.1, False)]
)
def test_expect_repeated_wants_the_same_bits_where_sums_have_an_order(device, factor, passes, norm):
    subject = Subject(norm(), device)
    wanted = torch.tensor([1.0, -2.0])
    _expect_repeated(subject, wanted.clone(), wanted, "the gradient of x")
    found = wanted * (1 + factor)
    if passes:
        _expect_repeated(subject, found, wanted, "the gradient of x")
        return
    with pytest.raises(ConformanceError, match="the gradient of x: "):
        _expect_repeated(subject, found, wanted, "the gradient of x")
