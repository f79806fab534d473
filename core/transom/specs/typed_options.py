"""Options as somebody wrote them to the options that a plugin declares: validated, with the path of what is wrong."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from transom.errors import PluginImportError, SpecError
from transom.specs.convert import convert
from transom.specs.read import Lines

__all__ = ["Written", "typed_options"]


@dataclass(frozen=True)
class Written:
    """Options as somebody wrote them.

    Args:
        data: by name.
        path: of them within the source.
        asked_by: who wrote them, for messages.
        source: the file, or what stands for one.
        lines: line of each option, by its path below `path`, as far as known.
    """

    data: Mapping[str, Any]
    path: str
    asked_by: str
    source: str
    lines: Lines = field(default_factory=dict)

    def at(self, path: tuple[str | int, ...], lines: Mapping[tuple[str | int, ...], int]) -> Written:
        """Return them with their lines.

        Args:
            path: of them within the source.
            lines: line of each value of the source, by its path.
        """
        depth = len(path)
        found = {key[depth:]: line for key, line in lines.items() if key[:depth] == path}
        return dataclasses.replace(self, lines=found)


def typed_options(
    declared: Any,
    written: Written,
    subject: str,
    *,
    slot: str,
    name: str,
    hint: str | None = None,
) -> Any:
    """Make a plugin's own options of plain data.

    Args:
        declared: the plugin's ``Options``, a dataclass or a `msgspec.Struct`; `None` = it takes none.
        written: the data.
        subject: whose options they are, for messages.
        slot: likewise, for an error that is the plugin's.
        name: likewise.
        hint: what to do where it takes none, if there is more to say than to remove the entry.

    Returns:
        an instance of ``declared``.

    Raises:
        SpecError: it takes none; or one is unknown, missing or wrong, with its path.
        PluginImportError: the class cannot be made of data.
    """
    if declared is None:
        raise SpecError(
            f"{subject} takes no options.",
            asked_by=written.asked_by,
            hint=hint or "remove the entry, or name one that does",
            path=written.path,
            file=written.source,
            line=written.lines.get(()),
        )
    try:
        if not (dataclasses.is_dataclass(declared) or issubclass(declared, msgspec.Struct)):
            raise TypeError(f"{declared.__name__} is neither a dataclass nor a msgspec.Struct")
        return convert(dict(written.data), declared, source=written.source, lines=written.lines, under=written.path)
    except SpecError as error:
        what = f"options of {subject}: {error.what}"
        asked_by = error.asked_by if error.data.get("line") else written.asked_by
        raise SpecError(what, asked_by=asked_by, available=error.available, hint=error.hint, **error.data) from error
    except TypeError as error:  # a class that msgspec cannot make of data
        raise PluginImportError(
            f"the options of {subject} cannot be read: {error}.",
            asked_by=written.asked_by,
            hint="report it to its authors",
            slot=slot,
            name=name,
            reason=str(error),
            traceback=None,
        ) from error
