"""Token cross-entropy from hidden states and the output weight."""

from __future__ import annotations

from typing import TYPE_CHECKING, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transom.transformer.chunked_loss import chunked_cross_entropy
from transom.transformer.kept_logits import cross_entropy_of_kept_logits

if TYPE_CHECKING:
    from transom.slots.loss import Loss, LossBuilder, LossRequest
    from transom.transformer.linear import LinearProduct
    from transom.transformer.transformer_config import TransformerConfig

__all__ = ["CrossEntropy"]

_WHOLE = 2**24
"""Up to so many logits are made at once: 64 MiB in float32."""


@final
class CrossEntropy(nn.Module):
    """``logsumexp(logits) - logits[label]`` of every token, with ``logits = hidden @ weight.T + bias``.

    With z-loss, ``z * logsumexp(logits)²`` is added, which keeps the partition function near one. Logits are made in
    the hidden states' dtype and everything after them in float32 (float64 for float64). Where all tokens' logits
    together would be large, they are made for a chunk of tokens at a time, and again in the backward pass; otherwise
    they are kept, once, and become their own gradients.

    Args:
        config: is not read: all that matters is in the request.
        request: ``ignore_index``, ``z_loss`` and ``softcap``.
        linear: makes all tokens' logits; those of a chunk are `torch.nn.functional.linear`'s.

    Source: z-loss: Chowdhery et al. 2022 (PaLM), section 5; soft-capping: Gemma 2.

    Example:
        >>> from transom import BuildContext, TransformerConfig
        >>> from transom.slots.loss import LossRequest
        >>> config = TransformerConfig(num_layers=1, hidden_size=2, num_attention_heads=1)
        >>> loss = CrossEntropy(config, request=LossRequest(context=BuildContext(), vocab_size=8))
        >>> loss(torch.zeros(1, 2, 2), torch.randn(8, 2), torch.tensor([[3, -100]]))
        tensor([[2.0794, 0.0000]])
    """

    def __init__(self, config: TransformerConfig, *, request: LossRequest, linear: LinearProduct = F.linear) -> None:
        super().__init__()
        self._linear = linear
        self.ignore_index = request.ignore_index
        self.z_loss = request.z_loss
        self.softcap = request.softcap

    def forward(self, hidden: Tensor, weight: Tensor, labels: Tensor, bias: Tensor | None = None, /) -> Tensor:
        """Compute each token's loss.

        Args:
            hidden: ``[b, s, h]``.
            weight: ``[v, h]``.
            labels: integer ids ``[b, s]``; those that are ``ignore_index`` cost nothing.
            bias: ``[v]``, or `None`.

        Returns:
            ``[b, s]`` in nats, float32 (float64 for float64 hidden states).
        """
        if labels.numel() * weight.shape[0] > _WHOLE:
            chunk = max(1, _WHOLE // weight.shape[0])
            return chunked_cross_entropy(
                hidden, weight, labels, bias, self.ignore_index, self.z_loss, chunk, self.softcap
            )
        if self.softcap is None and _is_plain(hidden, weight):
            flat, ids = hidden.flatten(0, -2), labels.flatten()  # [b·s, h], [b·s]
            losses = cross_entropy_of_kept_logits(flat, weight, ids, bias, self.ignore_index, self.z_loss, self._linear)
            return losses.view_as(labels)
        logits = self._linear(hidden, weight, bias).flatten(0, -2)  # [b·s, v]
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        losses = F.cross_entropy(logits, labels.flatten(), ignore_index=self.ignore_index, reduction="none")
        if self.z_loss:
            penalty = self.z_loss * logits.logsumexp(-1).square()
            losses = losses + penalty.masked_fill(labels.flatten() == self.ignore_index, 0.0)
        return losses.view(labels.shape)


def _is_plain(hidden: Tensor, weight: Tensor) -> bool:
    """Whether nothing but autograd looks on: a compiler, an autocast and function transforms want operations."""
    is_watched = torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()
    is_cast = hidden.dtype != weight.dtype or torch.is_autocast_enabled(hidden.device.type)
    return not is_watched and not is_cast and type(hidden) is Tensor and type(weight) in (Tensor, nn.Parameter)


if TYPE_CHECKING:
    _builder: LossBuilder = CrossEntropy

    def _is_a_loss(module: CrossEntropy) -> Loss:
        return module
