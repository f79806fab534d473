"""An architecture implementation by itself: its places filled with core's own implementations."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.distributed import ProcessGroup

from transom.composition import module_of
from transom.registry.names import CORE
from transom.registry.registry import default_registry
from transom.registry.resolve import Resolution, resolve
from transom.registry.submodules import declared_parts
from transom.slots.request import ArchitectureRequest, Part, Request
from transom.specs.node import Node
from transom.testing.subject import Subject

__all__ = ["assemble", "node_of"]


def assemble(
    subject: Subject,
    request: ArchitectureRequest,
    *,
    on: str | None = None,
    cp_group: ProcessGroup | None = None,
    **arguments: Any,
) -> nn.Module:
    """Build an architecture implementation whose parts are core's own.

    Args:
        subject: what is tested.
        request: what it must serve.
        on: device type; `None` = the subject's.
        cp_group: ranks that share every sequence.
        arguments: of the builder, beside the config and the submodules.

    Returns:
        the module, in training mode where the subject trains.

    Raises:
        CaseSkipped: its own ``supports()`` refuses.
        ConformanceError: it is refused for another reason.
        BuildError: it builds its parts otherwise than its ``parts()`` announces.
    """
    root = node_of(subject, request)
    with torch.device(on or subject.device):
        module = module_of(root, cp_group=cp_group)(request.config, **arguments)
    return module.train(subject.trains)


def node_of(subject: Subject, request: ArchitectureRequest) -> Node:
    """Resolve the places inside an architecture implementation: by core's own, or by others where core's cannot serve.

    Args:
        subject: what is tested.
        request: what it must serve.

    Raises:
        CaseSkipped: its own ``supports()`` refuses.
        ConformanceError: it is refused for another reason.
        ResolutionError: nothing that is installed can fill a place.
    """
    subject.require(request)
    chosen = subject.implementation
    resolution = Resolution(subject.slot.name, (chosen.ref,), (subject.verdict(request),), chosen)
    return _node("", subject.slot.name, request, resolution)


def _node(path: str, slot: str, request: Request, resolution: Resolution) -> Node:
    parts: dict[str, Node | tuple[Node, ...]] = {}
    for name, part in declared_parts(resolution.chosen.load(), request).items():
        where = f"{path}.{name}" if path else name
        if isinstance(part, Part):
            parts[name] = _part(where, part)
        else:
            parts[name] = tuple(_part(f"{where}.{i}", each) for i, each in enumerate(part))
    return Node(path, slot, request, "the conformance kit", resolution, parts=parts)


def _part(path: str, part: Part) -> Node:
    registry = default_registry()
    names = [each.ref for each in registry.implementations(part.slot) if each.builder is None]
    default = registry.slot(part.slot).default
    first = [f"{CORE}/{default}"] if default else []
    resolution = resolve(
        part.slot, [*first, *(name for name in names if name not in first)], part.request, asked_by=path
    )
    return _node(path, part.slot, part.request, resolution)
