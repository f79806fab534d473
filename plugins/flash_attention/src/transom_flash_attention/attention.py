"""Core attention on FlashAttention 2, 3 or 4."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple, final

import torch
from torch import Tensor, nn
from transom import AttentionMask
from transom.errors import ParallelError
from transom.transformer.sharding import Offset, ShardedModule, ShardedStateDict, replica_of, sharded
from transom.transformer.utils import torch_dtype

from transom_flash_attention.dense import attend_densely
from transom_flash_attention.operators import attend
from transom_flash_attention.options import FlashOptions
from transom_flash_attention.versions import choose, objections

if TYPE_CHECKING:
    from transom import TransformerConfig
    from transom.slots.core_attention import CoreAttentionBuilder, CoreAttentionRequest, PagedCoreAttention
    from transom.slots.kv_cache import Pages
    from transom.transformer.attention_mask import VarlenLayout, Window

__all__ = ["FlashAttention"]

_SAYABLE = frozenset({"causal", "window", "alibi"})


@final
class FlashAttention(ShardedModule):
    """Scaled dot-product attention that never holds a matrix of scores.

    The kernels are told causality, windows, ALiBi's slopes, where packed sequences begin, and, for a single query a
    row, how many keys of a cache are in use. Masks of other forms (segments that do not lie together, several queries
    at positions of their own) are right too, by definition: a dense matrix, told once in the log.

    Args:
        config: ``softmax_type``, ``params_dtype`` of the sinks, ``num_attention_heads`` over all ranks.
        request: heads, sizes, window, softcap and dropout.
        layer_number: changes nothing.
        softmax_scale: multiplies the scores; `None` = 1/sqrt(d).
        attention_dropout: overrides the request's dropout.
        options: `FlashOptions`.

    Attributes:
        version: of FlashAttention, 2, 3 or 4.
        softmax_offset: ``[n]``, with ``softmax_type="learnable"``: each head's sink logit, from zero.

    Raises:
        SpecError: no version that is installed can serve, or not the one that the options want.

    Source: Dao et al. 2022, Dao 2023, Shah et al. 2024; grouped heads: Ainslie et al. 2023; ALiBi: Press et al. 2022;
    soft-capping: Gemma 2; sinks: Xiao et al. 2024.
    """

    Options = FlashOptions

    def __init__(
        self,
        config: TransformerConfig,
        *,
        request: CoreAttentionRequest,
        layer_number: int,
        softmax_scale: float | None = None,
        attention_dropout: float | None = None,
        options: FlashOptions | None = None,
    ) -> None:
        super().__init__()
        chosen = choose(request, (options or FlashOptions()).version)
        self.version, self.reads = chosen.number, chosen.reads
        self.deterministic = request.context.deterministic
        self.softmax_scale = 1.0 / math.sqrt(request.head_size) if softmax_scale is None else softmax_scale
        self.dropout = request.dropout if attention_dropout is None else attention_dropout
        self.window = request.window
        self.softcap = request.softcap
        self.off_by_one = config.softmax_type == "off-by-one"
        self.softmax_offset: nn.Parameter | None = None
        if config.softmax_type == "learnable":
            dtype = torch_dtype(config.params_dtype)
            self.softmax_offset = nn.Parameter(torch.empty(request.num_attention_heads, dtype=dtype))
        self._ranks = config.num_attention_heads // request.num_attention_heads
        self.reset_parameters()

    @classmethod
    def supports(cls, request: CoreAttentionRequest) -> Iterable[str]:
        """Say why a request cannot be served; nothing when it can."""
        return objections(request)

    @classmethod
    def describe(cls, request: CoreAttentionRequest, options: FlashOptions | None) -> str:
        """Say which version will serve.

        Raises:
            SpecError: not the one that the options want.
        """
        return str(choose(request, (options or FlashOptions()).version))

    def reset_parameters(self) -> None:
        """Start with sinks of logit 0, if there are sinks."""
        if self.softmax_offset is not None:
            nn.init.zeros_(self.softmax_offset)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, *, mask: AttentionMask | None = None) -> Tensor:
        """Attend: ``softmax(query · key * scale + bias) · value`` over the keys that the mask shows.

        Args:
            query: ``[b, s, n, d]``.
            key: ``[b, t, g, d]``.
            value: ``[b, t, g, dv]``.
            mask: who may attend to whom; `None` = everyone to everyone within the request's window. Where it says at
                which positions single queries are, these are positions of the keys, of which key j is the one at j.

        Returns:
            ``[b, s, n, dv]``; zeros where a query sees no key.
        """
        mask = AttentionMask() if mask is None else mask
        said = _say(mask, query, key)
        if said is None:
            return self._densely(query, key, value, mask)
        if said.layout is None:
            return self._attend(query, key, value, mask, said)
        rows = query.shape[:2]
        query, key, value = (x.flatten(0, 1) for x in (query, key, value))  # [b, s, n, d] -> [b·s, n, d]
        return torch.unflatten(self._attend(query, key, value, mask, said), 0, rows)

    def attend_pages(self, query: Tensor, pages: Pages, *, mask: AttentionMask | None = None) -> Tensor:
        """Attend to what a paged cache holds: a single query a row in place, where the pages have a size that suits.

        Args:
            query: ``[b, s, n, d]``.
            pages: of keys and values.
            mask: over the positions, as for `forward`.

        Returns:
            ``[b, s, n, dv]``.
        """
        mask = AttentionMask() if mask is None else mask
        used = _used(mask, query, pages)
        if used is None or not self.reads(pages.key.shape[1]) or pages.key.dtype is not query.dtype:
            return self.forward(query, *pages.gathered(), mask=mask)
        return self._attend(query, pages.key, pages.value, mask, _Said(used=used, table=pages.table.int()))

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, mask: AttentionMask, said: _Said) -> Tensor:
        layout = said.layout
        left, right = _narrower(mask.window, self.window)
        attended: Tensor = attend(
            query,
            key,
            value,
            None if layout is None else layout.cumulative_queries,
            None if layout is None else layout.cumulative_keys,
            None if layout is None else layout.real.flatten(),
            said.used,
            said.table,
            None if mask.alibi_slopes is None else mask.alibi_slopes.float(),
            self._sink(query),
            0 if layout is None else layout.max_query_length,
            0 if layout is None else layout.max_key_length,
            self.softmax_scale,
            mask.causal,
            left,
            right,
            self.softcap or 0.0,
            self.dropout if self.training else 0.0,
            self.deterministic,
            self.version,
        )[0]
        return attended

    def _densely(self, query: Tensor, key: Tensor, value: Tensor, mask: AttentionMask) -> Tensor:
        if not torch.compiler.is_compiling():
            _tell(", ".join(sorted(mask.features)))
        return attend_densely(
            query,
            key,
            value,
            mask=mask,
            window=self.window,
            scale=self.softmax_scale,
            softcap=self.softcap,
            sink=self._sink(query),
            dropout=self.dropout if self.training else 0.0,
        )

    def _sink(self, query: Tensor) -> Tensor | None:
        """The logits beside the keys' that take weight and give nothing, ``[n]``."""
        if self.off_by_one:
            return query.new_zeros(query.shape[-2], dtype=torch.float32)
        return None if self.softmax_offset is None else self.softmax_offset.float()

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
        key = f"{prefix}softmax_offset"
        rank = (metadata or {}).get("tensor_parallel_rank", 0 if self._ranks == 1 else None)
        if rank is None:
            raise ParallelError(
                f"{key}: which of {self._ranks} parts this is, is not known.",
                hint="ask the attention around it, or give tensor_parallel_rank in metadata",
                key=key,
                ranks=self._ranks,
            )
        part, replica = (rank, 0) if self._ranks > 1 else (0, rank)
        replica_id = replica_of(metadata, tensor_parallel_rank=replica)
        return {key: sharded(key, self.softmax_offset, 0, part, self._ranks, sharded_offsets, replica_id=replica_id)}

    def extra_repr(self) -> str:
        """Say which version it runs."""
        return f"FlashAttention {self.version}"


class _Said(NamedTuple):
    """A mask in the kernels' words, beside its causality, window and slopes.

    Args:
        layout: of packed sequences.
        used: int32 ``[b]``: keys of each row that are in use.
        table: int32 ``[b, m]``: pages of each row.
    """

    layout: VarlenLayout | None = None
    used: Tensor | None = None
    table: Tensor | None = None


def _say(mask: AttentionMask, query: Tensor, key: Tensor) -> _Said | None:
    """Say a mask in the kernels' words; `None` when it has none for it."""
    beyond = mask.features - _SAYABLE
    if not beyond:
        return _Said()
    if beyond == {"packed"}:
        layout = mask.as_varlen()
        return None if layout is None else _Said(layout)
    if beyond == {"positions"} and _is_step(mask, query) and mask.query_positions is not None:
        return _Said(used=_counted(mask.query_positions, query, key.shape[1]))
    return None


def _is_step(mask: AttentionMask, query: Tensor) -> bool:
    """Whether there is a single query a row, which sees the keys up to its own, and no gradient is asked for."""
    asks = torch.is_grad_enabled() and query.requires_grad
    return query.shape[1] == 1 and mask.causal and mask.key_positions is None and not asks


def _counted(positions: Tensor, query: Tensor, t: int) -> Tensor:
    """Count the keys up to each row's query, int32 ``[b]``."""
    return (positions.flatten() + 1).clamp(0, t).int().expand(len(query)).contiguous()


def _used(mask: AttentionMask, query: Tensor, pages: Pages) -> Tensor | None:
    """Count the keys that each row's query sees in a cache; `None` when the kernels have no words for the mask."""
    if mask.features - _SAYABLE - {"positions"} or not _is_step(mask, query):
        return None
    if mask.query_positions is None:
        return pages.lengths.int()
    return _counted(mask.query_positions, query, pages.extent)


def _narrower(one: Window | None, other: Window | None) -> tuple[int, int]:
    """Combine two windows in the kernels' words, where -1 = unbounded."""
    (left, right), (other_left, other_right) = one or (None, None), other or (None, None)
    return _nearer(left, other_left), _nearer(right, other_right)


def _nearer(one: int | None, other: int | None) -> int:
    bounds = [bound for bound in (one, other) if bound is not None]
    return min(bounds) if bounds else -1


@cache
def _tell(features: str) -> None:
    logging.getLogger("transom").warning(
        "flash_attention computes masks of this form (%s) from a dense matrix: FlashAttention cannot be told them",
        features,
    )


if TYPE_CHECKING:
    _builder: CoreAttentionBuilder = FlashAttention

    def _is_a_core_attention(module: FlashAttention) -> PagedCoreAttention:
        return module
