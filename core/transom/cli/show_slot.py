"""What `transom show` tells of a slot: its contract, as the documentation's page on it has it."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from transom.cli.describe import describe_slot
from transom.cli.labelled import glossary, labelled
from transom.slots import SLOT_ALIASES, SLOTS

if TYPE_CHECKING:
    from transom.registry.registry import Registry

__all__ = ["describe_contract", "render_contract", "slots_named"]


def slots_named(ref: str, registry: Registry) -> tuple[str, ...]:
    """Give the slots that a reference stands for: ``slots/norm``, ``norm`` or ``linear``.

    Args:
        ref: as a user wrote it.
        registry: knows the slots of plugins too.

    Returns:
        names; none where the reference stands for no slot.

    Example:
        >>> from transom.registry.registry import default_registry
        >>> slots_named("slots/linear", default_registry())
        ('column_linear', 'row_linear')
    """
    name = ref.removeprefix("slots/")
    return tuple(slot for slot in SLOT_ALIASES.get(name, (name,)) if slot in registry.slots)


def describe_contract(name: str, registry: Registry, *, with_import: bool) -> dict[str, Any]:
    """Give a slot's contract as plain data.

    Args:
        name: of the slot.
        registry: what is installed.
        with_import: import a slot that a plugin defines; of such a one only the name is known before.

    Returns:
        what is known without imports, and, of what is registered, made and asked for: ``name``, ``module``,
        ``documentation`` and ``methods`` (signature and documentation by name).

    Raises:
        PluginImportError: a plugin's slot cannot be imported.
    """
    slot = registry.slot(name) if with_import or name in SLOTS else None
    facts = describe_slot(name, slot) | {"group": f"transom.{name}"}
    if slot is None:
        return facts
    interfaces = [_described(each) for each in slot.interfaces]
    request = _described(slot.request) | {"signature": _signature(slot.request)}
    return facts | {"builder": _described(slot.builder), "interfaces": interfaces, "request": request}


def _described(documented: type) -> dict[str, Any]:
    """Describe a Protocol or a request by its public methods; `__call__` only where nothing else is called."""
    found = {
        name: method
        for base in reversed(documented.__mro__)
        if base.__module__.partition(".")[0] not in ("typing", "builtins")
        for name, method in vars(base).items()
        if inspect.isfunction(method) and not name.startswith("_")
    }
    called = vars(documented).get("__call__")
    methods = found or ({} if called is None else {"__call__": called})
    return {
        "name": documented.__name__,
        "module": documented.__module__,
        "documentation": inspect.cleandoc(documented.__doc__ or ""),
        "methods": {
            name: {"signature": _signature(method), "documentation": inspect.getdoc(method) or ""}
            for name, method in methods.items()
        },
    }


class _Written(str):
    """An annotation as it is written in the source, without quotes around it."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def _signature(documented: Any) -> str:
    """Write a signature as the source has it, without ``self``."""
    found = inspect.signature(documented)
    parameters = [
        each.replace(annotation=_Written(each.annotation)) if isinstance(each.annotation, str) else each
        for each in found.parameters.values()
        if each.name != "self"
    ]
    returned = found.return_annotation
    written = _Written(returned) if isinstance(returned, str) else inspect.Signature.empty
    return str(found.replace(parameters=parameters, return_annotation=written))


def render_contract(facts: dict[str, Any]) -> str:
    """Write what `describe_contract` gives for people."""
    return "\n".join([click.style(facts["name"], bold=True) + ", a slot", *labelled(_rows(facts))])


def _rows(facts: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield "entry points", facts["group"]
    if "kind" not in facts:
        yield "contract", "--import reads it: a plugin defines this slot"
        return
    yield "slot", f"{facts['summary']} ({facts['kind']} slot, contract {facts['api']})"
    yield "default", facts["default"] or "none: where a spec names nobody, there is no such module"
    yield "features", glossary(facts["features"], facts["features"]) or "none"
    yield "registered", _text(facts["builder"])
    for each in facts["interfaces"]:
        yield "made", _text(each)
    yield "asked for", _text(facts["request"])
    yield "more", f"transom list {facts['name']}   transom new NAME --slot {facts['name']}"


def _text(described: dict[str, Any]) -> str:
    """Write a class: where it is, what it is, and how each of its methods is called."""
    lines = [f"{described['name']} in {described['module']}", described["documentation"]]
    if "signature" in described:
        lines += ["", f"{described['name']}{described['signature']}"]
    for name, method in described["methods"].items():
        lines += ["", f"{name}{method['signature']}", *textwrap.indent(method["documentation"], "    ").splitlines()]
    return "\n".join(line.rstrip() for line in lines)
