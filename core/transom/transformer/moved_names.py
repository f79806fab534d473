"""Parameters of a module that a model's states have under another name: those of a norm that another place took in."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

__all__ = ["move_names", "moved_names"]


def move_names(module: nn.Module, names: Mapping[str, str]) -> None:
    """Say which names states give to parameters that lie elsewhere below a module.

    Args:
        module: around both places.
        names: by the name that a parameter has below the module, the one that states have it under.

    Example:
        >>> layer = nn.Module()
        >>> move_names(layer, {"linear.norm.weight": "layernorm.weight"})
        >>> moved_names(layer)
        {'linear.norm.weight': 'layernorm.weight'}
    """
    module.__dict__["_transom_moved_names"] = dict(names)


def moved_names(module: nn.Module) -> Mapping[str, str]:
    """Return what `move_names` was told of a module; empty where it was told nothing."""
    found: Mapping[str, str] = module.__dict__.get("_transom_moved_names", {})
    return found
