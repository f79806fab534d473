"""Token cross-entropy whose logits are oneDNN's."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, final

from torch import Tensor, nn
from transom.transformer.loss import CrossEntropy

from transom_onednn_linear.product import linear, missing

if TYPE_CHECKING:
    from transom import TransformerConfig
    from transom.slots.loss import Loss, LossBuilder, LossRequest

__all__ = ["OneDNNCrossEntropy"]


@final
class OneDNNCrossEntropy(nn.Module):
    """Core's cross-entropy, with logits and gradients of the hidden states by oneDNN in float32 on a CPU.

    Where so many logits would be made that core makes them a chunk at a time, torch makes them.

    Args:
        config: is not read.
        request: ``ignore_index``, ``z_loss`` and ``softcap``.

    Example:
        >>> import torch
        >>> from transom import BuildContext, TransformerConfig
        >>> from transom.slots.loss import LossRequest
        >>> config = TransformerConfig(num_layers=1, hidden_size=2, num_attention_heads=1)
        >>> loss = OneDNNCrossEntropy(config, request=LossRequest(context=BuildContext(), vocab_size=8))
        >>> loss(torch.zeros(1, 2, 2), torch.randn(8, 2), torch.tensor([[3, -100]]))
        tensor([[2.0794, 0.0000]])
    """

    def __init__(self, config: TransformerConfig, *, request: LossRequest) -> None:
        super().__init__()
        self._loss = CrossEntropy(config, request=request, linear=linear)

    @classmethod
    def supports(cls, request: LossRequest) -> Iterable[str]:
        """Say why a request cannot be served; nothing when it can."""
        reason = missing()
        if reason is not None:
            yield reason

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
        losses: Tensor = self._loss(hidden, weight, labels, bias)
        return losses


if TYPE_CHECKING:
    _builder: LossBuilder = OneDNNCrossEntropy

    def _is_a_loss(module: OneDNNCrossEntropy) -> Loss:
        return module
