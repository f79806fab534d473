"""Losses that modules deep inside a model add to the one that it is trained on.

A router wants its experts used alike, and no signature between it and the training loss has room to say so. Its loss is
therefore attached to a tensor on the way: what it is attached to passes unchanged, and backward gives the loss the
gradient that it would have as a summand of the training loss. That holds under activation recompute, in pipeline stages
and in compiled models, and nobody between need know of it.

A training loss that is a mean over several backward passes takes a share of each; `auxiliary_share` says which.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor, nn
from torch.autograd import Function

__all__ = ["AuxiliaryLoss", "auxiliary_losses", "auxiliary_share"]

# Backward passes run in threads of their own, so that what is said here is read when the loss is attached.
_SHARE = [1.0]


@contextmanager
def auxiliary_share(share: float) -> Iterator[None]:
    """Say which share of the training loss the passes inside compute: 1/n of a mean over n; it is 1 elsewhere.

    Args:
        share: multiplies auxiliary losses, as it does the loss; so does the scale of a loss that is scaled.

    Example:
        >>> with auxiliary_share(1 / 4):
        ...     x = AuxiliaryLoss("drift", weight=8.0)(torch.ones((), requires_grad=True), loss := torch.ones(()))
    """
    before, _SHARE[0] = _SHARE[0], share
    try:
        yield
    finally:
        _SHARE[0] = before


@final
class AuxiliaryLoss(nn.Module):
    """One summand ``weight * loss`` of the training loss, and its last value.

    Attributes:
        value: of the last pass in training, without its weight; `None` before the first.

    Args:
        name: what reports call it; modules of one name are reported together.
        weight: of the loss; zero only reports.

    Source: Fedus et al. 2021, Switch Transformer, equation 4, adds such a loss for every layer.

    Example:
        >>> drift = AuxiliaryLoss("drift", weight=0.5)
        >>> x = torch.tensor([1.0, 2.0], requires_grad=True)
        >>> y = drift(x * 3, loss=x.square().sum())
        >>> y.sum().backward()  # the gradient of sum(3 x) + 0.5 sum(x²)
        >>> y, x.grad, drift.value
        (tensor([3., 6.], grad_fn=<_AttachBackward>), tensor([4., 5.]), tensor(5.))
    """

    def __init__(self, name: str, weight: float) -> None:
        super().__init__()
        self.name, self.weight = name, weight
        self.value: Tensor | None = None

    def forward(self, x: Tensor, loss: Tensor) -> Tensor:
        """Attach the loss to a tensor.

        Args:
            x: of any shape; the training loss must depend on it.
            loss: a scalar.

        Returns:
            ``x``; in evaluation, and without gradients, nothing is attached.
        """
        if not self.training:
            return x
        self.value = loss.detach()
        if self.weight == 0 or not torch.is_grad_enabled():
            return x
        return _Attach.apply(x, loss, self.weight * _SHARE[0])

    def extra_repr(self) -> str:
        """Say its name and weight."""
        return f"{self.name}, weight={self.weight:g}"


def auxiliary_losses(model: nn.Module) -> dict[str, Tensor]:
    """Give the last values of a model's auxiliary losses, each the mean over the modules of one name, without weights.

    Args:
        model: after a pass in training.

    Returns:
        scalars by name; empty for a model without any.
    """
    found: dict[str, list[Tensor]] = defaultdict(list)
    for module in model.modules():
        if isinstance(module, AuxiliaryLoss) and module.value is not None:
            found[module.name].append(module.value)
    return {name: torch.stack(values).mean() for name, values in found.items()}


class _Attach(Function):
    """Passes a tensor on, and gives the loss its constant gradient."""

    if TYPE_CHECKING:  # torch leaves it untyped

        @classmethod
        def apply(cls, x: Tensor, loss: Tensor, weight: float, /) -> Tensor: ...

    @staticmethod
    def forward(ctx: Any, x: Tensor, loss: Tensor, weight: float) -> Tensor:
        ctx.weight = weight
        ctx.dtype = loss.dtype
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        return grad, torch.full((), ctx.weight, dtype=ctx.dtype, device=grad.device), None
