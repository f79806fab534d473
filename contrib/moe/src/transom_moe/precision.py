"""What `torch.autocast` has to say, also of devices that it does not know."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

__all__ = ["compute_dtype", "full_precision"]


def compute_dtype(x: Tensor) -> torch.dtype:
    """Give the dtype that `torch.nn.functional.linear` would compute in.

    Example:
        >>> with torch.autocast("cpu", torch.bfloat16):
        ...     compute_dtype(torch.ones(1))
        torch.bfloat16
    """
    return torch.get_autocast_dtype(x.device.type) if _is_on(x) else x.dtype


def full_precision(x: Tensor) -> AbstractContextManager[None]:
    """Leave dtypes as they are, inside, where ``x`` is."""
    return torch.autocast(x.device.type, enabled=False) if _is_on(x) else nullcontext()


def _is_on(x: Tensor) -> bool:
    return not x.is_meta and torch.is_autocast_enabled(x.device.type)
