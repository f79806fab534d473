"""What places cost whose requests do not tell: third parties' architectures, built and run on the meta device."""

from __future__ import annotations

import inspect
from collections.abc import Hashable, Iterator
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from transom.composition import module_of
from transom.registry.registry import default_registry
from transom.slots import ArchitectureRequest, Request
from transom.slots.model import ModelRequest
from transom.specs.node import Node
from transom.specs.plan import Plan
from transom.specs.totals import Cost, costs, told

__all__ = ["measure"]


def measure(plan: Plan) -> dict[str, Cost]:
    """Build every place whose cost its request does not tell on the meta device, and count.

    Nothing is allocated. Parameters are counted on the module. FLOPs are counted in a forward pass without gradients
    over one sequence of ``max_sequence_length`` tokens; where the module does not run on the meta device (its routing
    depends on values, say), those of its parts stand, and the cost is marked as not complete. Places that are alike are
    built once.

    Args:
        plan: a plan.

    Returns:
        for `transom.specs.totals.totals`, by path; empty for a plan of core's own architectures.

    Example:
        >>> import transom
        >>> measure(transom.plan("tiny-llama"))
        {}
    """
    untold = list(_outermost(plan.root))
    if not untold:
        return {}
    from_parts = costs(plan)
    known: dict[Hashable, Cost] = {}
    measured = {}
    for node in untold:
        key = tuple(_kind(inner) for inner in node.nodes())
        if key not in known:
            known[key] = _measure(node, plan, from_parts[node.path])
        measured[node.path] = known[key]
    return measured


def _outermost(node: Node) -> Iterator[Node]:
    """Yield the nodes that must be measured and are in no other that must."""
    if not told(node):
        yield node
        return
    for child in node.children():
        yield from _outermost(child)


def _kind(node: Node) -> Hashable:
    """Give what decides on a node's cost: everything but which layer it is in."""
    return node.slot, node.resolution.chosen.ref, _unnumbered(node.request), repr(node.options)


def _unnumbered(request: Request) -> Request:
    is_numbered = any(field.name == "layer_number" for field in fields(request))
    return replace(request, layer_number=1) if is_numbered else request  # type: ignore[call-arg]


def _measure(node: Node, plan: Plan, from_parts: Cost) -> Cost:
    request = node.request
    assert isinstance(request, ArchitectureRequest), "kernel slots tell what they cost"
    module = _build(node, request)
    parameters = sum(parameter.numel() for parameter in module.parameters())
    length = plan.spec.max_sequence_length
    try:
        flops = _flops(module.eval(), request, length) // length
    except Exception:  # whatever a third party's forward may raise: its parts are known, it is not
        return replace(from_parts, parameters=parameters, is_complete=False)
    return Cost(parameters, flops, from_parts.kv_bytes)


def _build(node: Node, request: ArchitectureRequest) -> nn.Module:
    """Build a node's module as its parent would, on the meta device."""
    accepted = inspect.signature(default_registry().slot(node.slot).builder.__call__).parameters
    asked = {field.name: getattr(request, field.name) for field in fields(request) if field.name in accepted}
    arguments = {name: value for name, value in asked.items() if name not in ("config", "request")}
    with torch.device("meta"):
        return module_of(node)(request.config, **arguments)


def _flops(module: nn.Module, request: ArchitectureRequest, length: int) -> int:
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), torch.device("meta"), counter:
        module(*_inputs(module, request, length))
    return counter.get_total_flops()


def _inputs(module: nn.Module, request: ArchitectureRequest, length: int) -> tuple[Tensor | None, ...]:
    if isinstance(request, ModelRequest):
        ids = torch.zeros(1, length, dtype=torch.long)
        return (ids, ids, None, None, None) if hasattr(module, "encode") else (ids,)
    dtype: Any = getattr(torch, request.context.dtype)
    return (torch.zeros(1, length, request.config.hidden_size, dtype=dtype),)
