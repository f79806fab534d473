"""A plugin's first package: complete, correct and tested, so that an author only has to replace the mathematics."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path

from transom.authoring.plugin_files import STARTING_POINTS, PluginFiles
from transom.checkpoint.atomic import new_folder
from transom.errors import InputError, OutputError, UnknownSlotError
from transom.registry.names import near, normalise
from transom.registry.registry import list_implementations
from transom.slots import SLOT_ALIASES

__all__ = ["NewPlugin", "new_plugin"]

_DISTRIBUTION = re.compile(r"[a-z][a-z0-9]*(?:[-_.][a-z0-9]+)*", re.ASCII | re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class NewPlugin:
    """A package that was written.

    Args:
        folder: where it lies.
        distribution: its name for pip.
        name: its implementation's name in specs.
        slots: those that it fills.
        files: paths below the folder.
    """

    folder: Path
    distribution: str
    name: str
    slots: tuple[str, ...]
    files: tuple[Path, ...]


def new_plugin(distribution: str, slot: str, *, folder: Path | None = None, author: str | None = None) -> NewPlugin:
    """Write a plugin that works: metadata, card, an implementation, its tests, a README, CI and a licence.

    Args:
        distribution: the package's name, as pip will know it: ``acme-attention``. The implementation has the same name
            with underscores.
        slot: what it fills: one of core's slots, or ``linear`` for both linear slots.
        folder: where to write it; must not exist. `None` = one of the package's name, here.
        author: for metadata and licence; `None` = "The acme-attention authors".

    Returns:
        what was written.

    Raises:
        InputError: the name is none for a package, or an installed package or implementation has it.
        UnknownSlotError: there is no such slot, or none that one can begin with.
        OutputError: the folder exists or cannot be written; nothing of it remains.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     made = new_plugin("acme-norm", "norm", folder=Path(folder) / "acme-norm")
        ...     (made.folder / "src" / "acme_norm" / "norm.py").exists()
        True
    """
    slots = SLOT_ALIASES.get(slot, (slot,))
    _check_slot(slot, slots)
    _check_name(distribution)
    name = normalise(distribution)
    plugin = PluginFiles(distribution=name, asked=slot, slots=slots, author=author or f"The {name} authors")
    _check_free(plugin)
    target = Path(name) if folder is None else folder
    if not target.parent.is_dir():
        raise OutputError(f"there is no folder {target.parent}.", hint="make it first, or write elsewhere", path=target)
    texts = plugin.texts()
    with new_folder(target) as partial:
        for path, text in texts.items():
            (partial / path).parent.mkdir(parents=True, exist_ok=True)
            (partial / path).write_text(text, encoding="utf-8")
    return NewPlugin(folder=target, distribution=name, name=plugin.package, slots=slots, files=tuple(texts))


def _check_slot(asked: str, slots: tuple[str, ...]) -> None:
    known = [*STARTING_POINTS, *SLOT_ALIASES]
    if all(slot in STARTING_POINTS for slot in slots):
        return
    guesses = near(asked, known)
    raise UnknownSlotError(
        f"there is nothing to begin with for a slot named {asked!r}.",
        asked_by="transom new --slot",
        available=sorted(known),
        hint=f"{guesses[0]}?" if guesses else "a third party's slot is described by its own package",
        slot=asked,
        guesses=guesses,
    )


def _check_name(distribution: str) -> None:
    if not _DISTRIBUTION.fullmatch(distribution):
        raise InputError(
            f"{distribution!r} is no name for a package.",
            asked_by="transom new NAME",
            hint="letters, digits and single hyphens, a letter first: acme-attention",
            name=distribution,
        )


def _check_free(plugin: PluginFiles) -> None:
    taken = [
        f"{each.slot} {each.label}"
        for each in list_implementations()
        if each.slot in plugin.slots and each.name == plugin.package
    ]
    if not taken and importlib.util.find_spec(plugin.package) is not None:
        taken = [f"the Python package {plugin.package}"]
    if taken:
        raise InputError(
            f"{plugin.distribution!r} is taken here: {taken[0]} is installed.",
            asked_by="transom new NAME",
            hint=f"a name of your own, such as my-{plugin.distribution}",
            name=plugin.distribution,
            taken=tuple(taken),
        )
