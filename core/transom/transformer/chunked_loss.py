"""Token cross-entropy that never holds the logits of all tokens.

Forward keeps each token's log-partition alone, and backward makes the logits again: one more product with the output
weight is the price of not storing tokens times vocabulary numbers. Both run as operators of their own, which a compiler
takes as they are instead of unrolling the chunks.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["chunked_cross_entropy"]


def chunked_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    bias: Tensor | None,
    ignore_index: int,
    z_loss: float,
    chunk: int,
    softcap: float | None = None,
) -> Tensor:
    """Compute each token's loss, the logits of ``chunk`` tokens at a time.

    Args:
        hidden: ``[..., h]``.
        weight: ``[v, h]``.
        labels: integer ids ``[...]``.
        bias: ``[v]``, or `None`.
        ignore_index: the label that costs nothing.
        z_loss: weight of the squared log-partition.
        chunk: number of tokens.
        softcap: of the logits; `None` = they stay as they are.

    Returns:
        ``[...]`` in nats, float32 (float64 for float64 hidden states).

    Example:
        >>> hidden, weight = torch.randn(5, 4), torch.randn(7, 4)
        >>> labels = torch.tensor([0, 1, 2, 3, 4])
        >>> losses = chunked_cross_entropy(hidden, weight, labels, None, -100, 0.0, 2)
        >>> torch.allclose(losses, F.cross_entropy(hidden @ weight.T, labels, reduction="none"), atol=1e-5)
        True
    """
    flat = hidden.flatten(0, -2)  # [tokens, h]
    losses: Tensor = _losses(flat, weight, labels.flatten(), bias, ignore_index, z_loss, chunk, softcap)[0]
    return losses.view(labels.shape)


@torch.library.custom_op("transom::chunked_cross_entropy", mutates_args=())
def _losses(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    bias: Tensor | None,
    ignore_index: int,
    z_loss: float,
    chunk: int,
    softcap: float | None,
) -> tuple[Tensor, Tensor]:
    """Losses and log-partitions, both ``[tokens]``."""
    log_partition = hidden.new_empty(len(labels), dtype=_wide(hidden))
    losses = torch.empty_like(log_partition)
    for tokens in _chunks(len(labels), chunk):
        logits = _logits(hidden[tokens], weight, bias, softcap)  # [chunk, v]
        ignored = labels[tokens] == ignore_index
        target = logits.gather(-1, labels[tokens].masked_fill(ignored, 0)[:, None])[:, 0]
        log_z = logits.logsumexp(-1)
        log_partition[tokens] = log_z
        losses[tokens] = (log_z - target + z_loss * log_z.square()).masked_fill(ignored, 0.0)
    return losses, log_partition


@_losses.register_fake
def _(hidden: Tensor, weight: Tensor, labels: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    made = hidden.new_empty(labels.shape, dtype=_wide(hidden))
    return made, torch.empty_like(made)


@torch.library.custom_op("transom::chunked_cross_entropy_backward", mutates_args=())
def _gradients(
    grad: Tensor,
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    bias: Tensor | None,
    log_partition: Tensor,
    ignore_index: int,
    z_loss: float,
    chunk: int,
    softcap: float | None,
    needs_hidden: bool,
    needs_weight: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of hidden, weight and bias; empty where they are not needed."""
    wide = _wide(hidden)
    grad_hidden = torch.empty_like(hidden) if needs_hidden else hidden.new_empty(0)
    grad_weight = torch.zeros_like(weight, dtype=wide) if needs_weight else weight.new_empty(0, dtype=wide)
    grad_bias = weight.new_zeros(weight.shape[:1] if bias is not None else 0, dtype=wide)
    for tokens in _chunks(len(labels), chunk):
        ignored = labels[tokens] == ignore_index
        log_z, cotangent = log_partition[tokens, None], grad[tokens].masked_fill(ignored, 0.0)[:, None]
        # d loss / d logits = softmax (1 + 2 z log_z) - one_hot(label)
        logits = _logits(hidden[tokens], weight, bias, softcap)  # [chunk, v]
        slope = (logits - log_z).exp_().mul_(1 + 2 * z_loss * log_z)
        rows = torch.arange(len(ignored), device=slope.device)
        slope[rows, labels[tokens].masked_fill(ignored, 0)] -= 1.0  # no sum over indices: the same bits every time
        slope.mul_(cotangent)
        if softcap is not None:
            slope.mul_(1 - (logits / softcap).square())  # the derivative of c tanh(x / c)
        grad_bias += slope.sum(0) if bias is not None else 0
        slope = slope.to(hidden.dtype)
        if needs_hidden:
            grad_hidden[tokens] = slope @ weight  # [chunk, v] @ [v, h]
        if needs_weight and grad_weight.dtype == slope.dtype:
            grad_weight.addmm_(slope.T, hidden[tokens])  # [v, chunk] @ [chunk, h]
        elif needs_weight:
            grad_weight += slope.T @ hidden[tokens]
    return grad_hidden, grad_weight.to(weight.dtype), grad_bias.to(weight.dtype)


@_gradients.register_fake
def _(
    grad: Tensor, hidden: Tensor, weight: Tensor, labels: Tensor, bias: Tensor | None, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    needs_hidden, needs_weight = rest[-2:]
    return (
        torch.empty_like(hidden) if needs_hidden else hidden.new_empty(0),
        torch.empty_like(weight) if needs_weight else weight.new_empty(0),
        weight.new_empty(weight.shape[:1] if bias is not None else 0),
    )


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    hidden, weight, labels, bias, *numbers = inputs
    ctx.save_for_backward(hidden, weight, labels, bias, output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.numbers = numbers


def _backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    needs_hidden, needs_weight, _, needs_bias = ctx.needs_input_grad[:4]
    found = _gradients(grad.contiguous(), *ctx.saved_tensors, *ctx.numbers, needs_hidden, needs_weight)
    grad_hidden, grad_weight, grad_bias = found
    return (
        grad_hidden if needs_hidden else None,
        grad_weight if needs_weight else None,
        None,
        grad_bias if needs_bias else None,
        None,
        None,
        None,
        None,
    )


_losses.register_autograd(_backward, setup_context=_keep)


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, softcap: float | None) -> Tensor:
    logits = F.linear(hidden, weight, bias).to(_wide(hidden))
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _chunks(length: int, size: int) -> list[slice]:
    return [slice(start, start + size) for start in range(0, length, size)]
