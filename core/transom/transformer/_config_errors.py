"""The errors of a config, all in one form: the field, its value, and what would be right."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any, NoReturn

from transom.errors import ConfigError

__all__ = ["not_data", "refuse", "unknown_field"]


def refuse(field: str, value: Any, right: str, *, available: Sequence[Any] = (), inside: str = "config") -> NoReturn:
    """Raise the error of one field.

    Args:
        field: its name.
        value: what it was given.
        right: a clause that says what would be right.
        available: the values that there are, where they can be listed.
        inside: path of what has the field.

    Raises:
        ConfigError: always.
    """
    names = [str(choice) for choice in available]
    near = difflib.get_close_matches(str(value), names, n=1)
    raise ConfigError(
        f"{field} is {value!r}; {right}.",
        available=names,
        hint=f"{near[0]}?" if near else None,
        field=field,
        value=value,
        path=f"{inside}.{field}",
        file=None,
        line=None,
    )


def unknown_field(name: str, known: Sequence[str], *, inside: str = "config") -> ConfigError:
    """Make the error of a field that does not exist."""
    near = difflib.get_close_matches(name, known, n=1)
    return ConfigError(
        f"{inside} has no field {name!r}.",
        available=known,
        hint=f"{near[0]}?" if near else None,
        field=name,
        value=None,
        path=f"{inside}.{name}",
        file=None,
        line=None,
    )


def not_data(name: str, value: Any) -> ConfigError:
    """Make the error of a field that is set to something that a file cannot hold."""
    return ConfigError(
        f"{name} is a function, which cannot be written down.",
        hint="set init_method_std instead",
        field=name,
        value=value,
        path=f"config.{name}",
        file=None,
        line=None,
    )
