"""Products of one row with a matrix, written so that a compiler makes one loop of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, final

import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

__all__ = ["SingleRowProducts"]

_KINDS = (Tensor, nn.Parameter)


@final
class SingleRowProducts(TorchFunctionMode):
    """Within it, a linear of a single row is ``(x * weight).sum(-1)``; others stay as they are.

    For code that is being compiled for a CPU. Such a product reads every weight once, so memory sets its pace; a
    library's matrix product does not get there with one row. What a compiler makes of the sum does, and what stands
    around it, the norm before or the residual after, goes into the same loop. Eagerly it would be slow, for the terms
    would be written to memory.

    Example:
        >>> import torch
        >>> x, weight = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0], [5.0, 6.0], [7.0, 8.0]])
        >>> with SingleRowProducts():
        ...     F.linear(x, weight)
        tensor([[11., 17., 23.]])
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Call a function of torch, or compute the same as it."""
        kwargs = {} if kwargs is None else kwargs
        return _linear(*args, **kwargs) if func is F.linear else func(*args, **kwargs)


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:  # noqa: A002 - torch's word
    is_row = input.numel() == input.shape[-1] and weight.dim() == 2
    if not is_row or input.dtype != weight.dtype or type(weight) not in _KINDS:
        return F.linear(input, weight, bias)
    product = (input.unsqueeze(-2) * weight).sum(-1)  # [..., 1, in] * [out, in] -> [..., out]
    return product if bias is None else product + bias
