"""One place of a model: its module, and what reaches it when the model runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from transom.transformer.attention_mask import AttentionMask

__all__ = ["Call", "captured", "tensors_in"]

_T = TypeVar("_T")


@dataclass(frozen=True)
class Call:
    """How a module was called.

    Args:
        args: by position; floating tensors are leaves of their own.
        kwargs: by name.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def on(self, module: nn.Module) -> Any:
        """Call a module likewise."""
        return module(*self.args, **self.kwargs)

    def inputs(self) -> list[Tensor]:
        """The floating tensors that gradients may flow to, those of masks excepted."""
        return [each for each in tensors_in((self.args, tuple(self.kwargs.values()))) if each.requires_grad]


def captured(module: nn.Module, run: Callable[[], object], *, trains: bool) -> Call:
    """Run a model and return how one of its modules was called, the first time.

    Args:
        module: one of the model's.
        run: runs the model.
        trains: floating inputs of the returned call require gradients.
    """
    calls: list[Call] = []

    def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not calls:
            copied = _mapped((args, kwargs), lambda each: _leaf(each, trains))
            calls.append(Call(*copied))

    handle = module.register_forward_pre_hook(note, with_kwargs=True)
    try:
        with torch.no_grad():
            run()
    finally:
        handle.remove()
    return calls[0]


def tensors_in(found: Any) -> Iterator[Tensor]:
    """Yield the tensors in nested tuples, lists and mappings."""
    if isinstance(found, Tensor):
        yield found
    elif isinstance(found, Mapping):
        yield from tensors_in(list(found.values()))
    elif isinstance(found, list | tuple):
        for each in found:
            yield from tensors_in(each)


def _leaf(tensor: Tensor, trains: bool) -> Tensor:
    copy = tensor.detach().clone()
    return copy.requires_grad_(trains and copy.is_floating_point())


def _mapped(found: _T, change: Callable[[Tensor], Tensor]) -> _T:
    """Copy nested arguments; a mask comes without what it has rendered so far."""
    if isinstance(found, Tensor):
        return change(found)  # type: ignore[return-value]
    if isinstance(found, AttentionMask):
        return replace(found)
    if isinstance(found, dict):
        return {name: _mapped(each, change) for name, each in found.items()}  # type: ignore[return-value]
    if isinstance(found, list | tuple):
        return type(found)(_mapped(each, change) for each in found)  # type: ignore[return-value]
    return found
