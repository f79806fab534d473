"""Cross-entropy that turns its logits into their gradients: against the formula, and what it makes in memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transom.transformer import kept_logits
from transom.transformer.kept_logits import cross_entropy_of_kept_logits

LABELS = torch.tensor([1, 2, -100, 8, 0, 3])


def inputs(has_bias: bool = False, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    shapes = [(6, 4), (9, 4), (9,)][: 3 if has_bias else 2]
    return tuple(torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes)


def losses(hidden: Tensor, weight: Tensor, bias: Tensor | None = None, *, z_loss: float = 0.0) -> Tensor:
    return cross_entropy_of_kept_logits(hidden, weight, LABELS, bias, -100, z_loss)


def formula(hidden: Tensor, weight: Tensor, bias: Tensor | None = None, *, z_loss: float = 0.0) -> Tensor:
    logits = F.linear(hidden, weight, bias)
    penalty = z_loss * logits.logsumexp(-1).square()
    return F.cross_entropy(logits, LABELS, reduction="none") + penalty.masked_fill(LABELS == -100, 0.0)


@pytest.mark.parametrize("has_bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize("z_loss", [0.0, 0.1])
def test_losses_and_gradients_follow_the_formula(has_bias: bool, z_loss: float) -> None:
    each = inputs(has_bias)
    found, expected = losses(*each, z_loss=z_loss), formula(*each, z_loss=z_loss)
    torch.testing.assert_close(found, expected)
    cotangent = torch.randn(6, dtype=torch.float64)
    torch.testing.assert_close(
        torch.autograd.grad(found, each, cotangent), torch.autograd.grad(expected, each, cotangent)
    )


@pytest.mark.parametrize("z_loss", [0.0, 0.1])
def test_gradients_are_right_to_the_second_order(z_loss: float) -> None:
    each = inputs(has_bias=True)
    assert torch.autograd.gradgradcheck(lambda *given: losses(*given, z_loss=z_loss), each)


def test_gradients_are_the_same_when_the_graph_is_gone_through_again() -> None:
    each = inputs()
    loss = losses(*each).sum()
    first = torch.autograd.grad(loss, each, retain_graph=True)
    assert all(torch.equal(a, b) for a, b in zip(first, torch.autograd.grad(loss, each), strict=True))


def test_rows_are_done_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    each = inputs()
    whole = losses(*each), *torch.autograd.grad(losses(*each).sum(), each)
    monkeypatch.setattr(kept_logits, "_ROWS", 4)
    parts = losses(*each), *torch.autograd.grad(losses(*each).sum(), each)
    torch.testing.assert_close(parts, whole)


def test_narrow_logits_are_widened_for_all_but_the_products() -> None:
    each = inputs(dtype=torch.bfloat16)
    found = losses(*each)
    wide = [given.detach().float().requires_grad_() for given in each]
    expected = formula(*wide)
    assert found.dtype is torch.float32
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2)
    for got, right in zip(
        torch.autograd.grad(found.sum(), each), torch.autograd.grad(expected.sum(), wide), strict=True
    ):
        torch.testing.assert_close(got.float(), right, rtol=5e-2, atol=5e-2)


def test_exponentials_of_all_rows_are_made_in_the_same_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_logits, "_ROWS", 2)
    hidden, weight = torch.randn(6, 4), torch.randn(9, 4)
    with torch.profiler.profile(profile_memory=True) as profiled:
        losses(hidden, weight)
    sizes = [each.nbytes() for each in profiled.profiler.kineto_results.events() if each.name() == "[memory]"]
    # Of two rows of nine, and smaller than that of the logits.
    assert [size for size in sizes if size >= 2 * 9 * 4] == [6 * 9 * 4, 2 * 9 * 4]


def test_logits_that_are_all_impossible_have_no_partition() -> None:
    hidden, weight, bias = torch.zeros(6, 4), torch.zeros(9, 4), torch.full((9,), -torch.inf)
    assert torch.equal(losses(hidden, weight, bias).isnan(), formula(hidden, weight, bias).isnan())


def test_nothing_else_is_as_large_as_the_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    class Large(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.memories: set[int] = set()

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            if isinstance(out, Tensor) and out.untyped_storage().nbytes() >= 6 * 9 * 8:
                self.memories.add(out.untyped_storage().data_ptr())
            return out

    monkeypatch.setattr(kept_logits, "_ROWS", 2)
    each = inputs()
    with Large() as seen:
        torch.autograd.grad(losses(*each).sum(), each)
    assert len(seen.memories) == 1
