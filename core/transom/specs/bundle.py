"""Bundles: presets of `use`, `options` and `hooks` that plugins publish as data.

A distribution names its bundles in the entry-point group ``transom.bundles``, each as ``package:stem``; the data is
``stem.toml`` beside the package's ``__init__``, where its card is too. Reading one imports nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec

from transom.errors import AmbiguousNameError, PolicyError, SpecError
from transom.registry.card import find_beside
from transom.registry.hook_use import HookUse
from transom.registry.names import near, normalise, split_reference
from transom.registry.policy import Policy
from transom.registry.registry import Registry
from transom.registry.scan import Entry
from transom.specs.convert import convert
from transom.specs.read import read_text

__all__ = ["GROUP", "Bundle", "BundleData", "load_bundles"]

GROUP = "transom.bundles"


class BundleData(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a bundle's file says.

    Args:
        bundle: version of this format.
        description: one line for people.
        use: who fills each slot, as in a spec.
        options: options of implementations, as in a spec.
        hooks: hooks that run, before those of the spec.
    """

    bundle: Literal[1]
    description: str = ""
    use: dict[str, str | list[str]] = {}
    options: dict[str, dict[str, Any]] = {}
    hooks: list[str | HookUse] = []


@dataclass(frozen=True)
class Bundle:
    """A bundle and who publishes it."""

    name: str
    distribution: str
    version: str
    data: BundleData

    @property
    def label(self) -> str:
        """What messages and plans call it."""
        return f"bundle {self.name} ({self.distribution} {self.version})"


def load_bundles(
    names: str | Sequence[str], registry: Registry, policy: Policy, *, asked_by: str
) -> tuple[Bundle, ...]:
    """Read the bundles that a spec names.

    Args:
        names: one name or several, bare or as ``distribution/name``.
        registry: what is installed.
        policy: which distributions may be drawn on.
        asked_by: the spec, for errors.

    Returns:
        the bundles in the order of their names; nothing was imported.

    Raises:
        SpecError: no such bundle, or its file is missing or wrong.
        AmbiguousNameError: several distributions publish the bare name.
        PolicyError: the policy forbids the distribution.
    """
    listed = [names] if isinstance(names, str) else list(names)
    for name in listed:
        if listed.count(name) > 1:
            raise _error(f"bundle {name!r} is named twice.", asked_by)
    return tuple(_load(_entry(name, registry, asked_by), policy, asked_by) for name in listed)


def _entry(ref: str, registry: Registry, asked_by: str) -> Entry:
    distribution, name = split_reference(ref)
    distribution = None if distribution is None else normalise(distribution)
    published = registry.index.group(GROUP)
    found = [
        entry for entry in published if entry.name == name and distribution in (None, normalise(entry.distribution))
    ]
    if not found:
        guesses = near(name, [entry.name for entry in published])
        hint = f"{guesses[0]}?" if guesses else "install the distribution that publishes it, or remove the entry"
        available = [f"{entry.name} ({entry.distribution} {entry.version})" for entry in published]
        raise _error(f"no bundle is named {ref!r}.", asked_by, available=available or ["none is installed"], hint=hint)
    if len(found) > 1:
        spellings = tuple(f"{entry.distribution}/{entry.name}" for entry in found)
        raise AmbiguousNameError(
            f"{len(found)} distributions publish a bundle {name!r}.",
            asked_by=asked_by,
            available=spellings,
            hint=f"write which: bundle: {spellings[0]}",
            slot="bundles",
            name=name,
            candidates=spellings,
        )
    return found[0]


def _load(entry: Entry, policy: Policy, asked_by: str) -> Bundle:
    refusal = policy.refusal(entry.distribution)
    if refusal is not None:
        raise PolicyError(
            f"bundle {entry.name!r} of {entry.distribution} may not be used: {refusal}.",
            asked_by=asked_by,
            distribution=entry.distribution,
        )
    path = _file(entry, asked_by)
    source = f"{path.name} of {entry.distribution}"
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise _error(f"bundle {entry.name!r} cannot be read: {reason}.", asked_by, file=str(path)) from error
    data, lines = read_text(text, "toml", file=source)
    return Bundle(entry.name, entry.distribution, entry.version, convert(data, BundleData, source=source, lines=lines))


def _file(entry: Entry, asked_by: str) -> Path:
    package, _, stem = (part.strip() for part in entry.value.partition(":"))
    name = f"{stem.replace('.', '/')}.toml"
    path = find_beside(package, name)
    if path is None:
        raise _error(
            f"bundle {entry.name!r} of {entry.distribution} has no file {name} in package {package.split('.')[0]}.",
            asked_by,
            hint=f"reinstall {entry.distribution}, or report it to its authors",
        )
    return path


def _error(
    what: str, asked_by: str, *, available: Sequence[str] = (), hint: str | None = None, file: str | None = None
) -> SpecError:
    return SpecError(what, asked_by=asked_by, available=available, hint=hint, path="bundle", file=file, line=None)
