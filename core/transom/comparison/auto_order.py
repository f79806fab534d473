"""Write a measured order into the user's config, as what `auto` stands for."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import tomlkit

from transom.checkpoint.atomic import output_error, write_file
from transom.errors import OutputError
from transom.registry.names import parse_chain
from transom.registry.user_config import UserConfig, config_file, user_config
from transom.slots import SLOT_ALIASES

__all__ = ["Written", "auto_order_file", "write_auto_order"]


class Written(NamedTuple):
    """What became of an order.

    Args:
        path: of the file.
        before: the order that the slot had; empty = none.
        shadowed: slots that the name stands for and that have orders of their own, which win over this one.
    """

    path: Path
    before: tuple[str, ...]
    shadowed: Mapping[str, tuple[str, ...]]


def auto_order_file() -> Path:
    """Give the file that an order would be written to; to be asked before minutes go into measuring one.

    Raises:
        OutputError: it is no file, a device say.
        UserConfigError: it is wrong.
    """
    path = config_file()
    if path.exists() and not path.is_file():
        raise OutputError(
            f"{path} is no file that an order could be written to.", hint="let TRANSOM_CONFIG name a file", path=path
        )
    if path.exists():
        user_config()
    return path


def write_auto_order(slot: str, names: Sequence[str]) -> Written:
    """Make names what ``auto`` stands for in a slot; everything else in the file stays as it is, comments too.

    Where the file is a link, what it points to is written. An order that is there already is not written again.

    Args:
        slot: the slot, or a name of several: ``linear``.
        names: in order, the first that can serve is chosen.

    Raises:
        UserConfigError: the file is wrong already; it is left alone.
        OutputError: it cannot be written, or is no file; it is as it was.
    """
    path = auto_order_file()
    document = tomlkit.parse(path.read_bytes().decode()) if path.exists() else tomlkit.document()
    orders: dict[str, str | tuple[str, ...]] = {
        name: parse_chain(asked) for name, asked in document.unwrap().get("auto", {}).items()
    }
    if orders.get(slot) != tuple(names):
        if "auto" not in document:
            document["auto"] = tomlkit.table()
        document["auto"][slot] = list(names)
        _write(Path(os.path.realpath(path)), tomlkit.dumps(document).encode())
    shadowed = {each: parse_chain(orders[each]) for each in SLOT_ALIASES.get(slot, ()) if each in orders}
    before = UserConfig(auto=orders).order(slot)
    return Written(path, before, shadowed)


def _write(path: Path, text: bytes) -> None:
    """Replace a file, with the permissions that it had."""
    mode = stat.S_IMODE(path.stat().st_mode) if path.exists() else None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise output_error(path, error) from error
    write_file(path, text)
    if mode is not None:
        path.chmod(mode)
