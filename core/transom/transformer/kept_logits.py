"""Token cross-entropy that keeps the logits of all tokens, once, and turns them into their gradients in place."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from transom.transformer.linear import LinearProduct

__all__ = ["cross_entropy_of_kept_logits"]

_ROWS = 128
"""So many tokens' exponentials are made at once: they stay in a processor's cache."""


def cross_entropy_of_kept_logits(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    bias: Tensor | None,
    ignore_index: int,
    z_loss: float,
    linear: LinearProduct = F.linear,
) -> Tensor:
    """Compute each token's loss; nothing of the logits' size is made but the logits.

    Args:
        hidden: ``[tokens, h]``.
        weight: ``[v, h]``, of the same dtype.
        labels: integer ids ``[tokens]``.
        bias: ``[v]``, or `None`.
        ignore_index: the label that costs nothing.
        z_loss: weight of the squared log-partition.
        linear: makes the logits and the gradient of ``hidden``: ``linear(x, weight, bias)`` is ``x @ weight.T + bias``.

    Returns:
        ``[tokens]`` in nats, float32 (float64 for float64 hidden states).

    Example:
        >>> hidden, weight, labels = torch.randn(5, 4), torch.randn(7, 4), torch.tensor([0, 1, 2, 3, 4])
        >>> losses = cross_entropy_of_kept_logits(hidden, weight, labels, None, -100, 0.0)
        >>> torch.allclose(losses, F.cross_entropy(hidden @ weight.T, labels, reduction="none"), atol=1e-5)
        True
    """
    return _CrossEntropy.apply(hidden, weight, labels, bias, ignore_index, z_loss, linear)


class _CrossEntropy(torch.autograd.Function):
    if TYPE_CHECKING:  # torch leaves it untyped

        @classmethod
        def apply(cls, *args: Any) -> Tensor: ...

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        labels: Tensor,
        bias: Tensor | None,
        ignore_index: int,
        z_loss: float,
        linear: LinearProduct,
    ) -> Tensor:
        logits = linear(hidden, weight, bias)  # [tokens, v]
        ignored = labels == ignore_index
        where = labels.masked_fill(ignored, 0)[:, None]  # [tokens, 1]
        log_z = _log_partition(logits)
        losses = log_z - logits.gather(-1, where)
        if z_loss:
            losses += z_loss * log_z.square()
        ctx.save_for_backward(hidden, weight, bias, where, ignored, log_z)
        ctx.logits, ctx.z_loss, ctx.linear = logits, z_loss, linear
        return losses[:, 0].masked_fill_(ignored, 0.0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, where, ignored, log_z = ctx.saved_tensors
        cotangent = grad.masked_fill(ignored, 0.0)[:, None]  # [tokens, 1]
        if torch.is_grad_enabled():  # gradients of these gradients will be asked for
            slopes = _slopes(ctx.linear(hidden, weight, bias), where, cotangent, ctx.z_loss)
        else:
            # The logits become their own gradients; who goes back through the graph again has them made again.
            slopes = ctx.linear(hidden, weight, bias) if ctx.logits is None else ctx.logits
            ctx.logits = None
            _become_slopes(slopes, where, cotangent, log_z, ctx.z_loss)
        needs_hidden, needs_weight, _, needs_bias = ctx.needs_input_grad[:4]
        return (
            ctx.linear(slopes, weight.T, None) if needs_hidden else None,  # [tokens, v] @ [v, h]
            slopes.T @ hidden if needs_weight else None,  # [v, tokens] @ [tokens, h]
            None,
            slopes.sum(0) if needs_bias else None,
            None,
            None,
            None,
        )


def _log_partition(logits: Tensor) -> Tensor:
    """Compute ``logsumexp`` of each row, ``[tokens, 1]``; all exponentials are made in the same memory."""
    space = logits.new_empty(min(_ROWS, len(logits)), logits.shape[1], dtype=_wide(logits))
    found = []
    for rows in _parts(logits):
        peak = rows.amax(-1, keepdim=True).to(space.dtype)
        peak.masked_fill_(peak.isinf(), 0.0)
        shifted = space[: len(rows)]
        torch.sub(rows if rows.dtype == space.dtype else shifted.copy_(rows), peak, out=shifted)
        found.append(shifted.exp_().sum(-1, keepdim=True).log_().add_(peak))
    return torch.cat(found) if found else space.new_empty(0, 1)


def _become_slopes(logits: Tensor, where: Tensor, cotangent: Tensor, log_z: Tensor, z_loss: float) -> None:
    """Write d loss / d logits = softmax (1 + 2 z log_z) - one_hot(label), times the cotangent, over the logits."""
    scale = cotangent * (1 + 2 * z_loss * log_z)
    parts = map(_parts, (logits, where, cotangent, log_z, scale))
    for rows, label, factor, shift, share in zip(*parts, strict=True):
        slope = rows.to(_wide(rows)).sub_(shift).exp_().mul_(share)
        slope.scatter_add_(-1, label, -factor)
        if slope.dtype != rows.dtype:
            rows.copy_(slope)


def _slopes(logits: Tensor, where: Tensor, cotangent: Tensor, z_loss: float) -> Tensor:
    """Compute the same in operations that can be differentiated."""
    wide = logits.to(_wide(logits))
    log_z = wide.logsumexp(-1, keepdim=True)
    shares = (wide - log_z).exp() * (1 + 2 * z_loss * log_z)
    slopes = cotangent * shares.scatter_add(-1, where, -torch.ones_like(log_z))
    return slopes.to(logits.dtype)


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _parts(x: Tensor) -> list[Tensor]:
    return [x[start : start + _ROWS] for start in range(0, len(x), _ROWS)]
