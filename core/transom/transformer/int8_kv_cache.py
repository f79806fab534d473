"""A static cache whose keys and values are rounded to eight bits."""

from __future__ import annotations

from typing import TYPE_CHECKING, final

import torch

from transom.transformer._cache_checks import check_sizes, sizes_of
from transom.transformer._cache_memory import Int8Memory, SlotEntry
from transom.transformer.kv_cache import KVCache

if TYPE_CHECKING:
    from transom.slots.kv_cache import KVCacheBuilder, KVCacheRequest
    from transom.transformer.transformer_config import TransformerConfig

__all__ = ["Int8KVCache", "build_int8_kv_cache"]


@final
class Int8KVCache(KVCache):
    """A static cache in eight bits, with a float32 scale for each token and key/value head.

    A number comes back to within 1/254 of the largest of its token and head. Memory is (d + 4) / (2 d) of a bfloat16
    cache's: 0.53 at d = 64.

    Args:
        num_layers: entries.
        batch_size: most rows; smaller batches use the first rows.
        capacity: slots of each row, in tokens.
        num_query_groups: g, key/value heads of this rank.
        head_size: d of keys.
        value_head_size: dv of values; `None` = d.
        device: of what is kept.

    Raises:
        CacheError: a size is below one.

    Example:
        >>> cache = Int8KVCache(num_layers=1, batch_size=1, capacity=8, num_query_groups=1, head_size=2)
        >>> key = torch.tensor([[[[1.0, 0.5]]]])
        >>> keys, _, _ = cache.layer(0).update(key, key, torch.tensor([0]))
        >>> cache.entries[0].key.data[0, 0], keys.flatten()
        (tensor([[127,  64]], dtype=torch.int8), tensor([1.0000, 0.5039]))
    """

    def __init__(
        self,
        *,
        num_layers: int,
        batch_size: int,
        capacity: int,
        num_query_groups: int,
        head_size: int,
        value_head_size: int | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        check_sizes(type(self).__name__, num_layers=num_layers, batch_size=batch_size, capacity=capacity)
        widths = (head_size, head_size if value_head_size is None else value_head_size)
        shape = (batch_size, capacity + 1, num_query_groups)  # padding is written to the last slot, and never read
        entries = [SlotEntry(*(Int8Memory((*shape, width), device) for width in widths)) for _ in range(num_layers)]
        super().__init__(entries, batch_size=batch_size, capacity=capacity, device=device)


def build_int8_kv_cache(
    config: TransformerConfig,
    *,
    request: KVCacheRequest,
    batch_size: int,
    capacity: int,
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
) -> Int8KVCache:
    """Make an int8 cache for a request, whatever ``dtype`` says; registered as ``int8`` in the slot ``kv_cache``."""
    sizes = sizes_of(request, batch_size, capacity, dtype, device)
    del sizes["dtype"]
    return Int8KVCache(**sizes)


if TYPE_CHECKING:
    _builder: KVCacheBuilder = build_int8_kv_cache
