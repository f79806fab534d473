"""How a hook is named: alone, or with options of its own. Data only."""

from __future__ import annotations

from typing import Any

import msgspec

__all__ = ["HookUse"]


class HookUse(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A hook that is named with options.

    Args:
        hook: its name, bare or as ``distribution/name``.
        options: the hook's own, by name.

    Example:
        >>> HookUse.of("lora")
        HookUse(hook='lora', options={})
    """

    hook: str
    options: dict[str, Any] = {}

    @classmethod
    def of(cls, entry: str | HookUse) -> HookUse:
        """Give an entry of a list of hooks in this form."""
        return entry if isinstance(entry, HookUse) else cls(hook=entry)
