"""Whether Transformer Engine can be imported; that it is installed, cards say.

It comes as three distributions: without the compiled two, the first is an empty package whose import fails.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transom.slots.request import BuildContext

__all__ = ["import_failure", "missing"]


def missing(context: BuildContext) -> Iterator[str]:
    """Say what keeps Transformer Engine from being used; it is imported only for a CUDA device.

    Args:
        context: for what a model is built.
    """
    failure = import_failure() if context.device == "cuda" else None
    if failure is not None:
        yield (
            f"transformer_engine.pytorch cannot be imported: {failure}; install it anew for the torch and the CUDA "
            f"that are here"
        )


@cache
def import_failure() -> str | None:
    """Import ``transformer_engine.pytorch``, and say what that raised.

    Example:
        >>> import_failure() is None or ": " in import_failure()
        True
    """
    try:
        with warnings.catch_warnings():  # of what is the package's own, which are errors to some callers
            warnings.simplefilter("ignore")
            import_module("transformer_engine.pytorch")
    except Exception as error:  # an empty package raises RuntimeError, one for another torch ImportError or OSError
        return f"{type(error).__name__}: {error}"
    return None
