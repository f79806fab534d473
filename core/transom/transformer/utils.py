"""What several modules of the reference transformer need of torch."""

from __future__ import annotations

from typing import get_args

import torch

from transom.errors import ConfigError
from transom.transformer.enums import DtypeName

__all__ = ["torch_dtype"]


def torch_dtype(name: str) -> torch.dtype:
    """Return the dtype that a config's name stands for.

    Raises:
        ConfigError: no parameter can have a dtype of this name.

    Example:
        >>> torch_dtype("bfloat16")
        torch.bfloat16
    """
    known = get_args(DtypeName)
    if name not in known:
        raise ConfigError(
            f"params_dtype is {name!r}; a floating dtype is needed.",
            available=known,
            field="params_dtype",
            value=name,
            path="config.params_dtype",
            file=None,
            line=None,
        )
    dtype: torch.dtype = getattr(torch, name)
    return dtype
