"""Canonical states of models whose modules keep their weights otherwise, derived from the modules' layout maps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from transom.checkpoint.layout_map import LayoutMap, Rule
from transom.transformer.moved_names import moved_names

__all__ = ["HasLayoutMap", "from_canonical", "keep_state_canonical", "own_tensors", "to_canonical"]

_RAW: ContextVar[bool] = ContextVar("transom_raw_state", default=False)


@runtime_checkable
class HasLayoutMap(Protocol):
    """A module whose parameters are not those of the reference implementation of its slot."""

    def layout_map(self) -> LayoutMap:
        """Say how the module's own names and layouts become the canonical ones."""
        ...


def keep_state_canonical(module: nn.Module) -> None:
    """Make ``state_dict`` of a module give, and ``load_state_dict`` take, canonical names and layouts.

    Modules that `transom.build` makes have this done to them already. States with the module's own names load too.

    Args:
        module: with a method ``layout_map()``, or with parameters that `transom.transformer.moved_names` tells of;
            others are left as they are.
    """
    if _layouts(module):
        module.register_state_dict_post_hook(_after_saving)  # type: ignore[no-untyped-call]
        module.register_load_state_dict_pre_hook(_before_loading)  # type: ignore[no-untyped-call]


def own_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Give parameters and persistent buffers by the modules' own names, themselves; without anything's extra state."""
    token = _RAW.set(True)
    try:
        state: dict[str, Tensor] = model.state_dict(keep_vars=True)
    finally:
        _RAW.reset(token)
    return {name: tensor for name, tensor in state.items() if not name.endswith("_extra_state")}


def to_canonical(model: nn.Module, tensors: Mapping[str, Tensor], *, moments: bool = False) -> Mapping[str, Tensor]:
    """Bring tensors that belong to a model's parameters into the canonical layout, each when it is looked up.

    Args:
        model: whose modules say how.
        tensors: by the modules' own names.
        moments: they are an optimizer's moments, or other multiples of gradients, not weights.

    Returns:
        the tensors by canonical names.
    """
    for layout in reversed(_levels(model)):
        tensors = (layout.of_moments() if moments else layout).forward(tensors)
    return tensors


def from_canonical(model: nn.Module, tensors: Mapping[str, Tensor], *, moments: bool = False) -> Mapping[str, Tensor]:
    """Bring canonical tensors into the layout of a model's own parameters: `to_canonical` the other way round."""
    for layout in _levels(model):
        tensors = (layout.of_moments() if moments else layout).backward(tensors)
    return tensors


def _levels(model: nn.Module) -> list[LayoutMap]:
    """Give the maps of a model's modules, the outermost first; those inside others come after them."""
    levels: list[list[Rule]] = []
    for prefix, depth, layout in _maps(model, "", 0):
        levels += [[] for _ in range(depth + 1 - len(levels))]
        levels[depth] += layout.prefixed(prefix).expanded()
    return [LayoutMap(rules) for rules in levels]


def _maps(module: nn.Module, prefix: str, depth: int) -> Iterator[tuple[str, int, LayoutMap]]:
    for layout in _layouts(module):
        yield prefix, depth, layout
        depth += 1
    for name, child in module.named_children():
        yield from _maps(child, f"{prefix}{name}.", depth)


def _after_saving(module: nn.Module, state: dict[str, Any], prefix: str, metadata: dict[str, Any]) -> None:
    if not _RAW.get():
        for layout in reversed(_layouts(module)):
            _replace(state, prefix, layout.forward)


def _before_loading(module: nn.Module, state: dict[str, Any], prefix: str, *rest: Any) -> None:
    for layout in _layouts(module):
        _replace(state, prefix, layout.backward)


def _layouts(module: nn.Module) -> list[LayoutMap]:
    """Give a module's own maps, the outermost first: that of names that it moves, and what its method says."""
    moved = moved_names(module)
    layouts = [LayoutMap([Rule(own, name) for own, name in moved.items()])] if moved else []
    # Most classes have none, and a look at the class is quicker than asking whether an instance is of a Protocol.
    if hasattr(type(module), "layout_map") and isinstance(module, HasLayoutMap):
        layouts.append(module.layout_map())
    return layouts


def _replace(state: dict[str, Any], prefix: str, turn: Any) -> None:
    """Turn the entries below a prefix, leaving the others where they are."""
    below = {name.removeprefix(prefix): state.pop(name) for name in list(state) if name.startswith(prefix)}
    state.update({prefix + name: tensor for name, tensor in turn(below).items()})
