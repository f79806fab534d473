"""What a ``config.json`` says, read field by field; everything that is wrong with it is told at once."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

from transom.errors import CheckpointError

__all__ = ["REQUIRED", "Settings", "read_settings"]

CONFIG = "config.json"
REQUIRED: Any = object()
"""In place of a default: the field must be there."""


@final
class Settings:
    """The fields of a ``config.json``.

    Args:
        values: the fields.
        source: where they were read from, for messages.
        max_sequence_length: the longest text that the caller asks for; `None` = that of the config.
    """

    def __init__(self, values: Mapping[str, Any], source: str, *, max_sequence_length: int | None = None) -> None:
        self.values = dict(values)
        self.source = source
        self.max_sequence_length = max_sequence_length
        self.problems: list[str] = []

    def replace(self, **values: Any) -> Settings:
        """Return settings with other values in some fields; problems are noted in both."""
        other = Settings(self.values | values, self.source, max_sequence_length=self.max_sequence_length)
        other.problems = self.problems
        return other

    def get(self, name: str, default: Any = None) -> Any:
        """Return a field; the default where it is absent or null. Without a default one is missed."""
        value = self.values.get(name)
        if value is not None:
            return value
        if default is REQUIRED:
            self.problems.append(f"{name} is missing")
            return None
        return default

    def translated(self, name: str, names: Mapping[Any, Any], default: Any) -> Any:
        """Return what a field's value is called here."""
        value = self.get(name, default)
        if not _is_hashable(value) or value not in names:
            self.problems.append(f"{name} is {value!r}; there are {', '.join(map(str, names))}")
            return None
        return names[value]

    def must_be(self, name: str, right: Any, default: Any, why: str) -> None:
        """Refuse any other value of a field than the one that can be computed."""
        value = self.get(name, default)
        if value != right:
            self.problems.append(f"{name} is {value!r}: {why}")

    def check(self) -> None:
        """Refuse the file if anything was wrong with it.

        Raises:
            CheckpointError: with everything that was.
        """
        if self.problems:
            raise CheckpointError(
                f"{self.source} describes a model that cannot be computed exactly.",
                failed=self.problems,
                hint="nothing is approximated; another checkpoint",
                problems=tuple(self.problems),
            )


def read_settings(folder: Path, *, max_sequence_length: int | None = None) -> Settings:
    """Read a folder's ``config.json``.

    Args:
        folder: the folder.
        max_sequence_length: as for `Settings`.

    Raises:
        CheckpointError: there is none, or it is not a mapping in JSON.
    """
    path = folder / CONFIG
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        reason = f"no {CONFIG} in {folder}" if not path.exists() else f"cannot read {path}: {error.strerror}"
        hint = "a folder with config.json and weights, as save_pretrained writes it"
        raise CheckpointError(f"{reason}.", hint=hint, folder=folder) from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON: {error}.", folder=folder) from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} holds no mapping.", folder=folder)
    return Settings(values, str(path), max_sequence_length=max_sequence_length)


def _is_hashable(value: Any) -> bool:
    return not isinstance(value, dict | list)
