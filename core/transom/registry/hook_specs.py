"""What a hook may do: the five functions that a plugin can implement, and the mark that says that it does."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

import pluggy

if TYPE_CHECKING:
    import click
    from torch import nn

    from transom.registry.resolve import Resolution
    from transom.specs.plan import Plan
    from transom.specs.spec import ModelSpec

__all__ = ["HookSpecs", "hookimpl"]

PROJECT = "transom"
_MARK_IMPLEMENTATION = pluggy.HookimplMarker(PROJECT)
_MARK_SPECIFICATION = pluggy.HookspecMarker(PROJECT)

F = TypeVar("F", bound=Callable[..., Any])


def hookimpl(function: F) -> F:
    """Mark a function as what a hook does at the moment that its name says.

    It may leave out arguments that it does not need.

    Args:
        function: one of those in `HookSpecs`, by name.

    Returns:
        the same function.

    Example:
        >>> class Profile:
        ...     @hookimpl
        ...     def transom_module_built(self, module, path):
        ...         module.profiled_as = path
    """
    return _MARK_IMPLEMENTATION(function)


class HookSpecs:
    """The moments at which hooks are called, each with what it is given and what it may answer."""

    @_MARK_SPECIFICATION
    def transom_modify_spec(self, spec: ModelSpec) -> ModelSpec | None:
        """Answer another spec in place of one that is about to be planned; `None` = leave it.

        The answer goes to the next hook. It may not name other hooks or bundles.
        """

    @_MARK_SPECIFICATION
    def transom_after_resolve(self, plan: Plan) -> None:
        """Look at a plan that was made; raise to refuse it."""

    @_MARK_SPECIFICATION
    def transom_module_built(self, module: nn.Module, path: str, resolution: Resolution) -> nn.Module | None:
        """Answer a replacement for a module that was built, which its parent gets instead; `None` = leave it.

        Inner modules come before those that hold them. The replacement must have the methods of the slot's interface
        and be callable as its callers do. The answer goes to the next hook.

        Args:
            module: as it was built, or as the hook before left it.
            path: of the module in the model; empty for the model itself. A module that serves several places comes
                once, with the path of the first.
            resolution: who built it, and why.
        """

    @_MARK_SPECIFICATION
    def transom_cli_commands(self) -> Iterable[click.Command]:
        """Give verbs for the command line; asked only of hooks that the user's config names."""
        return ()

    @_MARK_SPECIFICATION
    def transom_doctor(self) -> Iterable[str]:
        """Say what is wrong, a sentence each; asked by ``transom doctor`` of hooks that the user's config names."""
        return ()
