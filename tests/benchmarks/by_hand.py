"""The classes of a plan composed by hand: what building a model costs at least."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

__all__ = ["by_hand"]


def by_hand(node: Any) -> Callable[..., Any]:
    """Compose the classes of a plan's node with nothing but `functools.partial`.

    Args:
        node: of a `transom.Plan`.

    Returns:
        its builder, with everything below it bound.
    """
    builder = node.resolution.chosen.load()
    bound: dict[str, Any] = {}
    if hasattr(builder, "Submodules"):
        parts = {name: list(map(by_hand, p)) if isinstance(p, tuple) else by_hand(p) for name, p in node.parts.items()}
        bound["submodules"] = builder.Submodules(**parts)
    if "request" in inspect.signature(builder).parameters:
        bound["request"] = node.request
    return partial(builder, **bound)
