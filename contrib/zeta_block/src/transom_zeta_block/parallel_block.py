"""What the published block and the layer both compute, over parts that they are given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transom import AttentionMask
from transom.transformer.sharding import ShardedModule

from transom_zeta_block.rotary import XPosRotary

if TYPE_CHECKING:
    from transom.slots.core_attention import CoreAttention
    from transom.slots.kv_cache import LayerCache

__all__ = ["BiasFreeLayerNorm", "BlockShape", "FinetuneModule", "ParallelBlock", "SwiGLU"]

FinetuneModule = Callable[[Tensor], Tensor]
"""Maps what a projection reads to what is added to its output."""


@dataclass(frozen=True)
class BlockShape:
    """Sizes of a block, and the mathematics that its arguments choose.

    Args:
        dim: width of input and output.
        dim_head: d, size of a head.
        heads: n, query heads; there is one key/value head.
        ff_inner: inner width of the feed-forward half.
        eps: of the norm.
        qk_rmsnorm: give queries and keys unit length and learned scales.
        use_xpos: rotate with xPos decay; False = rotate alone.
        xpos_scale_base: of the decay.
    """

    dim: int
    dim_head: int
    heads: int
    ff_inner: int
    eps: float = 1e-5
    qk_rmsnorm: bool = False
    use_xpos: bool = True
    xpos_scale_base: int = 512

    @property
    def fused(self) -> tuple[int, int, int, int]:
        """Widths of the fused projection: queries, key, value, feed-forward."""
        return self.heads * self.dim_head, self.dim_head, self.dim_head, 2 * self.ff_inner


@final
class BiasFreeLayerNorm(nn.Module):
    """Layer normalisation with a scale ``g [dim]`` and no bias; statistics in float32 at least."""

    def __init__(self, dim: int, eps: float, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.eps = eps
        self.g = nn.Parameter(torch.empty(dim, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start with a scale of ones."""
        nn.init.ones_(self.g)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[..., dim]`` to the same shape and dtype."""
        return F.layer_norm(x, self.g.shape, self.g, None, self.eps)


@final
class SwiGLU(nn.Module):
    """``first * silu(second)`` of the two halves of the last dimension (Shazeer 2020)."""

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[..., 2 f]`` to ``[..., f]``."""
        first, gate = x.chunk(2, dim=-1)
        return F.silu(gate) * first


class ParallelBlock(ShardedModule):
    """``attn_out(attention(x)) + ff_out(feed-forward(x))`` of one normed x, both read from one fused projection.

    Args:
        shape: sizes and mathematics.
        fused_attn_ff_proj: from dim to `BlockShape.fused`; it may return ``(output, None)``, as do the others.
        attend: core attention of n heads over one key/value head; it has the score's scale.
        attn_out: from n·d to dim.
        ff_proj: from ff_inner to dim.
        ff_dropout: probability of dropping an inner activation of the feed-forward half.
        cached_heads: key/value heads that caches hold; the one is repeated as often.
        dtype: of the parameters that are not in the parts; `None` = torch's default.

    Source: Wang & Komatsuzaki 2021 (GPT-J) and Chowdhery et al. 2022 (PaLM), section 2, for the parallel halves; one
    key/value head: Shazeer 2019; norms of queries and keys: Dehghani et al. 2023.
    """

    q_scale: nn.Parameter | None
    k_scale: nn.Parameter | None

    def __init__(
        self,
        shape: BlockShape,
        *,
        fused_attn_ff_proj: Any,
        attend: CoreAttention | nn.Module,
        attn_out: Any,
        ff_proj: Any,
        ff_dropout: float,
        cached_heads: int = 1,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.shape = shape
        self.cached_heads = cached_heads
        self.norm = BiasFreeLayerNorm(shape.dim, shape.eps, dtype)
        for name in ("q_scale", "k_scale"):
            scale = nn.Parameter(torch.empty(shape.dim_head, dtype=dtype)) if shape.qk_rmsnorm else None
            self.register_parameter(name, scale)
        self.rotary_emb = XPosRotary(shape.dim_head, shape.xpos_scale_base, shape.use_xpos, dtype)
        self.fused_attn_ff_proj = fused_attn_ff_proj
        self.attend = attend
        self.attn_out = attn_out
        self.ff_out = nn.Sequential(SwiGLU(), nn.Dropout(ff_dropout), ff_proj)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start with scales of ones, if queries and keys are normed."""
        for scale in (self.q_scale, self.k_scale):
            if scale is not None:
                nn.init.ones_(scale)

    def branch(
        self,
        x: Tensor,
        *,
        mask: AttentionMask | None,
        positions: Tensor | None = None,
        cache: LayerCache | None = None,
        finetune: Sequence[FinetuneModule | None] = (None, None, None, None),
    ) -> Tensor:
        """Compute the block, without a residual.

        Args:
            x: ``[b, s, dim]``.
            mask: who may attend to whom; `None` = everyone to everyone.
            positions: of the tokens, ``[s]`` or ``[b, s]``; `None` = 0 ... s-1. A cache needs them.
            cache: of ``cached_heads``.
            finetune: for queries, key and value, which see the normed x, and for attn_out, which sees the merged heads;
                what they return is added.

        Returns:
            ``[b, s, dim]``.
        """
        lora_q, lora_k, lora_v, lora_o = finetune
        x = self.norm(x)
        query, key, value, ff = _output(self.fused_attn_ff_proj(x)).split_with_sizes(self.shape.fused, dim=-1)
        query = _plus(query, lora_q, x).view(*x.shape[:2], self.shape.heads, -1)  # [b, s, n·d] -> [b, s, n, d]
        key, value = _plus(key, lora_k, x).unsqueeze(2), _plus(value, lora_v, x).unsqueeze(2)  # [b, s, 1, d]
        query, key = self._prepare(query, key, positions, centre=x.shape[1] // 2 if cache is None else 0)
        if cache is not None:
            repeated = (x.expand(-1, -1, self.cached_heads, -1) for x in (key, value))
            # The cache refuses to be used without positions, and says so better than a check here would.
            key, value, _ = cache.update(*repeated, positions)  # type: ignore[call-arg]
            key, value, mask = key[:, :, :1], value[:, :, :1], cache.mask(mask)
        merged = self.attend(query, key, value, mask=mask).flatten(2)  # [b, s, n, d] -> [b, s, n·d]
        attended = _plus(_output(self.attn_out(merged)), lora_o, merged)
        return attended + _output(self.ff_out(ff))

    def _prepare(self, query: Tensor, key: Tensor, positions: Tensor | None, *, centre: int) -> tuple[Tensor, Tensor]:
        """Norm and rotate."""
        if self.q_scale is not None and self.k_scale is not None:
            query, key = _unit(query) * self.q_scale, _unit(key) * self.k_scale
        if positions is None:
            positions = torch.arange(query.shape[1], device=query.device)
        rotated: tuple[Tensor, Tensor] = self.rotary_emb(query, key, positions, centre=centre)
        return rotated


def _output(result: Tensor | tuple[Tensor, None]) -> Tensor:
    """The output of a linear of torch's, or of one of Transom's, which return a bias too."""
    return result[0] if isinstance(result, tuple) else result


def _plus(projected: Tensor, finetune: FinetuneModule | None, x: Tensor) -> Tensor:
    return projected if finetune is None else projected + finetune(x)


def _unit(x: Tensor) -> Tensor:
    """Divide each head by its Euclidean length, computed in float32 at least."""
    return F.normalize(x.to(torch.promote_types(x.dtype, torch.float32)), dim=-1).to(x.dtype)
