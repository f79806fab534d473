"""An operation whose input is made again in the backward pass, from what is kept anyway."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor, nn

__all__ = ["can_be_remade", "is_kept_as_it_is", "with_remade", "with_remade_input"]

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
    if isinstance(make, nn.Module) or type(made) is not Tensor or not can_be_remade():
        return operation(made)
    return with_remade(operation, made, partial(make, x.detach()))


def with_remade(operation: Callable[[Tensor], _T], made: Tensor, remake: Callable[[], Tensor]) -> _T:
    """Compute ``operation(made)``; where autograd would keep what was made, it keeps what makes it again.

    Args:
        operation: a linear, say.
        made: its input.
        remake: gives the same bits each time, without holding ``made``.

    Returns:
        what ``operation`` gives.

    Example:
        >>> x = torch.randn(3, 4, requires_grad=True)
        >>> with_remade(torch.relu, x.sigmoid(), lambda: x.detach().sigmoid()).shape
        torch.Size([3, 4])
    """
    memory = _memory(made)

    def pack(kept: Tensor) -> Tensor | _Remade:  # which autograd keeps: it must not hold what is made
        return _Remade(remake, kept.shape, kept.stride()) if _memory(kept) == memory else kept

    with torch.autograd.graph.saved_tensors_hooks(pack, _unpacked):
        return operation(made)


def can_be_remade() -> bool:
    """Whether autograd keeps tensors now, and nobody else has a say in what is kept.

    Example:
        >>> with torch.no_grad():
        ...     can_be_remade()
        False
    """
    if not torch.is_grad_enabled() or torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return False
    return is_kept_as_it_is()


def is_kept_as_it_is() -> bool:
    """Whether what autograd keeps goes through nobody's hooks: those of an activation that is recomputed, say.

    Example:
        >>> with torch.autograd.graph.save_on_cpu():
        ...     is_kept_as_it_is()
        False
    """
    return torch._C._autograd._top_saved_tensors_default_hooks(True) is None


def _memory(x: Tensor) -> tuple[int, int, torch.dtype]:
    return x.data_ptr(), x.numel(), x.dtype


@dataclass(frozen=True, eq=False)
class _Remade:
    """What makes a tensor, and how it is looked at."""

    remake: Callable[[], Tensor]
    shape: tuple[int, ...]
    stride: tuple[int, ...]


def _unpacked(kept: Tensor | _Remade) -> Tensor:
    if isinstance(kept, Tensor):
        return kept
    with torch.no_grad():
        return kept.remake().as_strided(kept.shape, kept.stride)
