"""Core attention by Transformer Engine, which picks its own kernel: FlashAttention, cuDNN or its own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor
from transom import AttentionMask
from transom.errors import ParallelError
from transom.transformer.sharding import Offset, ShardedStateDict, replica_of, sharded
from transom.transformer.utils import torch_dtype

from transom_te_linear import engine
from transom_te_linear.host import TeHost
from transom_te_linear.installation import missing

if TYPE_CHECKING:
    from transom import TransformerConfig
    from transom.slots.core_attention import CoreAttention, CoreAttentionBuilder, CoreAttentionRequest
    from transom.transformer.attention_mask import Window

__all__ = ["TeAttention"]

_DRAWN = frozenset({"packed", "prefix", "padding", "positions", "keep"})
_SINKS = frozenset({"sink_off_by_one", "sink_learnable"})


@final
class TeAttention(TeHost):
    """Scaled dot-product attention; causality, windows and packed sequences are said, other masks are drawn.

    A mask that is drawn makes Transformer Engine fall back to its own kernel, which holds the matrix of scores.

    Args:
        config: ``softmax_type``, ``num_attention_heads`` over all ranks.
        request: heads, sizes, window and dropout.
        layer_number: counted from 1.
        softmax_scale: multiplies the scores; `None` = 1/sqrt(d).
        attention_dropout: overrides the request's dropout.

    Attributes:
        softmax_offset: ``[n]``, with ``softmax_type="learnable"``: each head's sink logit, from zero.

    Source: Vaswani et al. 2017; grouped heads: Ainslie et al. 2023; sinks: Xiao et al. 2024.
    """

    softmax_offset: Tensor | None

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
        self.adopt(
            partial(
                engine.make_attention,
                request.num_attention_heads,
                request.num_query_groups,
                request.head_size,
                scale=softmax_scale,
                dropout=request.dropout if attention_dropout is None else attention_dropout,
                softmax=config.softmax_type,
                layer_number=layer_number,
            ),
            {"softmax_offset": "softmax_offset"},
        )
        if config.softmax_type == "learnable":
            # Transformer Engine's own is made on the GPU whatever device models are made on.
            dtype = torch_dtype(config.params_dtype)
            self.softmax_offset = torch.nn.Parameter(torch.empty(request.num_attention_heads, dtype=dtype))
        self._heads = (config.num_attention_heads, request.num_attention_heads)
        self.reset_parameters()

    @classmethod
    def supports(cls, request: CoreAttentionRequest) -> Iterable[str]:
        """Say why a request cannot be served; nothing when it can."""
        drawn, sinks = sorted(request.features & _DRAWN), sorted(request.features & _SINKS)
        if drawn and sinks:
            yield f"{', '.join(sinks)} beside masks that are drawn ({', '.join(drawn)}) was never tried"
        if request.head_size > 256 or request.head_size % 8:
            yield f"head_size is {request.head_size}; it takes multiples of 8 up to 256"
        yield from missing(request.context)

    def reset_parameters(self) -> None:
        """Start with sinks of logit 0, if there are sinks."""
        if self.softmax_offset is not None:
            torch.nn.init.zeros_(self.softmax_offset)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, *, mask: AttentionMask | None = None) -> Tensor:
        """Attend: ``softmax(query · key * scale) · value`` over the keys that the mask shows.

        Args:
            query: ``[b, s, n, d]``.
            key: ``[b, t, g, d]``.
            value: ``[b, t, g, d]``.
            mask: who may attend to whom; `None` = everyone to everyone within the request's window.

        Returns:
            ``[b, s, n, d]``; zeros where a query sees no key.
        """
        mask = AttentionMask() if mask is None else mask
        window, beyond = _narrower(mask.window, self.window, mask.causal), mask.features - {"causal", "window"}
        layout = mask.as_varlen() if beyond == {"packed"} and window is not None else None
        if layout is not None and window is not None:
            out = engine.apply_packed_attention(
                self.inner,
                *(x.flatten(0, 1) for x in (query, key, value)),
                starts=(layout.cumulative_queries, layout.cumulative_keys),
                longest=(layout.max_query_length, layout.max_key_length),
                kind="padding_causal_bottom_right" if mask.causal else "padding",
                window=window,
            )
            return out.view_as(query).masked_fill(~layout.real[..., None, None], 0.0)
        if beyond or window is None or query.shape[1] > key.shape[1]:  # with more queries than keys, some may see none
            return self._drawn(query, key, value, mask)
        kind = "causal_bottom_right" if mask.causal else "no_mask"
        return engine.apply_attention(self.inner, query, key, value, kind=kind, window=window).view_as(query)

    def _drawn(self, query: Tensor, key: Tensor, value: Tensor, mask: AttentionMask) -> Tensor:
        s, t, device = query.shape[1], key.shape[1], query.device
        visible = mask.as_bool(s, t, device=device, window=self.window)
        if visible is None:
            out = engine.apply_attention(self.inner, query, key, value, kind="no_mask", window=(-1, -1))
            return out.view_as(query)
        seeing = visible.any(dim=-1, keepdim=True)
        hidden = (~visible & seeing).expand(len(query), -1, -1, -1)  # a row that sees nothing is shown all, and struck
        out = engine.apply_attention(self.inner, query, key, value, kind="arbitrary", window=(-1, -1), hidden=hidden)
        return out.view_as(query).masked_fill(~seeing.transpose(1, 2), 0.0)

    def sharded_state_dict(
        self,
        prefix: str = "",
        sharded_offsets: tuple[Offset, ...] = (),
        metadata: Mapping[str, Any] | None = None,
    ) -> ShardedStateDict:
        """Describe the sinks, which are split like the heads.

        Raises:
            ParallelError: they are split, and ``metadata`` does not say ``tensor_parallel_rank``.
        """
        if self.softmax_offset is None:
            return {}
        key, ranks = f"{prefix}softmax_offset", self._heads[0] // self._heads[1]
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


def _narrower(one: Window | None, other: Window | None, causal: bool) -> tuple[int, int] | None:
    """Combine two windows in Transformer Engine's words, where -1 = unbounded; `None` where it has none for them."""
    (left, right), (other_left, other_right) = one or (None, None), other or (None, None)
    nearer = _nearer(left, other_left), 0 if causal else _nearer(right, other_right)
    return nearer if causal or (nearer[0] < 0) == (nearer[1] < 0) else None


def _nearer(one: int | None, other: int | None) -> int:
    bounds = [bound for bound in (one, other) if bound is not None]
    return min(bounds) if bounds else -1


if TYPE_CHECKING:
    _builder: CoreAttentionBuilder = TeAttention

    def _is_a_core_attention(module: TeAttention) -> CoreAttention:
        return module
