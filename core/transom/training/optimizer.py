"""AdamW over a model's parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.optim import AdamW, Optimizer

if TYPE_CHECKING:
    from transom.specs.train_spec import TrainSpec

__all__ = ["make_optimizer"]


def make_optimizer(model: nn.Module, settings: TrainSpec) -> AdamW:
    """Make the optimizer of a run.

    Args:
        model: whose parameters it trains, where they require gradients.
        settings: learning rate, betas, eps and weight decay.

    Returns:
        AdamW (Loshchilov and Hutter, "Decoupled weight decay regularization", 2019) with weight decay on matrices and
        none on vectors: biases and the scales of norms. On a CPU it is torch's fused one, unless parameters are
        distributed tensors or complex: it takes one pass over memory, makes no temporaries, and computes in float32
        what has a narrower dtype. Its state is that of the other.
    """
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    # Split over ranks, biases of two linears in one are a stack of two.
    is_vector = {name: parameter.ndim < 2 or name.endswith(".bias") for name, parameter in parameters.items()}
    matrices = [parameter for name, parameter in parameters.items() if not is_vector[name]]
    vectors = [parameter for name, parameter in parameters.items() if is_vector[name]]
    groups = [
        {"params": matrices, "weight_decay": settings.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    is_fused = all(_can_be_fused(each) for each in parameters.values())
    optimizer = AdamW(
        groups, lr=settings.learning_rate, betas=settings.betas, eps=settings.eps, fused=True if is_fused else None
    )
    if is_fused:
        optimizer.register_step_pre_hook(_lay_out_gradients)
    return optimizer


def _can_be_fused(parameter: nn.Parameter) -> bool:
    return type(parameter) is nn.Parameter and parameter.is_cpu and parameter.is_floating_point()


def _lay_out_gradients(optimizer: Optimizer, *_: Any) -> None:
    """Have each gradient lie in memory as its parameter does, which the fused kernel on CPUs assumes unseen."""
    parameters = (each for group in optimizer.param_groups for each in group["params"] if each.grad is not None)
    for parameter in parameters:
        if parameter.grad.stride() != parameter.stride():
            parameter.grad = torch.empty_like(parameter).copy_(parameter.grad)
