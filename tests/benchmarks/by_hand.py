"""The classes of a plan composed by hand: what building a model costs at least."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable
from functools import partial
from typing import Any

from transom.slots import SLOTS

__all__ = ["by_hand"]


def by_hand(node: Any, shared: dict[Hashable, Any]) -> Callable[..., Any]:
    """Compose the classes of a plan's node with nothing but `functools.partial`.

    Args:
        node: of a `transom.Plan`.
        shared: modules of shared slots that were already made, which a model has once; empty for each model.

    Returns:
        its builder, with everything below it bound.
    """
    builder = node.resolution.chosen.load()
    bound: dict[str, Any] = {}
    if hasattr(builder, "Submodules"):
        bound["submodules"] = builder.Submodules(**{name: _part(part, shared) for name, part in node.parts.items()})
    if "request" in inspect.signature(builder).parameters:
        bound["request"] = node.request
    made = partial(builder, **bound)
    if not SLOTS[node.slot].shared:
        return made
    key = (node.slot, node.resolution.chosen.ref, node.request)
    return lambda *args, **kwargs: shared[key] if key in shared else shared.setdefault(key, made(*args, **kwargs))


def _part(part: Any, shared: dict[Hashable, Any]) -> Any:
    return [by_hand(each, shared) for each in part] if isinstance(part, tuple) else by_hand(part, shared)
