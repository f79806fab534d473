"""A key/value cache of fixed size, for decoding token by token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, final

import torch
from torch import Tensor, nn

from transom.errors import CacheError
from transom.transformer.attention_mask import AttentionMask

if TYPE_CHECKING:
    from transom.slots.kv_cache import LayerCache

__all__ = ["CacheStep", "StaticKVCache", "StaticLayerCache"]


@final
class StaticKVCache(nn.Module):
    """Keys and values of all layers of a model, in memory that is allocated once.

    Slot j of a row holds the key and the value of position j. A step of a model is::

        step = cache.begin(positions, batch_size)   # CacheError before any layer has written
        mask = step.mask(mask)
        for number, layer in enumerate(layers):
            hidden, _ = layer(hidden, mask=mask, positions=positions, cache=step.layer(number))
        step.commit()

    All layers share one count of the slots in use, so they cannot get out of step: a step that fails before its commit
    leaves all at the same length. Writing to positions that are in use rewinds the row to the first of them. The cache
    is for inference: no gradient flows back through what it holds.

    Args:
        num_layers: entries.
        batch_size: most rows; smaller batches use the first rows.
        capacity: slots of each row, in tokens.
        num_query_groups: g, key/value heads of this rank.
        head_size: d of keys.
        value_head_size: dv of values; `None` = d.
        dtype: of what is kept; keys and values are converted.
        device: of what is kept.

    Raises:
        CacheError: a size is below one.

    Example:
        >>> cache = StaticKVCache(num_layers=2, batch_size=1, capacity=8, num_query_groups=1, head_size=4)
        >>> step = cache.begin(torch.tensor([0, 1, 2]), 1)
        >>> keys, values, lengths = step.layer(0).update(torch.ones(1, 3, 1, 4), torch.ones(1, 3, 1, 4), step.positions)
        >>> keys.shape, lengths
        (torch.Size([1, 3, 1, 4]), tensor([3]))
    """

    lengths: Tensor

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
    ) -> None:
        super().__init__()
        value_head_size = head_size if value_head_size is None else value_head_size
        for name, size in (("num_layers", num_layers), ("batch_size", batch_size), ("capacity", capacity)):
            if size < 1:
                raise CacheError(f"{name} is {size}; a cache needs at least 1.", asked_by=f"StaticKVCache.{name}")
        self.batch_size = batch_size
        self.capacity = capacity
        self.num_layers = num_layers
        # Made in inference mode, it could be written to in that mode only.
        with torch.inference_mode(False):
            for i in range(num_layers):
                # One slot more than the capacity: padding is written there, and never read.
                for name, size in (("key", head_size), ("value", value_head_size)):
                    zeros = torch.zeros(batch_size, capacity + 1, num_query_groups, size, dtype=dtype, device=device)
                    self.register_buffer(f"{name}_{i}", zeros, persistent=False)
            lengths = torch.zeros(batch_size, dtype=torch.long, device=device)
            self.register_buffer("lengths", lengths, persistent=False)

    def begin(self, positions: Tensor | None, batch_size: int) -> CacheStep:
        """Open a step: check that all of it fits, and rewind the rows to where it writes.

        The values of the positions are checked on the host; while compiling that cannot be, and only shapes are: check
        before calling a compiled model with `check`.

        Args:
            positions: of the tokens to come, ``[s]`` or ``[b, s]``; following each other along a row, but for negative
                ones, which are padding and kept nowhere.
            batch_size: b, rows to come.

        Returns:
            the step.

        Raises:
            CacheError: positions are missing, of another shape, beyond the capacity, or leave a gap behind what is
                held; or there are too many rows.
        """
        if positions is None:
            raise CacheError(
                "a cache needs the positions of the tokens, and none are given.",
                hint="pass input_pos: 0 ... s-1 for a prompt, then one more a token",
            )
        if positions.dim() not in (1, 2) or (positions.dim() == 2 and positions.shape[0] != batch_size):
            raise CacheError(
                f"positions must have shape [s] or [b, s] with b = {batch_size}, not {list(positions.shape)}.",
            )
        self.check(batch_size, positions.shape[-1])
        used = self.lengths[:batch_size]
        rows = positions if positions.dim() == 2 else positions[None]
        first = rows.masked_fill(rows < 0, self.capacity).amin(dim=1)
        extent, aligned = self.capacity, False
        if not torch.compiler.is_compiling():
            extent, aligned = self._inspect(rows, first, used)
        used.copy_(torch.minimum(used, first))
        lengths = torch.maximum(used, rows.amax(dim=1) + 1)
        slots = positions.masked_fill(positions < 0, self.capacity)
        return CacheStep(self, positions, slots, batch_size, lengths, extent, aligned)

    def _inspect(self, rows: Tensor, first: Tensor, used: Tensor) -> tuple[int, bool]:
        """Read on the host how many slots are read, and whether the positions are the last of them in every row."""
        end = int(rows.max()) + 1
        self.check(len(used), end)
        gap = (first > used) & (first < self.capacity)
        if bool(gap.any()):
            row = int(gap.nonzero()[0])
            start, held = int(first.expand_as(used)[row]), int(used[row])
            raise CacheError(
                f"row {row} goes on at position {start}, and the cache holds {held} positions of it.",
                hint="positions follow each other: run the tokens before it first",
                asked=start,
            )
        s = rows.shape[1]
        return max(end, 1), bool((rows == torch.arange(end - s, end, device=rows.device)).all())

    def check(self, batch_size: int, length: int) -> None:
        """Refuse what would not fit, by numbers alone: nothing is read from a device.

        Args:
            batch_size: rows.
            length: tokens a row, those in the cache included.

        Raises:
            CacheError: with the capacity and what was asked for, also as attributes.
        """
        if length > self.capacity:
            raise CacheError(
                f"{length} positions are asked for and the cache holds {self.capacity}.",
                hint=f"allocate a cache with capacity={length}, or generate fewer tokens",
                capacity=self.capacity,
                asked=length,
            )
        if batch_size > self.batch_size:
            raise CacheError(
                f"{batch_size} rows are asked for and the cache holds {self.batch_size}.",
                hint=f"allocate a cache with batch_size={batch_size}, or split the batch",
                capacity=self.batch_size,
                asked=batch_size,
            )

    def layer(self, number: int) -> StaticLayerCache:
        """Return the entry of a layer, counted from 0, for an attention used alone: each update is a whole step."""
        return StaticLayerCache(self, number, None)

    def rewind(self, length: int) -> None:
        """Forget all positions from ``length`` on."""
        self.lengths.clamp_(max=length)

    def reset(self) -> None:
        """Forget everything, keeping the memory."""
        for buffer in self.buffers():
            buffer.zero_()


@final
@dataclass(frozen=True, eq=False)
class CacheStep:
    """One forward pass over a cache, from `StaticKVCache.begin` on.

    Args:
        cache: what it writes to.
        positions: of its tokens, ``[s]`` or ``[b, s]``.
        slots: where they are written, of the same shape.
        batch_size: b.
        lengths: ``[b]``, slots in use when it is done.
        extent: t, slots that its layers read: those up to the last in use, or all when that is not known.
        aligned: every row's positions are t-s ... t-1.
    """

    cache: StaticKVCache
    positions: Tensor
    slots: Tensor
    batch_size: int
    lengths: Tensor
    extent: int
    aligned: bool

    def layer(self, number: int) -> StaticLayerCache:
        """Return the entry of a layer, counted from 0."""
        return StaticLayerCache(self.cache, number, self)

    def mask(self, mask: AttentionMask | None) -> AttentionMask:
        """Derive the mask of the layers of this step from the caller's; `None` = all that is held is seen."""
        mask = AttentionMask() if mask is None else mask
        return mask.for_cache(self.positions, self.lengths, self.extent, aligned=self.aligned)

    def write(self, memory: Tensor, new: Tensor) -> Tensor:
        """Write ``new [b, s, g, d]`` into ``memory [rows, capacity + 1, g, d]``; return what the step reads of it."""
        rows = memory.narrow(0, 0, self.batch_size)
        if self.aligned:
            rows.narrow(1, self.extent - new.shape[1], new.shape[1]).copy_(new.detach())
        elif self.slots.dim() == 1:
            rows.index_copy_(1, self.slots, new.detach().to(rows.dtype))
        else:
            batch = torch.arange(self.batch_size, device=rows.device)[:, None]
            rows.index_put_((batch, self.slots), new.detach().to(rows.dtype))
        return rows.narrow(1, 0, self.extent).to(new.dtype)

    def commit(self) -> None:
        """Count what was written as in use."""
        self.cache.lengths[: self.batch_size].copy_(self.lengths)


@final
class StaticLayerCache:
    """One layer's entry in a `StaticKVCache`.

    Args:
        cache: whose entry it is.
        number: of the layer, from 0.
        step: of the model; `None` = each update is one.
    """

    def __init__(self, cache: StaticKVCache, number: int, step: CacheStep | None) -> None:
        self.cache = cache
        self.key: Tensor = getattr(cache, f"key_{number}")
        self.value: Tensor = getattr(cache, f"value_{number}")
        self.step = step

    def update(self, key: Tensor, value: Tensor, positions: Tensor, /) -> tuple[Tensor, Tensor, Tensor]:
        """Write new keys and values, and return all that are held.

        Args:
            key: ``[b, s, g, d]``.
            value: ``[b, s, g, dv]``.
            positions: where to write, ``[s]`` or ``[b, s]``, those of the step if there is one; negative = nowhere.

        Returns:
            keys ``[b, t, g, d]``, values ``[b, t, g, dv]``, in the dtype of the new ones, and lengths ``[b]``.

        Raises:
            CacheError: as `StaticKVCache.begin`, when no step of the model is open.
        """
        if self.step is not None:
            return self.step.write(self.key, key), self.step.write(self.value, value), self.step.lengths
        step = self.cache.begin(positions, key.shape[0])
        keys, values = step.write(self.key, key), step.write(self.value, value)
        step.commit()
        return keys, values, step.lengths


if TYPE_CHECKING:

    def _is_a_layer_cache(entry: StaticLayerCache) -> LayerCache:
        return entry
