"""The key/value cache slot: what a model has seen, kept for decoding token by token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from transom.slots.request import Request
from transom.slots.slot import Slot

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from transom.transformer.attention_mask import AttentionMask, Window
    from transom.transformer.transformer_config import TransformerConfig

__all__ = [
    "KV_CACHE",
    "CacheStep",
    "KVCache",
    "KVCacheBuilder",
    "KVCacheRequest",
    "LayerCache",
    "PagedLayerCache",
    "Pages",
]


@dataclass(frozen=True, kw_only=True)
class KVCacheRequest(Request):
    """What a cache must serve; its context says ``mode="infer"`` in every plan, for that is what it is for.

    Args:
        windows: of each layer, ``(left, right)`` token distances, `None` = unbounded: its length is the number of
            layers.
        num_query_groups: g, key/value heads of this rank.
        head_size: d of keys.
        value_head_size: dv of values.
    """

    windows: tuple[Window | None, ...]
    num_query_groups: int
    head_size: int
    value_head_size: int


class LayerCache(Protocol):
    """The keys and values that one attention of one layer has seen; self- and cross-attention have separate entries."""

    def update(self, key: Tensor, value: Tensor, positions: Tensor, /) -> tuple[Tensor, Tensor, Tensor]:
        """Write new keys and values, and return all that the new tokens may attend to.

        Args:
            key: ``[b, s, g, d]``, already rotated.
            value: ``[b, s, g, dv]``.
            positions: where to write, ``[s]`` or ``[b, s]``; negative = padding, which is kept nowhere.

        Returns:
            keys ``[b, t, g, d]`` and values ``[b, t, g, dv]`` in the dtype of the new ones, and lengths ``[b]``:
            positions of each row in use. They are valid until the next step begins.
        """
        ...

    def mask(self, mask: AttentionMask | None, /) -> AttentionMask:
        """Derive the mask over the t keys that the last `update` returned.

        Args:
            mask: the caller's, in which key j is the one at position j; `None` = all that is held is seen. Inside a
                model it is already derived, and comes back as it is.
        """
        ...


@dataclass(frozen=True)
class Pages:
    """The keys and values of one layer where they lie: in pages of a pool, for kernels that read them there.

    Args:
        key: ``[pages, size, g, d]``, the pool.
        value: ``[pages, size, g, dv]``.
        table: integers ``[b, m]``: which page holds each stretch of ``size`` positions of a row.
        lengths: integers ``[b]``: positions of each row in use.
        extent: no row has more, as far as known; all the pages of the table hold as many or more.
        dtype: of the queries, in which `gathered` gives keys and values.
    """

    key: Tensor
    value: Tensor
    table: Tensor
    lengths: Tensor
    extent: int
    dtype: torch.dtype

    def gathered(self) -> tuple[Tensor, Tensor]:
        """Copy keys ``[b, extent, g, d]`` and values out of the pages."""
        pools = (self.key, self.value)
        key, value = (pool[self.table].flatten(1, 2).narrow(1, 0, self.extent).to(self.dtype) for pool in pools)
        return key, value


class PagedLayerCache(LayerCache, Protocol):
    """A `LayerCache` that may keep its keys and values in pages; core attentions that cannot read them never ask."""

    def update_pages(self, key: Tensor, value: Tensor, positions: Tensor, /) -> Pages | None:
        """Write as `update` does, and say where all lies; `None` = not in pages, and nothing was written."""
        ...


class CacheStep(Protocol):
    """One forward pass of a model over a cache."""

    def layer(self, number: int, /) -> LayerCache:
        """Return the entry of a layer, counted from 0."""
        ...

    def mask(self, mask: AttentionMask | None, number: int = 0, /) -> AttentionMask:
        """Derive the mask of a layer of this step from the caller's, in which key j is the one at position j."""
        ...

    def commit(self) -> None:
        """Count what was written as in use; without it the step has not happened."""
        ...


class KVCache(Protocol):
    """Keys and values of all self-attentions of a model; a module, so that it moves with the model.

    Attributes:
        lengths: integers ``[batch_size]``, positions of each row in use.
        batch_size: most rows; smaller batches use the first ones.
        capacity: most positions of a row.
    """

    lengths: Tensor
    batch_size: int
    capacity: int

    def begin(self, positions: Tensor | None, batch_size: int, /) -> CacheStep:
        """Open a step: check that all of it fits, and rewind the rows to where it writes.

        Args:
            positions: of the tokens to come, ``[s]`` or ``[b, s]``; following each other along a row, but for negative
                ones, which are padding. Positions that are in use are written anew, and what is behind them forgotten.
            batch_size: b, rows to come.

        Returns:
            the step. One that is not committed leaves every layer at the length that it found, or rewound it to.

        Raises:
            CacheError: it does not fit; nothing was written, and no row was rewound.
        """
        ...

    def check(self, batch_size: int, length: int, /) -> None:
        """Refuse with a `CacheError` what would not fit, by numbers alone: nothing is read from a device."""
        ...

    def reserve(self, batch_size: int, length: int, /) -> None:
        """Make room for ``length`` positions of the first rows; a compiled step needs nothing else beforehand."""
        ...

    def layer(self, number: int, /) -> LayerCache:
        """Return the entry of a layer, counted from 0, for an attention used alone: each update is a whole step."""
        ...

    def rewind(self, length: int, /) -> None:
        """Forget all positions from ``length`` on."""
        ...

    def reorder(self, rows: Tensor, /) -> None:
        """Let row i go on from what row ``rows[i]`` holds; ``rows`` are integers ``[b]``."""
        ...

    def reset(self) -> None:
        """Forget everything, keeping the memory."""
        ...


class KVCacheBuilder(Protocol):
    """Makes a cache.

    Args of the call:
        config: the model's config.
        request: layers, heads and sizes.
        batch_size: most rows.
        capacity: most positions of a row.
        dtype: of what is kept; `None` = the request's.
        device: of what is kept.
    """

    def __call__(
        self,
        config: TransformerConfig,
        *,
        request: KVCacheRequest,
        batch_size: int,
        capacity: int,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
    ) -> KVCache:
        """Make the module."""
        ...


KV_CACHE = Slot(
    name="kv_cache",
    kind="kernel",
    api=(1, 1),
    summary="keeps keys and values, for decoding token by token",
    request=KVCacheRequest,
    builder=KVCacheBuilder,
    interface=KVCache,
    features={
        "value_head_size": "values have another head size than keys",
        "rounded": "what comes back is coarser than its dtype: by up to 1/254 of the largest number of a token's head",
    },
    default="static",
    late=True,
)
