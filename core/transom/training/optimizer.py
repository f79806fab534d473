"""AdamW over a model's parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn
from torch.optim import AdamW

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
        none on vectors: biases and the scales of norms.
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
    return AdamW(groups, lr=settings.learning_rate, betas=settings.betas, eps=settings.eps)
