"""What can be chosen of the norms on Apex."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

__all__ = ["ApexOptions"]


@final
@dataclass(frozen=True, kw_only=True)
class ApexOptions:
    """Options of ``apex_norm`` and ``apex_fast_layer_norm``.

    Args:
        memory_efficient: keep the output for the backward pass, which the next module keeps too, instead of the input.
            The backward pass then divides by the scale: gradients are inexact where a scale is nearly 0.

    Example:
        >>> ApexOptions().memory_efficient
        False
    """

    memory_efficient: bool = False
