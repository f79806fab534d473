"""Core attention on `torch.nn.functional.scaled_dot_product_attention`, which picks its own kernel."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transom import AttentionMask

if TYPE_CHECKING:
    from transom import TransformerConfig
    from transom.slots.core_attention import CoreAttention, CoreAttentionBuilder, CoreAttentionRequest

__all__ = ["TorchDotProductAttention"]


@final
class TorchDotProductAttention(nn.Module):
    """Scaled dot-product attention by torch's own kernels: flash, memory-efficient, cuDNN or plain mathematics.

    Torch picks the kernel, by device, dtype, head size and the form of the mask; the fewer it is told, the faster the
    one that it can pick. So a mask that is plainly causal is said and not drawn, key and value heads are not repeated,
    and a dense mask is drawn once a step, by the mask object, for all layers.

    Args:
        config: the model's config; everything that is needed of it is in the request.
        request: heads, sizes, window and dropout.
        layer_number: changes nothing.
        softmax_scale: multiplies the scores; None = 1/sqrt(d).
        attention_dropout: overrides the request's dropout.

    Source: Vaswani et al. 2017; grouped heads: Ainslie et al. 2023. Torch's own convention aligns causality top-left
    and leaves a query without visible keys to the kernel; here it is bottom-right, and such a query yields zeros.

    Example:
        >>> from transom import BuildContext, TransformerConfig
        >>> from transom.slots.core_attention import CoreAttentionRequest
        >>> request = CoreAttentionRequest(
        ...     context=BuildContext(), num_attention_heads=4, num_query_groups=2, head_size=8, value_head_size=8
        ... )
        >>> config = TransformerConfig(num_layers=1, hidden_size=32, num_attention_heads=4)
        >>> attention = TorchDotProductAttention(config, request=request, layer_number=1)
        >>> query, key = torch.randn(1, 3, 4, 8), torch.randn(1, 5, 2, 8)
        >>> attention(query, key, key, mask=AttentionMask(causal=True)).shape
        torch.Size([1, 3, 4, 8])
    """

    def __init__(
        self,
        config: TransformerConfig,
        *,
        request: CoreAttentionRequest,
        layer_number: int,
        softmax_scale: float | None = None,
        attention_dropout: float | None = None,
    ) -> None:
        super().__init__()
        self.window = request.window
        self.grouped = request.num_query_groups != request.num_attention_heads
        self.softmax_scale = softmax_scale
        self.dropout = request.dropout if attention_dropout is None else attention_dropout

    @classmethod
    def supports(cls, request: CoreAttentionRequest) -> Iterable[str]:
        """Say why a request cannot be served; nothing when it can."""
        context = request.context
        trains_on_cuda = context.device == "cuda" and context.mode == "train"
        if context.deterministic and trains_on_cuda and not torch.are_deterministic_algorithms_enabled():
            yield (
                "its backward pass on cuda gives the same bits only after torch.use_deterministic_algorithms(True), "
                "which is off"
            )

    def forward(self, query: Tensor, key: Tensor, value: Tensor, *, mask: AttentionMask | None = None) -> Tensor:
        """Attend: ``softmax(query · key * scale + bias) · value`` over the keys that the mask shows.

        Args:
            query: ``[b, s, n, d]``.
            key: ``[b, t, g, d]``.
            value: ``[b, t, g, dv]``.
            mask: who may attend to whom, and biases; `None` = everyone to everyone within the request's window.

        Returns:
            ``[b, s, n, dv]``; zeros where a query sees no key.
        """
        said = self._say(mask, query, key.shape[1])
        attended = F.scaled_dot_product_attention(
            query.transpose(1, 2),  # [b, s, n, d] -> [b, n, s, d]
            key.transpose(1, 2),  # [b, t, g, d] -> [b, g, t, d]
            value.transpose(1, 2),
            attn_mask=said.attend,
            is_causal=said.is_causal,
            dropout_p=self.dropout if self.training else 0.0,
            scale=self.softmax_scale,
            enable_gqa=self.grouped,
        )
        if said.blind is not None:  # zeros, and no gradient goes back through them
            attended = attended.masked_fill(said.blind, 0.0)
        return attended.transpose(1, 2)  # [b, n, s, dv] -> [b, s, n, dv]

    def _say(self, mask: AttentionMask | None, query: Tensor, t: int) -> _Said:
        """Say the mask in torch's words, the cheapest that hold."""
        if mask is None and self.window is None:
            return _EVERYTHING
        mask = AttentionMask() if mask is None else mask
        s = query.shape[1]
        if (s in (1, t)) and mask.is_plain_causal(self.window):
            # The last query sees every key; torch aligns top-left, which is the same only when s == t.
            return _EVERYTHING if s == 1 else _CAUSAL
        # As a term of the scores: torch would make one of a boolean mask, and keep one a layer for the backward pass.
        opened = mask.as_opened(s, t, dtype=query.dtype, device=query.device, window=self.window)
        return _EVERYTHING if opened is None else _Said(opened.added, blind=opened.blind)


class _Said(NamedTuple):
    """A mask in torch's words.

    Args:
        attend: what is added to the scores, ``[b or 1, n or 1, s, t]``.
        is_causal: causality, aligned top-left.
        blind: bool ``[b or 1, n or 1, s, 1]``, True = this query sees nothing, though `attend` shows it all keys.
    """

    attend: Tensor | None = None
    is_causal: bool = False
    blind: Tensor | None = None


_EVERYTHING = _Said()
_CAUSAL = _Said(is_causal=True)


if TYPE_CHECKING:
    _builder: CoreAttentionBuilder = TorchDotProductAttention

    def _is_a_core_attention(module: TorchDotProductAttention) -> CoreAttention:
        return module
