"""Whether two implementations computed the same."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["ALLOWED", "Allowed", "difference", "disagreement"]


class Allowed(NamedTuple):
    """How far two implementations may be apart, relative to the largest element."""

    outputs: float
    gradients: float


ALLOWED: Mapping[str, Allowed] = {
    "float64": Allowed(2e-6, 2e-5),
    "float32": Allowed(2e-5, 2e-4),
    "bfloat16": Allowed(6e-2, 1.2e-1),
    "float16": Allowed(1e-2, 2e-2),
}
"""By dtype: twice what conformance allows one of them from the reference in float64, for both are rounded."""


def difference(found: Sequence[Tensor], reference: Sequence[Tensor]) -> float:
    """Give the largest difference, relative to the largest element of each tensor of the reference.

    Returns:
        infinity where there is another number of tensors, another shape, or a number that is not finite where the
        reference has one that is, or has another.

    Example:
        >>> difference([torch.tensor([2.0, 5.0])], [torch.tensor([2.0, 4.0])])
        0.25
        >>> difference([torch.tensor([torch.nan])], [torch.tensor([1.0])])
        inf
    """
    if len(found) != len(reference):
        return math.inf
    return max((_of_two(one, other) for one, other in zip(found, reference, strict=True)), default=0.0)


def _of_two(found: Tensor, reference: Tensor) -> float:
    if found.shape != reference.shape:
        return math.inf
    same = found == reference  # infinities too
    if bool(same.all()):
        return 0.0
    apart = (found.double() - reference.double()).masked_fill(same, 0.0).abs().nan_to_num(nan=math.inf, posinf=math.inf)
    largest = float(reference.double().masked_fill(~reference.isfinite(), 0.0).abs().max())
    return float(apart.max()) / (largest or 1.0)


def disagreement(what: str, found: Sequence[Tensor], reference: Sequence[Tensor], allowed: float) -> str:
    """Say in a few words how one differs from the reference by more than rounding; nothing where it does not.

    Args:
        what: is compared, in the plural.
        found: the tensors of one.
        reference: those of the reference.
        allowed: difference, as `difference` gives it.

    Example:
        >>> disagreement("outputs", [torch.ones(2)], [torch.ones(3)], 1e-5)
        'its outputs are [2] and not [3]'
        >>> disagreement("outputs", [torch.ones(2)], [torch.ones(2)], 1e-5)
        ''
    """
    for one, other in zip(found, reference, strict=False):
        if one.shape != other.shape:
            return f"its {what} are {list(one.shape)} and not {list(other.shape)}"
        if one.dtype != other.dtype:
            return f"its {what} are {_name(one.dtype)} and not {_name(other.dtype)}"
    if len(found) != len(reference):
        return f"its {what} are {len(found)} tensors and not {len(reference)}"
    apart = difference(found, reference)
    if any(
        bool(one.isnan().any()) and not bool(other.isnan().any()) for one, other in zip(found, reference, strict=True)
    ):
        return f"its {what} have NaN"
    return f"its {what} differ by {apart:.1e}, where {allowed:.0e} is allowed" if apart > allowed else ""


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
