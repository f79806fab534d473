"""Scaled dot-product attention in plain PyTorch: the reference that every other core attention is held to."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transom.errors import ParallelError
from transom.transformer.attention_mask import AttentionMask
from transom.transformer.module import Module
from transom.transformer.sharding import Offset, ShardedStateDict, replica_of, sharded
from transom.transformer.utils import torch_dtype

if TYPE_CHECKING:
    from transom.slots.core_attention import CoreAttention, CoreAttentionBuilder, CoreAttentionRequest
    from transom.transformer.transformer_config import TransformerConfig

__all__ = ["DotProductAttention"]


@final
class DotProductAttention(Module):
    """Computes ``softmax(query · key * scale + bias) · value`` over the keys that the mask shows.

    The scores of one group of key/value heads are one matrix product, over the queries of all heads that read it, so
    that keys and values are never repeated. Everything runs in the inputs' dtype, float64 included, but the softmax,
    which runs in float32 at least when ``config.attention_softmax_in_fp32``.

    Args:
        config: ``softmax_type``, ``attention_softmax_in_fp32``, ``apply_query_key_layer_scaling``.
        request: heads, sizes, window, softcap and dropout.
        layer_number: counted from 1; changes nothing that is computed.
        softmax_scale: multiplies the scores; `None` = 1/sqrt(d).
        attention_dropout: probability of dropping a weight; `None` = the request's.

    Attributes:
        softmax_offset: ``[n]``, with ``softmax_type="learnable"``: each head's sink logit, from zero.

    Source: Vaswani et al. 2017; grouped heads: Ainslie et al. 2023; soft-capping: Gemma 2; sinks: Xiao et al. 2024.
    Layer scaling divides the scores by the layer's number and multiplies them back in float32, so that float16 does not
    overflow; here the product itself is in float32, which is the same mathematics, and cannot.

    Example:
        >>> from transom import BuildContext, TransformerConfig
        >>> from transom.slots.core_attention import CoreAttentionRequest
        >>> config = TransformerConfig(num_layers=1, hidden_size=32, num_attention_heads=4)
        >>> request = CoreAttentionRequest(
        ...     context=BuildContext(), num_attention_heads=4, num_query_groups=2, head_size=8, value_head_size=8
        ... )
        >>> attention = DotProductAttention(config, request=request, layer_number=1)
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
        super().__init__(config)
        self.softmax_scale = 1.0 / math.sqrt(request.head_size) if softmax_scale is None else softmax_scale
        self.dropout = request.dropout if attention_dropout is None else attention_dropout
        self.window = request.window
        self.softcap = request.softcap
        self.softmax_in_float32 = config.attention_softmax_in_fp32
        self.scores_in_float32 = config.apply_query_key_layer_scaling
        self.off_by_one = config.softmax_type == "off-by-one"
        self.softmax_offset: nn.Parameter | None = None
        if config.softmax_type == "learnable":
            dtype = torch_dtype(config.params_dtype)
            self.softmax_offset = nn.Parameter(torch.empty(request.num_attention_heads, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start with sinks of logit 0, if there are sinks."""
        if self.softmax_offset is not None:
            nn.init.zeros_(self.softmax_offset)

    def sharded_state_dict(
        self,
        prefix: str = "",
        sharded_offsets: tuple[Offset, ...] = (),
        metadata: Mapping[str, Any] | None = None,
    ) -> ShardedStateDict:
        """Describe the sinks, which are split like the heads.

        Raises:
            ParallelError: they are split, and ``metadata`` does not say ``tensor_parallel_rank``, as an attention that
                was made with a ``tp_group`` does.
        """
        if self.softmax_offset is None:
            return {}
        key, ranks = f"{prefix}softmax_offset", self.config.num_attention_heads // self.softmax_offset.numel()
        rank = (metadata or {}).get("tensor_parallel_rank", 0 if ranks == 1 else None)
        if rank is None:
            raise ParallelError(
                f"{key}: which of {ranks} parts this is, is not known.",
                hint="ask the attention around it, or give tensor_parallel_rank in metadata",
                key=key,
                ranks=ranks,
            )
        part, replica = (rank, 0) if ranks > 1 else (0, rank)
        replica_id = replica_of(metadata, tensor_parallel_rank=replica)
        return {key: sharded(key, self.softmax_offset, 0, part, ranks, sharded_offsets, replica_id=replica_id)}

    def forward(self, query: Tensor, key: Tensor, value: Tensor, *, mask: AttentionMask | None = None) -> Tensor:
        """Attend.

        Args:
            query: ``[b, s, n, d]``.
            key: ``[b, t, g, d]``; head i of the query reads group ``i // (n // g)``.
            value: ``[b, t, g, dv]``.
            mask: who may attend to whom, and biases; `None` = everyone to everyone within the request's window.

        Returns:
            ``[b, s, n, dv]`` in the query's dtype; zeros where a query may attend to nothing.
        """
        scores = self._mask(self._scores(query, key), mask)  # [b, n, s, t]
        weights = _softmax(scores, self._sink(scores)).to(value.dtype)
        weights = F.dropout(weights, self.dropout, self.training)
        return _weighted(weights, value)

    def _scores(self, query: Tensor, key: Tensor) -> Tensor:
        if self.scores_in_float32:
            query, key = _at_least_float32(query), _at_least_float32(key)
        b, s, n, _ = query.shape
        t, g = key.shape[1:3]
        grouped = query.view(b, s, g, n // g, -1).permute(0, 2, 3, 1, 4).flatten(2, 3)  # [b, g, n/g · s, d]
        scores = (grouped @ key.permute(0, 2, 3, 1)).view(b, n, s, t) * self.softmax_scale
        if self.softmax_in_float32:
            scores = _at_least_float32(scores)
        return scores if self.softcap is None else self.softcap * torch.tanh(scores / self.softcap)

    def _mask(self, scores: Tensor, mask: AttentionMask | None) -> Tensor:
        if mask is None:
            if self.window is None:
                return scores
            mask = AttentionMask()
        s, t = scores.shape[-2:]
        bias = mask.as_bias(s, t, dtype=scores.dtype, device=scores.device)
        visible = mask.as_bool(s, t, device=scores.device, window=self.window)
        scores = scores if bias is None else scores + bias
        return scores if visible is None else torch.where(visible, scores, float("-inf"))

    def _sink(self, scores: Tensor) -> Tensor | None:
        """The logit beside the keys' that takes weight and gives nothing, ``[n, 1, 1]``."""
        if self.off_by_one:
            return scores.new_zeros(1, 1, 1)
        return None if self.softmax_offset is None else self.softmax_offset.to(scores.dtype)[:, None, None]


def _softmax(scores: Tensor, sink: Tensor | None) -> Tensor:
    """Compute the softmax of ``[b, n, s, t]`` over t, with a sink in the denominator; a row of -inf gives zeros."""
    peak = scores.amax(dim=-1, keepdim=True)
    if sink is not None:
        peak = torch.maximum(peak, sink)
    # Any peak gives the same result: it takes no part in the gradient, and where all is -inf, 0 leaves exp(-inf) = 0.
    peak = peak.detach().masked_fill(peak == float("-inf"), 0.0)
    weights = (scores - peak).exp()
    total = weights.sum(dim=-1, keepdim=True)
    if sink is not None:
        total = total + (sink - peak).exp()
    return weights / total.masked_fill(total == 0.0, 1.0)


def _weighted(weights: Tensor, value: Tensor) -> Tensor:
    """Sum values ``[b, t, g, dv]`` by weights ``[b, n, s, t]``: ``[b, s, n, dv]``."""
    b, n, s, t = weights.shape
    g = value.shape[2]
    attended = weights.view(b, g, n // g * s, t) @ value.transpose(1, 2)
    return attended.view(b, n, s, -1).transpose(1, 2)


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


if TYPE_CHECKING:
    _builder: CoreAttentionBuilder = DotProductAttention

    def _is_a_core_attention(module: DotProductAttention) -> CoreAttention:
        return module
