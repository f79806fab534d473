"""Specs of single modules, written in Python: a module, its arguments, and who fills the places inside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["ModuleSpec"]


@dataclass(frozen=True)
class ModuleSpec:
    """A module to be built, and what goes into it. Building never changes it.

    Args:
        module: a class, a builder function, a partial, or the name of an installed implementation.
        params: keyword arguments for it, beside those that its place receives.
        submodules: who fills its places: the module's own submodules dataclass, each field a `ModuleSpec`, a class, a
            builder function, a partial, a name (or a chain ``a | b``), or `None` for the place's default.

    Example:
        >>> from transom.transformer.attention import SelfAttention, SelfAttentionSubmodules
        >>> spec = ModuleSpec(
        ...     SelfAttention,
        ...     submodules=SelfAttentionSubmodules(
        ...         linear_qkv="torch_linear", core_attention="torch_dot_product | dot_product", linear_proj=None
        ...     ),
        ... )
        >>> spec.submodules.linear_qkv
        'torch_linear'
    """

    module: Callable[..., Any] | str
    params: Mapping[str, Any] = field(default_factory=dict)
    submodules: Any = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "params", dict(self.params))
