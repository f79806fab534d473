"""What is checked of architectures, whatever they compute: who depends on whom, and whom gradients reach."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from transom.testing.case import ConformanceError
from transom.testing.closeness import TOLERANCES, assert_close

__all__ = ["expect_depends", "expect_finite", "expect_gradients", "expect_same", "expect_shape"]


def expect_shape(output: Tensor, shape: tuple[int, ...], dtype: torch.dtype, what: str = "the output") -> None:
    """Expect a shape, a dtype and finite numbers.

    Raises:
        ConformanceError: it has others.
    """
    if tuple(output.shape) != shape:
        raise ConformanceError(f"{what} has shape {list(output.shape)}, expected {list(shape)}")
    if output.dtype is not dtype:
        raise ConformanceError(f"{what} is {output.dtype}, expected {dtype}")
    expect_finite(output, what)


def expect_finite(output: Tensor, what: str) -> None:
    """Expect numbers.

    Raises:
        ConformanceError: there are infinities or nans.
    """
    if not bool(output.isfinite().all()):
        raise ConformanceError(f"{what} is not finite")


def expect_same(output: Tensor, reference: Tensor, dtype: str, what: str) -> None:
    """Expect two outputs to agree as two orders of the same sums do.

    Raises:
        ConformanceError: they differ.
    """
    assert_close(output, reference.detach().cpu().double(), TOLERANCES[dtype].gradients, what)


def expect_depends(output: Tensor, reference: Tensor, what: str) -> None:
    """Expect a change of the inputs to have changed every token's output.

    Args:
        output: ``[..., h]``, of changed inputs.
        reference: of the inputs before.
        what: was changed, for the message.

    Raises:
        ConformanceError: some token's output is what it was.
    """
    if bool((output == reference).all(dim=-1).any()):
        raise ConformanceError(f"the output does not depend on {what}")


def expect_gradients(module: nn.Module, inputs: dict[str, Tensor]) -> None:
    """Expect that backward has given every parameter and input a finite gradient that is not zero.

    Raises:
        ConformanceError: with the names of those that it did not reach.
    """
    leaves = dict(module.named_parameters()) | inputs
    missing = [name for name, leaf in leaves.items() if leaf.grad is None or not bool(leaf.grad.count_nonzero())]
    if missing:
        raise ConformanceError(f"no gradient reaches {', '.join(missing)}")
    for name, leaf in leaves.items():
        assert leaf.grad is not None
        expect_finite(leaf.grad, f"the gradient of {name}")
