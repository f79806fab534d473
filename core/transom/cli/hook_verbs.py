"""Verbs that hooks add to the command line; only hooks that the user's config names are asked."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import click

from transom.errors import TransomError
from transom.registry.policy import Policy
from transom.registry.registry import default_registry
from transom.registry.user_config import user_config

if TYPE_CHECKING:
    from transom.registry.hooks import LiveHook

__all__ = ["HookVerbs", "hook_verbs"]

_MOMENT = "transom_cli_commands"


@dataclass
class HookVerbs:
    """What hooks add.

    Args:
        commands: by name.
        problems: what kept a hook from adding its own, one line each.
    """

    commands: dict[str, click.Command] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def hook_verbs(taken: Collection[str]) -> HookVerbs:
    """Ask the hooks that the user's config names; one that fails costs its own verbs, not the others'.

    Args:
        taken: names that core's verbs have.
    """
    verbs = HookVerbs()
    try:
        named = user_config().hooks
    except TransomError as error:
        verbs.problems.append(str(error))
        return verbs
    if not named:
        return verbs
    from transom.registry.hooks import user_hooks
    from transom.specs.hooking import with_options

    try:
        hooks = user_hooks(default_registry(), Policy.current())
    except TransomError as error:
        verbs.problems.append(str(error))
        return verbs
    for hook in hooks:
        try:
            _add(with_options([hook])[0].load(), verbs, taken)
        except Exception as error:  # whatever the hook raises
            notes = "".join(f" ({note})" for note in getattr(error, "__notes__", ()))
            verbs.problems.append(f"{type(error).__name__}: {error}{notes}")
    return verbs


def _add(hook: LiveHook, verbs: HookVerbs, taken: Collection[str]) -> None:
    commands = list(hook.call(_MOMENT) or ())
    for command in commands:
        _check(command, hook, (*taken, *verbs.commands))
    verbs.commands.update({command.name: command for command in commands})


def _check(command: Any, hook: LiveHook, taken: Collection[str]) -> None:
    if not isinstance(command, click.Command) or not command.name:
        raise hook.error(_MOMENT, f"answered a {type(command).__name__}, not a click.Command with a name")
    if command.name in taken:
        raise hook.error(_MOMENT, f"answered a verb {command.name!r}, which there is already")
