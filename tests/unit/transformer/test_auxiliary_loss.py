"""Losses that modules attach, against the same losses as plain summands."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transom.transformer.auxiliary_loss import AuxiliaryLoss, auxiliary_losses, auxiliary_share


class Squares(nn.Module):
    """``x @ w``, and the mean square of it as a loss."""

    def __init__(self, weight: float = 0.3):
        super().__init__()
        self.linear = nn.Linear(4, 4, dtype=torch.float64)
        self.drift = AuxiliaryLoss("drift", weight)

    def forward(self, x: Tensor) -> Tensor:
        x = self.linear(x)
        return self.drift(x, x.square().mean())


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def gradients(loss: Tensor, model: nn.Module) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(model.parameters())))


def wanted(model: nn.Sequential, x: Tensor, weight: float, share: float = 1.0) -> list[Tensor]:
    total = torch.zeros((), dtype=x.dtype)
    for module in model:
        x = module.linear(x)
        total = total + weight * x.square().mean()
    return gradients(share * (x.sin().sum() + total), model)


@pytest.mark.parametrize("recomputes", [False, True], ids=["plain", "recomputed"])
def test_loss_has_the_gradient_of_a_summand(recomputes):
    model, x = nn.Sequential(Squares(), Squares()), torch.randn(3, 4, dtype=torch.float64)
    out = x
    for module in model:
        out = checkpoint(module, out, use_reentrant=False) if recomputes else module(out)
    found = gradients(out.sin().sum(), model)
    torch.testing.assert_close(found, wanted(model, x, 0.3))


def test_loss_takes_the_share_that_a_pass_has():
    model, x = nn.Sequential(Squares()), torch.randn(3, 4, dtype=torch.float64)
    with auxiliary_share(0.25):
        found = gradients(0.25 * model(x).sin().sum(), model)
    torch.testing.assert_close(found, wanted(model, x, 0.3, share=0.25))
    torch.testing.assert_close(gradients(model(x).sin().sum(), model), wanted(model, x, 0.3))


def test_share_ends_with_an_error_too():
    with pytest.raises(KeyError), auxiliary_share(0.25):
        raise KeyError
    model, x = nn.Sequential(Squares()), torch.randn(3, 4, dtype=torch.float64)
    torch.testing.assert_close(gradients(model(x).sin().sum(), model), wanted(model, x, 0.3))


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch's own, while it traces
def test_loss_compiles_in_one_graph():
    model, x = nn.Sequential(Squares(), Squares()), torch.randn(3, 4, dtype=torch.float64)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(gradients(compiled(x).sin().sum(), model), wanted(model, x, 0.3))
    assert model[1].drift.value is not None


@pytest.mark.parametrize("weight", [0.0, 0.3])
def test_losses_are_reported_by_name_without_their_weights(weight):
    model, x = nn.Sequential(Squares(weight), Squares(weight)), torch.randn(3, 4, dtype=torch.float64)
    assert auxiliary_losses(model) == {}
    model(x)
    inner = model[0].linear(x)
    mean = (inner.square().mean() + model[1].linear(inner).square().mean()) / 2
    torch.testing.assert_close(auxiliary_losses(model), {"drift": mean.detach()})


def test_loss_is_left_out_of_evaluation():
    model, x = nn.Sequential(Squares()).eval(), torch.randn(3, 4, dtype=torch.float64)
    torch.testing.assert_close(gradients(model(x).sin().sum(), model), wanted(model, x, 0.0))
    assert auxiliary_losses(model) == {}


def test_loss_says_what_it_is():
    assert str(AuxiliaryLoss("drift", 0.5)) == "AuxiliaryLoss(drift, weight=0.5)"
