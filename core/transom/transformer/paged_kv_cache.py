"""A cache in blocks that rows get from a shared pool as they grow, and give back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, final

import torch
from torch import Tensor, nn

from transom.errors import CacheError
from transom.slots.kv_cache import Pages
from transom.transformer._cache_checks import check_sizes, sizes_of
from transom.transformer.kv_cache import KVCache

if TYPE_CHECKING:
    from transom.slots.kv_cache import KVCacheBuilder, KVCacheRequest
    from transom.transformer.attention_mask import AttentionMask
    from transom.transformer.kv_cache import CacheEntry, CacheStep
    from transom.transformer.transformer_config import TransformerConfig

__all__ = ["BlockTable", "PagedEntry", "PagedKVCache", "PagedOptions", "build_paged_kv_cache"]


@dataclass(frozen=True)
class PagedOptions:
    """Options of a paged cache.

    Args:
        block_size: positions of a block.
        num_blocks: blocks of the pool, shared by all rows; `None` = enough for every row to fill its capacity.
    """

    block_size: int = 16
    num_blocks: int | None = None


@final
class BlockTable(nn.Module):
    """Which blocks hold which positions of which rows; the same for all layers.

    Block 0 belongs to nobody: padding is written there, and never read.

    Args:
        rows: most rows.
        capacity: most positions of a row.
        block_size: positions of a block.
        num_blocks: blocks that rows may get.
        device: of the table.

    Attributes:
        table: ``[rows, ceil(capacity / block_size)]``, the block of each stretch of positions; 0 = none yet.
    """

    table: Tensor

    def __init__(
        self, rows: int, capacity: int, block_size: int, num_blocks: int, device: torch.device | str | None
    ) -> None:
        super().__init__()
        self.block_size, self.num_blocks = block_size, num_blocks
        self.owned: list[list[int]] = [[] for _ in range(rows)]
        self.free = list(range(num_blocks, 0, -1))
        with torch.inference_mode(False):
            table = torch.zeros(rows, -(-capacity // block_size), dtype=torch.long, device=device)
            self.register_buffer("table", table, persistent=False)

    def grow(self, lengths: list[int]) -> None:
        """Give the first rows what they lack for their lengths.

        Raises:
            CacheError: the pool has too few blocks left; no row got any.
        """
        lacking = [
            max(self._blocks(length) - len(owned), 0) for length, owned in zip(lengths, self.owned, strict=False)
        ]
        if sum(lacking) > len(self.free):
            raise CacheError(
                f"{sum(lacking)} more blocks of {self.block_size} positions are needed and {len(self.free)} of "
                f"{self.num_blocks} are free.",
                hint="reset the cache, run fewer rows, or set options.kv_cache.num_blocks",
                capacity=self.num_blocks,
                asked=self.num_blocks - len(self.free) + sum(lacking),
            )
        for row, count in enumerate(lacking):
            for _ in range(count):
                block = self.free.pop()
                self.table[row, len(self.owned[row])] = block
                self.owned[row].append(block)

    def shrink(self, length: int) -> None:
        """Take back the blocks of all rows that hold nothing before ``length``."""
        kept = self._blocks(length)
        self.table[:, kept:] = 0
        for owned in self.owned:
            self.free += reversed(owned[kept:])
            del owned[kept:]

    def addresses(self, rows: Tensor) -> Tensor:
        """Give where in the pool the positions ``[b, s]`` lie, counted in positions; padding in block 0."""
        blocks = self.table[: len(rows)].gather(1, rows.clamp(min=0) // self.block_size)
        return torch.where(rows < 0, 0, blocks * self.block_size + rows % self.block_size)

    def blocks_of(self, rows: int, extent: int) -> Tensor:
        """Give the blocks of the first positions of the first rows, ``[rows, ceil(extent / block_size)]``."""
        return self.table[:rows, : self._blocks(extent)]

    def _blocks(self, length: int) -> int:
        return -(-length // self.block_size)


@final
class PagedEntry(nn.Module):
    """A layer's blocks.

    Args:
        table: which of them belong to which rows.
        shape: ``[blocks, block_size, g]``.
        widths: d of keys and dv of values.
        dtype: of what is kept.
        device: of what is kept.
    """

    key: Tensor
    value: Tensor
    window: int | None = None

    def __init__(
        self,
        table: BlockTable,
        shape: tuple[int, int, int],
        widths: tuple[int, int],
        dtype: torch.dtype,
        device: torch.device | str | None,
    ) -> None:
        super().__init__()
        self.table = table
        with torch.inference_mode(False):
            for name, width in zip(("key", "value"), widths, strict=True):
                zeros = torch.zeros(*shape, width, dtype=dtype, device=device)
                self.register_buffer(name, zeros, persistent=False)

    def update(self, step: CacheStep, key: Tensor, value: Tensor, /) -> tuple[Tensor, Tensor]:
        """Write new keys and values; return all that is held, gathered from the blocks."""
        return self.update_pages(step, key, value).gathered()

    def update_pages(self, step: CacheStep, key: Tensor, value: Tensor, /) -> Pages:
        """Write new keys and values; say in which blocks all that is held lies."""
        addresses = step.shared.get("addresses")
        if addresses is None:
            rows = step.positions if step.positions.dim() == 2 else step.positions.expand(step.batch_size, -1)
            addresses = step.shared["addresses"] = self.table.addresses(rows)
            step.shared["blocks"] = self.table.blocks_of(step.batch_size, step.extent)
        for pool, new in ((self.key, key), (self.value, value)):
            pool.view(-1, *pool.shape[2:]).index_put_((addresses,), new.detach().to(pool.dtype))
        return Pages(self.key, self.value, step.shared["blocks"], step.lengths, step.extent, key.dtype)

    def mask(self, step: CacheStep, mask: AttentionMask, /) -> AttentionMask:
        """Derive the mask over the positions."""
        return mask.for_cache(step.positions, step.lengths, step.extent, aligned=step.aligned)

    def commit(self, step: CacheStep, /) -> None:
        """Do nothing: `update` wrote everything."""

    def reorder(self, rows: Tensor, length: int, /) -> None:
        """Do nothing: `PagedKVCache.reorder` copies blocks."""


@final
class PagedKVCache(KVCache):
    """A cache whose memory is a pool of blocks: a long row may take what short rows leave.

    Rows get blocks when a step begins, before any layer writes, and give them back when the cache is reset or rewound.
    A core attention that can (`transom.slots.core_attention.PagedCoreAttention`) reads the blocks in place; for others
    all that is held is gathered from them for each step.

    Args:
        num_layers: entries.
        batch_size: most rows; smaller batches use the first rows.
        capacity: most positions of a row.
        num_query_groups: g, key/value heads of this rank.
        head_size: d of keys.
        value_head_size: dv of values; `None` = d.
        dtype: of what is kept; keys and values are converted.
        device: of what is kept.
        options: size and number of the blocks.

    Raises:
        CacheError: a size is below one.

    Source: Kwon et al. 2023, PagedAttention.

    Example:
        >>> options = PagedOptions(block_size=4, num_blocks=3)
        >>> sizes = {"num_layers": 1, "batch_size": 2, "capacity": 8, "num_query_groups": 1, "head_size": 2}
        >>> cache = PagedKVCache(**sizes, options=options)
        >>> key = torch.ones(2, 5, 1, 2)
        >>> _ = cache.layer(0).update(key, key, torch.tensor([[0, 1, 2, 3, 4], [-1, -1, -1, 0, 1]]))
        >>> cache.blocks.table, cache.blocks.free
        (tensor([[1, 2],
                [3, 0]]), [])
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
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
        options: PagedOptions | None = None,
    ) -> None:
        options = options or PagedOptions()
        size, count = options.block_size, options.num_blocks
        check_sizes(
            type(self).__name__,
            num_layers=num_layers,
            batch_size=batch_size,
            capacity=capacity,
            block_size=size,
            num_blocks=1 if count is None else count,
        )
        count = batch_size * -(-capacity // size) if count is None else count
        table = BlockTable(batch_size, capacity, size, count, device)
        widths = (head_size, head_size if value_head_size is None else value_head_size)
        shape = (count + 1, size, num_query_groups)
        entries = [PagedEntry(table, shape, widths, dtype, device) for _ in range(num_layers)]
        super().__init__(entries, batch_size=batch_size, capacity=capacity, device=device)
        self.blocks = table

    def reserve(self, batch_size: int, length: int, /) -> None:
        """Give the first rows blocks for ``length`` positions.

        Raises:
            CacheError: it would not fit; no row got any.
        """
        self.check(batch_size, length)
        self.blocks.grow([length] * batch_size)

    def rewind(self, length: int, /) -> None:
        """Forget all positions from ``length`` on, and take back their blocks."""
        super().rewind(length)
        self.blocks.shrink(length)

    def reorder(self, rows: Tensor, /) -> None:
        """Let row i go on from what row ``rows[i]`` holds, in blocks of its own.

        Raises:
            CacheError: the pool has too few blocks; no row has changed.
        """
        lengths = self.lengths[rows]
        self.blocks.grow([int(length) for length in lengths])
        held = self.blocks.blocks_of(self.batch_size, int(self.lengths.max()))
        sources, targets = held[rows], held[: len(rows)]
        is_held = (sources > 0) & (targets > 0)
        for entry in self._entries:
            for pool in (entry.key, entry.value):
                pool[targets[is_held]] = pool[sources[is_held]]
        super().reorder(rows)

    def reset(self) -> None:
        """Forget everything, and take all blocks back."""
        super().reset()
        self.blocks.shrink(0)

    def _make_room(self, rows: Tensor) -> None:
        ends = (rows.amax(dim=1) + 1).tolist()
        self.blocks.grow(ends)


class _Paged:
    """Makes a `PagedKVCache`; registered as ``paged`` in the slot ``kv_cache``."""

    Options = PagedOptions

    def __call__(
        self,
        config: TransformerConfig,
        *,
        request: KVCacheRequest,
        batch_size: int,
        capacity: int,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
        options: PagedOptions | None = None,
    ) -> PagedKVCache:
        """Make the cache."""
        return PagedKVCache(**sizes_of(request, batch_size, capacity, dtype, device), options=options)


build_paged_kv_cache = _Paged()


if TYPE_CHECKING:
    _builder: KVCacheBuilder = build_paged_kv_cache

    def _is_an_entry(entry: PagedEntry) -> CacheEntry:
        return entry
