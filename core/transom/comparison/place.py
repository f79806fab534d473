"""One place of a model: its module, and what reaches it when the model runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from transom.errors import InputError
from transom.transformer.attention_mask import AttentionMask

__all__ = ["Call", "captured", "run_model", "tensors_in"]

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

    def on(self, module: Callable[..., Any]) -> Any:
        """Call a module likewise, or what was compiled of one."""
        return module(*self.args, **self.kwargs)

    def copied(self) -> Call:
        """Give a call of its own: what one module writes into its inputs does not reach another's."""
        return Call(*_mapped((self.args, self.kwargs), lambda each: _leaf(each, each.requires_grad)))

    def is_like(self, other: Call) -> bool:
        """Whether all tensors are what they are in another call."""
        pairs = zip(tensors_in((self.args, self.kwargs)), tensors_in((other.args, other.kwargs)), strict=True)
        return all(torch.equal(one, another) for one, another in pairs)

    def inputs(self) -> list[Tensor]:
        """The floating tensors that gradients may flow to, those of masks excepted."""
        return [each for each in tensors_in((self.args, tuple(self.kwargs.values()))) if each.requires_grad]


class _ReachedError(Exception):
    """The module is about to be called: what comes after is not needed."""


def captured(module: nn.Module, run: Callable[[], object], *, trains: bool) -> Call:
    """Run a model until one of its modules is called, and return how.

    Args:
        module: one of the model's.
        run: runs the model.
        trains: floating inputs of the returned call require gradients.

    Raises:
        InputError: the module is not called.
    """
    calls: list[Call] = []

    def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        copied = _mapped((args, kwargs), lambda each: _leaf(each, trains))
        calls.append(Call(*copied))
        raise _ReachedError

    handle = module.register_forward_pre_hook(note, with_kwargs=True)
    try:
        with torch.no_grad(), suppress(_ReachedError):
            run()
    finally:
        handle.remove()
    if not calls:
        raise InputError(f"a forward pass of the model does not call its {type(module).__name__}, so it is not timed.")
    return calls[0]


def run_model(model: nn.Module, tokens: Tensor, *, learns: bool) -> None:
    """Run a model on tokens ``[b, s]``, which an encoder-decoder both reads and writes.

    Args:
        model: a decoder, or an encoder-decoder, which has ``encode``.
        tokens: integer ids.
        learns: compute a loss, of tokens that stand for labels.
    """
    if hasattr(model, "encode"):
        model(tokens, tokens, None, None, None, **({"lm_labels": tokens} if learns else {}))
    else:
        model(tokens, **({"labels": tokens} if learns else {}))


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
