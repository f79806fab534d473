"""Facts as lines of text, each behind its label."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

__all__ = ["glossary", "labelled", "option_lines"]

_LABEL = 16


def labelled(rows: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Yield lines; what a text has beyond its first line stands below that.

    Args:
        rows: labels and texts.

    Example:
        >>> list(labelled([("dtypes", "any")]))
        ['  dtypes          any']
    """
    for label, text in rows:
        first, *others = text.splitlines() or [""]
        yield f"  {label:<{_LABEL}}{first}".rstrip()
        yield from textwrap.indent("\n".join(others), " " * (_LABEL + 2)).splitlines()


def glossary(names: Iterable[str], meanings: Mapping[str, str]) -> str:
    """Write names with their meanings, one a line.

    Args:
        names: to write.
        meanings: of these and of others.

    Example:
        >>> glossary(["causal"], {"causal": "no later key", "window": "none far away"})
        'causal  no later key'
    """
    width = max(map(len, meanings), default=0)
    return "\n".join(f"{name:<{width}}  {meanings.get(name, 'not known to this slot')}" for name in names)


def option_lines(schema: dict[str, Any]) -> str:
    """Write options, one a line.

    Args:
        schema: their JSON Schema; one that only refers to a class says how to see more.
    """
    lines = [f"{schema['$ref']}; --import lists them"] if "$ref" in schema else []
    for name, field in schema.get("properties", {}).items():
        kind = field.get("type") or " or ".join(str(each.get("type", "?")) for each in field.get("anyOf", ())) or "any"
        needed = "required" if name in schema.get("required", ()) else "may be left out"
        default = f"default {json.dumps(field['default'])}" if "default" in field else needed
        meaning = f": {field['description']}" if "description" in field else ""
        lines.append(f"{name}, {kind}, {default}{meaning}")
    return "\n".join(lines)
