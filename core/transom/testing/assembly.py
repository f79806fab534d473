"""An architecture implementation by itself: its places filled with core's own implementations."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from transom.composition import module_of
from transom.registry.registry import default_registry
from transom.registry.resolve import Resolution, resolve
from transom.slots.request import ArchitectureRequest, Part, Request
from transom.specs.node import Node
from transom.testing.subject import Subject

__all__ = ["assemble"]


def assemble(subject: Subject, request: ArchitectureRequest, *, on: str | None = None, **arguments: Any) -> nn.Module:
    """Build an architecture implementation whose parts are core's own.

    Args:
        subject: what is tested.
        request: what it must serve.
        on: device type; `None` = the subject's.
        arguments: of the builder, beside the config and the submodules.

    Returns:
        the module, in training mode where the subject trains.

    Raises:
        CaseSkipped: its own ``supports()`` refuses.
        ConformanceError: it is refused for another reason.
        BuildError: it builds its parts otherwise than its ``parts()`` announces.
    """
    subject.require(request)
    chosen = subject.implementation
    resolution = Resolution(subject.slot.name, (chosen.ref,), (subject.verdict(request),), chosen)
    root = _node("", subject.slot.name, request, resolution)
    with torch.device(on or subject.device):
        module = module_of(root)(request.config, **arguments)
    return module.train(subject.trains)


def _node(path: str, slot: str, request: Request, resolution: Resolution) -> Node:
    declare = getattr(resolution.chosen.load(), "parts", None)
    parts: dict[str, Node | tuple[Node, ...]] = {}
    for name, part in ({} if declare is None else declare(request)).items():
        where = f"{path}.{name}" if path else name
        if isinstance(part, Part):
            parts[name] = _part(where, part)
        else:
            parts[name] = tuple(_part(f"{where}.{i}", each) for i, each in enumerate(part))
    return Node(path, slot, request, "the conformance kit", resolution, parts=parts)


def _part(path: str, part: Part) -> Node:
    """Fill a place with the slot's default."""
    default = default_registry().slot(part.slot).default or ()
    return _node(path, part.slot, part.request, resolve(part.slot, default, part.request, asked_by=path))
