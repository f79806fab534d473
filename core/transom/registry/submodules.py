"""Whether an implementation that says what is inside it can receive the builders of that."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any

__all__ = ["declared_parts", "submodules_complaints", "unreceived"]


def submodules_complaints(builder: Any) -> Iterator[str]:
    """Yield what is wrong with a builder's ``Submodules``, to be read after "the builder".

    Args:
        builder: an implementation; one without ``parts`` needs no ``Submodules``.
    """
    has_parts, declared = hasattr(builder, "parts"), getattr(builder, "Submodules", None)
    if declared is None:
        if has_parts:
            yield "has `parts` but no dataclass `Submodules` to receive them"
        return
    if not (isinstance(declared, type) and dataclasses.is_dataclass(declared)):
        yield "has `Submodules` that is no dataclass"
        return
    required = [
        field.name
        for field in dataclasses.fields(declared)
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    if not has_parts and required:
        yield f"has `Submodules` that require {', '.join(required)}, but no `parts` that asks for them"


def declared_parts(builder: Any, request: Any, options: Any = None) -> Mapping[str, Any]:
    """Ask a builder what is inside what it makes.

    Args:
        builder: an implementation; one without ``parts`` has nothing inside.
        request: what it must serve.
        options: its own, `None` = none are given; handed to a ``parts`` that takes ``options``.

    Returns:
        parts by name.

    Example:
        >>> class Stack:
        ...     @classmethod
        ...     def parts(cls, request, options=None):
        ...         return {"layers": [request] * (options or 2)}
        >>> declared_parts(Stack, "layer", 3)
        {'layers': ['layer', 'layer', 'layer']}
    """
    declare = getattr(builder, "parts", None)
    if declare is None:
        return {}
    takes_options = _takes_options(getattr(declare, "__func__", declare))
    found: Mapping[str, Any] = declare(request, options=options) if takes_options else declare(request)
    return found


@lru_cache(maxsize=256)
def _takes_options(declare: Callable[..., Any]) -> bool:
    return "options" in inspect.signature(declare).parameters


def unreceived(builder: Any, names: Iterable[str]) -> tuple[str, ...]:
    """Return those of its parts for which a builder's ``Submodules`` have no field.

    Args:
        builder: without complaints.
        names: of its parts.

    Example:
        >>> from transom.transformer.mlp import MLP
        >>> unreceived(MLP, ["linear_fc1", "linear_fc3"])
        ('linear_fc3',)
    """
    known = _fields(builder.Submodules)
    return tuple([name for name in names if name not in known])


@lru_cache(maxsize=256)
def _fields(declared: type) -> frozenset[str]:
    return frozenset(field.name for field in dataclasses.fields(declared))
