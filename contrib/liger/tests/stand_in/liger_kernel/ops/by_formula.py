"""Functions whose derivatives are those of a formula in plain torch, computed again in the backward pass."""

from __future__ import annotations

import torch
from torch import Tensor


def forward(ctx, formula, *tensors):
    """Compute a formula of tensors, and keep them; give a tuple where it does."""
    ctx.save_for_backward(*tensors)
    ctx.formula = formula
    return formula(*tensors)


def backward(ctx, *grads) -> list[Tensor | None]:
    """Give the gradient of each tensor that was kept."""
    leaves = [None if x is None else x.detach().requires_grad_(x.is_floating_point()) for x in ctx.saved_tensors]
    with torch.enable_grad():
        outputs = ctx.formula(*leaves)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    wanted = [x for x in leaves if x is not None and x.requires_grad]
    found = iter(torch.autograd.grad(outputs, wanted, grads, allow_unused=True))
    return [next(found) if x is not None and x.requires_grad else None for x in leaves]
