"""Write a measured order into the user's config, as what `auto` stands for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import tomlkit

from transom.checkpoint.atomic import write_file
from transom.registry.user_config import config_file, user_config

__all__ = ["write_auto_order"]


def write_auto_order(slot: str, names: Sequence[str]) -> tuple[Path, tuple[str, ...]]:
    """Make names what ``auto`` stands for in a slot; everything else in the file stays as it is, comments too.

    Args:
        slot: the slot, or a name of several: ``linear``.
        names: in order, the first that can serve is chosen.

    Returns:
        the file, and the order that it had before; empty = none.

    Raises:
        UserConfigError: the file is wrong already; it is left alone.
        OutputError: it cannot be written; it is as it was.
    """
    path = config_file()
    before = user_config().order(slot) if path.exists() else ()
    document = tomlkit.parse(path.read_text(encoding="utf-8")) if path.exists() else tomlkit.document()
    if "auto" not in document:
        document["auto"] = tomlkit.table()
    document["auto"][slot] = list(names)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, tomlkit.dumps(document).encode())
    return path, before
