"""What `transom show` tells of hooks and bundles, which a spec names rather than fills a slot with."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from transom.cli.describe import describe_options, own_documentation
from transom.cli.labelled import labelled, option_lines

if TYPE_CHECKING:
    from transom.registry.registry import Registry

__all__ = ["NAMED", "describe_named", "render_named"]

NAMED = ("hooks", "bundles")
"""What stands before the name of one, as in ``hooks/lora``."""

_ASKED_BY = "transom show"


def describe_named(kind: str, ref: str, registry: Registry, *, with_import: bool) -> dict[str, Any]:
    """Give everything that is known about a hook or a bundle as plain data.

    Args:
        kind: one of `NAMED`.
        ref: its name, bare or as ``distribution/name``.
        registry: what is installed.
        with_import: import a hook too, and say when it is called and which options it has; a bundle is data.

    Raises:
        HookError, SpecError: there is none of this name, or a bundle cannot be read.
        AmbiguousNameError: several distributions have it.
        PluginImportError: a hook cannot be imported.
    """
    facts = _hook(ref, registry, with_import) if kind == "hooks" else _bundle(ref, registry)
    return {"kind": kind, **facts}


def _hook(ref: str, registry: Registry, with_import: bool) -> dict[str, Any]:
    from transom.registry.hook_specs import HookSpecs
    from transom.registry.hooks import find_hook
    from transom.registry.policy import Policy

    hook = find_hook(ref, registry, Policy(), asked_by=_ASKED_BY)
    facts: dict[str, Any] = {"name": hook.name, "ref": hook.ref, "distribution": hook.distribution}
    facts |= {"version": hook.version, "entry_point": hook.value}
    if with_import:
        found = hook.imported()
        facts["moments"] = [name for name in vars(HookSpecs) if name[0] != "_" and hasattr(found, name)]
        facts["options"] = describe_options(found)
        facts["documentation"] = own_documentation(found)
    return facts


def _bundle(ref: str, registry: Registry) -> dict[str, Any]:
    import msgspec

    from transom.registry.policy import Policy
    from transom.specs.bundle import load_bundles

    (bundle,) = load_bundles(ref, registry, Policy(), asked_by=_ASKED_BY)
    facts = {"name": bundle.name, "ref": f"{bundle.distribution}/{bundle.name}", "distribution": bundle.distribution}
    return facts | {"version": bundle.version, "says": msgspec.to_builtins(bundle.data)}


def render_named(facts: dict[str, Any]) -> str:
    """Write what `describe_named` gives for people."""
    head = click.style(facts["name"], bold=True) + f", a {facts['kind'].removesuffix('s')}"
    return "\n".join([head, *labelled(_rows(facts))])


def _rows(facts: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield "distribution", f"{facts['distribution']} {facts['version']}"
    yield "name it as", f"{facts['kind']}: [{facts['ref']}]" if facts["kind"] == "hooks" else f"bundle: {facts['ref']}"
    if facts["kind"] == "bundles":
        yield from _said(facts["says"])
        return
    yield "entry point", facts["entry_point"]
    if "moments" not in facts:
        yield "called", "--import says when, and with which options"
        return
    yield "called", "\n".join(facts["moments"])
    yield "options", option_lines(facts["options"] or {}) or "none"
    yield "documentation", facts["documentation"] or "none"


def _said(bundle: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield what a bundle says, as a spec would."""
    if bundle["description"]:
        yield "description", bundle["description"]
    for field in ("use", "options"):
        lines = (
            f"{key}: {value if isinstance(value, str) else json.dumps(value)}" for key, value in bundle[field].items()
        )
        yield field, "\n".join(lines) or "none"
    yield "hooks", "\n".join(each if isinstance(each, str) else json.dumps(each) for each in bundle["hooks"]) or "none"
