from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transom.specs.train_spec import TrainSpec
from transom.training.optimizer import make_optimizer


def test_weight_decay_falls_on_matrices_alone():
    model = nn.Sequential(nn.Embedding(4, 3), nn.LayerNorm(3), nn.Linear(3, 2))
    matrices, vectors = make_optimizer(model, TrainSpec(weight_decay=0.3)).param_groups
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (0.3, 0.0)
    assert [p.ndim for p in matrices["params"]] == [2, 2]
    assert [p.ndim for p in vectors["params"]] == [1, 1, 1]


def test_frozen_parameters_are_left_out():
    model = nn.Linear(3, 2).requires_grad_(False)
    model.bias.requires_grad_(True)
    matrices, vectors = make_optimizer(model, TrainSpec()).param_groups
    assert (matrices["params"], vectors["params"]) == ([], [model.bias])


def test_a_step_is_adamws_formula():
    model = nn.Linear(1, 1)
    weight, bias = model.weight.item(), model.bias.item()
    settings = TrainSpec(learning_rate=0.1, weight_decay=0.5, betas=(0.8, 0.9), eps=1e-3)
    optimizer = make_optimizer(model, settings)
    model(torch.tensor([[3.0]])).sum().backward()
    optimizer.step()
    # After one step both moments, corrected for their start, are the gradient and its square.
    assert model.weight.item() == pytest.approx(weight * (1 - 0.1 * 0.5) - 0.1 * 3 / (3 + 1e-3))
    assert model.bias.item() == pytest.approx(bias - 0.1 * 1 / (1 + 1e-3))


def by_formula(x: Tensor, gradients: list[Tensor], settings: TrainSpec) -> Tensor:
    """Algorithm 2 of Loshchilov and Hutter 2019, in float64."""
    x, first, second = x.double(), torch.zeros(()).double(), torch.zeros(()).double()
    beta1, beta2 = settings.betas
    for t, gradient in enumerate(gradients, start=1):
        g = gradient.double()
        first, second = beta1 * first + (1 - beta1) * g, beta2 * second + (1 - beta2) * g.square()
        update = first / (1 - beta1**t) / ((second / (1 - beta2**t)).sqrt() + settings.eps)
        x = x - settings.learning_rate * (update + settings.weight_decay * x)
    return x


@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 1e-14), (torch.float32, 2e-6), (torch.bfloat16, 0.1)])
@pytest.mark.parametrize("is_transposed", [False, True])
def test_steps_are_adamws_formula(dtype: torch.dtype, close: float, is_transposed: bool) -> None:
    settings = TrainSpec(learning_rate=0.01, weight_decay=0.1, betas=(0.9, 0.95), eps=1e-8)
    model = nn.Linear(19, 37, bias=False, dtype=dtype)
    gradients = [torch.randn_like(model.weight) for _ in range(20)]
    expected = by_formula(model.weight.detach(), gradients, settings)
    optimizer = make_optimizer(model, settings)
    for gradient in gradients:
        model.weight.grad = gradient.T.contiguous().T if is_transposed else gradient
        optimizer.step()
    assert (model.weight.double() - expected).abs().max().item() < close


class Allocated(TorchDispatchMode):
    """Counts the elements of what operations make."""

    number = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        given = {each.data_ptr() for each in args if isinstance(each, Tensor)}
        self.number += result.numel() if isinstance(result, Tensor) and result.data_ptr() not in given else 0
        return result


def test_a_step_on_a_cpu_makes_no_temporaries() -> None:
    model = nn.Linear(64, 64)
    optimizer = make_optimizer(model, TrainSpec())
    model(torch.randn(2, 64)).sum().backward()
    optimizer.step()
    with Allocated() as seen:
        optimizer.step()
    assert seen.number < 64


def test_a_run_goes_on_from_the_state_of_an_unfused_optimizer() -> None:
    settings = TrainSpec(learning_rate=0.01, weight_decay=0.0, betas=(0.8, 0.9), eps=1e-3)
    weight, gradients = torch.randn(3, 4), list(torch.randn(4, 3, 4))
    model = nn.Linear(4, 3, bias=False)
    model.weight.data.copy_(weight)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=settings.learning_rate, weight_decay=0.0, betas=settings.betas, eps=settings.eps
    )
    for gradient in gradients:
        model.weight.grad = gradient
        optimizer.step()
        state, optimizer = optimizer.state, make_optimizer(model, settings)
        optimizer.state.update(state)
    torch.testing.assert_close(model.weight.double(), by_formula(weight, gradients, settings), rtol=0, atol=1e-6)
