"""An operation whose input is made again in the backward pass, from what is kept anyway."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

__all__ = ["with_remade_input"]

_T = TypeVar("_T")


def with_remade_input(operation: Callable[[Tensor], _T], make: Callable[[Tensor], Tensor], x: Tensor) -> _T:
    """Compute ``operation(make(x))``; where autograd would keep ``make(x)``, it keeps x and makes it again.

    For what is cheap to make and as large as x, an activation say: x is kept for its own gradient, so a tensor of its
    size is saved. The gradients have the same bits. Nothing is changed where nothing is differentiated, while compiling
    (a compiler chooses by itself what to make again), and where others have a say in what is kept, as in a layer that
    is recomputed as a whole.

    Args:
        operation: a linear, say.
        make: gives the same for the same x each time; a module is taken to have reasons not to.
        x: what it makes the input from.

    Returns:
        what ``operation`` gives.

    Example:
        >>> x = torch.randn(3, 4, requires_grad=True)
        >>> with_remade_input(torch.relu, torch.sigmoid, x).shape
        torch.Size([3, 4])
    """
    made = make(x)
    if (
        not torch.is_grad_enabled()
        or not _keeps_for_autograd()
        or isinstance(make, nn.Module)
        or type(made) is not Tensor
    ):
        return operation(made)
    remade, memory = _Remade(make, x.detach()), _memory(made)

    def pack(kept: Tensor) -> Tensor | tuple[_Remade, _Layout]:  # which autograd keeps: it must not hold what is made
        return (remade, (kept.shape, kept.stride())) if _memory(kept) == memory else kept

    with torch.autograd.graph.saved_tensors_hooks(pack, _unpacked):
        return operation(made)


def _memory(x: Tensor) -> tuple[int, int, torch.dtype]:
    return x.data_ptr(), x.numel(), x.dtype


_Layout = tuple[tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True, eq=False)
class _Remade:
    """What makes a tensor, and of what."""

    make: Callable[[Tensor], Tensor]
    x: Tensor


def _unpacked(kept: Tensor | tuple[_Remade, _Layout]) -> Tensor:
    if isinstance(kept, Tensor):
        return kept
    remade, (shape, stride) = kept
    with torch.no_grad():
        return remade.make(remade.x).as_strided(shape, stride)


def _keeps_for_autograd() -> bool:
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return False
    return torch._C._autograd._top_saved_tensors_default_hooks(True) is None
