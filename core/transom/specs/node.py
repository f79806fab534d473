"""One place of a model and who fills it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from transom.registry.resolve import Resolution
from transom.slots import Request

__all__ = ["Node", "Replacement"]


@dataclass(frozen=True)
class Replacement:
    """That a hook put another module in the place of what was built.

    Args:
        hook: the hook's qualified name.
        by: the class of the other module.
    """

    hook: str
    by: str


@dataclass(frozen=True)
class Node:
    """One place of a model and who fills it.

    Args:
        path: of the module in the model; empty for the model itself.
        slot: the slot it belongs to.
        request: what it must serve.
        asked_by: which entry of the spec named the implementation.
        resolution: the chosen implementation, and the verdict of every one tried.
        options: the implementation's own typed options, validated; `None` when it takes none or got none.
        note: what the implementation says of how it will serve; most say nothing.
        parts: the places inside it, by name; a sequence where the place is a list.
        api: version of the slot's contract, (major, minor).
        replacements: what hooks put here when the model was built, in order; a plan that was not built has none.
        within: path of the module that fills this place along with its own; `None` = the place has a module of its own.
    """

    path: str
    slot: str
    request: Request
    asked_by: str
    resolution: Resolution
    options: Any = None
    note: str = ""
    parts: Mapping[str, Node | tuple[Node, ...]] = field(default_factory=dict)
    api: tuple[int, int] = (1, 0)
    replacements: tuple[Replacement, ...] = ()
    within: str | None = None

    def nodes(self) -> Iterator[Node]:
        """This node and all below it, the outer first."""
        waiting = [self]
        while waiting:
            node = waiting.pop()
            yield node
            if node.parts:
                waiting += reversed(list(node.children()))

    def children(self) -> Iterator[Node]:
        """The nodes directly below this one."""
        for part in self.parts.values():
            yield from part if isinstance(part, tuple) else (part,)

    def replaced(self, by_path: Mapping[str, tuple[Replacement, ...]]) -> Node:
        """Return the tree with what hooks put into its places.

        Args:
            by_path: replacements by path; other places have none.
        """
        parts = {
            name: tuple(node.replaced(by_path) for node in part) if isinstance(part, tuple) else part.replaced(by_path)
            for name, part in self.parts.items()
        }
        return replace(self, parts=parts, replacements=by_path.get(self.path, ()))

    def to_dict(self) -> dict[str, Any]:
        """Give the node as plain data, with every refusal and without its parts."""
        chosen = self.resolution.chosen
        return {
            "path": self.path,
            "slot": self.slot,
            "asked": list(self.resolution.asked),
            "asked_by": self.asked_by,
            "chosen": chosen.ref,
            "distribution": chosen.distribution,
            "version": chosen.version,
            "entry_point": chosen.value,
            "features": sorted(self.request.features),
            "options": None if self.options is None else msgspec.to_builtins(self.options),
            "note": self.note,
            "within": self.within,
            "replaced_by": [{"hook": each.hook, "class": each.by} for each in self.replacements],
            "refused": [
                {"ref": v.ref, "stage": v.stage, "reason": v.reason, "hint": v.hint} for v in self.resolution.refused
            ],
        }
