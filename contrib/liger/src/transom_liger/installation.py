"""Whether Liger Kernel can be loaded, asked before anything is built."""

from __future__ import annotations

import warnings
from functools import cache
from importlib import import_module

__all__ = ["missing"]


@cache
def missing(operator: str) -> str | None:
    """Say why an operator of Liger Kernel cannot be used; `None` when it can.

    Args:
        operator: a module of ``liger_kernel.ops``.

    Example:
        >>> missing("not_there").startswith("Liger Kernel's not_there cannot be loaded: ModuleNotFoundError")
        True
    """
    try:
        with warnings.catch_warnings():  # of what is the package's own, which are errors to some callers
            warnings.simplefilter("ignore")
            import_module(f"liger_kernel.ops.{operator}")
    except Exception as error:  # whatever Triton or a driver may raise
        return f"Liger Kernel's {operator} cannot be loaded: {type(error).__name__}: {error}"
    return None
