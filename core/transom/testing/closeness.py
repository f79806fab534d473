"""How near to the float64 reference a result must be."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from transom.testing.case import ConformanceError

__all__ = ["TOLERANCES", "Tolerance", "assert_close", "assert_same"]


class Tolerance(NamedTuple):
    """How far outputs and gradients may be from the reference, relative to its largest element."""

    outputs: float
    gradients: float


TOLERANCES = {
    "float64": Tolerance(1e-6, 1e-5),  # statistics and softmax in float32 are allowed
    "float32": Tolerance(1e-5, 1e-4),
    "bfloat16": Tolerance(3e-2, 6e-2),
    "float16": Tolerance(5e-3, 1e-2),
}
"""By the dtype of parameters and activations; inputs are rounded to it before the reference sees them."""


def assert_close(actual: Tensor, expected: Tensor, tolerance: float, what: str) -> None:
    """Compare a result with the reference's.

    Args:
        actual: of any floating dtype, on any device.
        expected: float64, of the same shape.
        tolerance: allowed distance, relative to the largest expected element.
        what: is compared, for the message.

    Raises:
        ConformanceError: another shape, a number that is not finite, or too far away; with the worst place.
    """
    if actual.shape != expected.shape:
        raise ConformanceError(f"{what}: shape {list(actual.shape)}, expected {list(expected.shape)}")
    if expected.numel() == 0:
        return
    found = actual.detach().to("cpu", torch.float64)
    expected = expected.detach()
    bad = (found - expected).abs().nan_to_num(nan=torch.inf)
    scale = float(expected.abs().max()) or 1.0
    allowed = tolerance * (scale + expected.abs())
    if bool((bad <= allowed).all()):
        return
    worst = int((bad / allowed).argmax())
    place = [int(index) for index in torch.unravel_index(torch.tensor(worst), expected.shape)]
    share = float((bad > allowed).double().mean())
    raise ConformanceError(
        f"{what}: {float(found.flatten()[worst]):.6g} at {place}, expected {float(expected.flatten()[worst]):.6g}; "
        f"{share:.0%} of {expected.numel()} elements are off by more than {tolerance:g} of the largest, {scale:.3g}"
    )


def assert_same(actual: Tensor, expected: Tensor, what: str) -> None:
    """Compare two results that must have the same bits.

    Raises:
        ConformanceError: they differ.
    """
    if actual.shape == expected.shape and torch.equal(actual, expected):
        return
    if actual.shape != expected.shape:
        raise ConformanceError(f"{what}: shape {list(actual.shape)}, expected {list(expected.shape)}")
    distance = float((actual.double() - expected.double()).abs().max())
    raise ConformanceError(f"{what}: the bits differ, by up to {distance:.3g}")
