"""Token cross-entropy by Liger Kernel, fused with the output layer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, final

from torch import Tensor, nn

from transom_liger import kernels
from transom_liger.installation import missing

if TYPE_CHECKING:
    from transom import TransformerConfig
    from transom.slots.loss import Loss, LossBuilder, LossRequest

__all__ = ["LigerCrossEntropy"]


@final
class LigerCrossEntropy(nn.Module):
    """``logsumexp(logits) - logits[label]`` of every token, the logits made for a part of the tokens at a time.

    Backward makes them again, since what each token's loss is worth is known only then. The weight's gradient is summed
    in float32.

    Args:
        config: is not read: all that matters is in the request.
        request: ``ignore_index``, ``z_loss`` and ``softcap``.

    Source: Hsu et al. 2024 (Liger Kernel), section 3.2.

    Example:
        >>> from transom import BuildContext, TransformerConfig
        >>> from transom.slots.loss import LossRequest
        >>> config = TransformerConfig(num_layers=1, hidden_size=2, num_attention_heads=1)
        >>> LigerCrossEntropy(config, request=LossRequest(context=BuildContext(), vocab_size=8, z_loss=1e-4))
        LigerCrossEntropy(ignore_index=-100, z_loss=0.0001, softcap=None)
    """

    def __init__(self, config: TransformerConfig, *, request: LossRequest) -> None:
        super().__init__()
        self.ignore_index, self.z_loss, self.softcap = request.ignore_index, request.z_loss, request.softcap

    @classmethod
    def supports(cls, request: LossRequest) -> Iterable[str]:
        """Say why a request cannot be served; nothing when it can."""
        reason = missing("fused_linear_cross_entropy")
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
            ``[b, s]`` in nats, float32.
        """
        tokens = hidden.flatten(0, -2), weight, labels.flatten(), bias
        return kernels.cross_entropy(*tokens, self.ignore_index, self.z_loss, self.softcap).view(labels.shape)

    def extra_repr(self) -> str:
        """Say what the request asked for."""
        return f"ignore_index={self.ignore_index}, z_loss={self.z_loss}, softcap={self.softcap}"


if TYPE_CHECKING:
    _builder: LossBuilder = LigerCrossEntropy

    def _is_a_loss(module: LigerCrossEntropy) -> Loss:
        return module
