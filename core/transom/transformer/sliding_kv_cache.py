"""A cache that keeps no more of a layer with a window than the window: a ring of slots."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, final

import torch
from torch import Tensor, nn

from transom.transformer._cache_checks import check_sizes, sizes_of
from transom.transformer._cache_memory import PlainMemory, SlotEntry, copy_rows
from transom.transformer._mask_caching import mask_of_ring
from transom.transformer.kv_cache import KVCache

if TYPE_CHECKING:
    from transom.slots.kv_cache import KVCacheBuilder, KVCacheRequest
    from transom.transformer.attention_mask import AttentionMask, Window
    from transom.transformer.kv_cache import CacheEntry, CacheStep
    from transom.transformer.transformer_config import TransformerConfig

__all__ = ["RingEntry", "SlidingWindowKVCache", "build_sliding_window_kv_cache"]


@final
class RingEntry(nn.Module):
    """The last R positions of a layer: slot ``p % R`` holds position p, until position p + R comes.

    One token is written at once: what it overwrites is out of the window's sight. Several would overwrite what the
    first of them see, so they are attended to beside the ring, and written when the step is committed.

    Args:
        window: R, tokens that a query sees, itself included.
        shape: ``[rows, R + 1, g]``; padding is written to the last slot, and never read.
        widths: d of keys and dv of values.
        dtype: of what is kept.
        device: of what is kept.
    """

    key: Tensor
    value: Tensor

    def __init__(
        self,
        window: int,
        shape: tuple[int, int, int],
        widths: tuple[int, int],
        dtype: torch.dtype,
        device: torch.device | str | None,
    ) -> None:
        super().__init__()
        self.window = window
        # Made in inference mode, they could be written to in that mode only.
        with torch.inference_mode(False):
            for name, width in zip(("key", "value"), widths, strict=True):
                zeros = torch.zeros(*shape, width, dtype=dtype, device=device)
                self.register_buffer(name, zeros, persistent=False)

    def update(self, step: CacheStep, key: Tensor, value: Tensor, /) -> tuple[Tensor, Tensor]:
        """Write one token, or put several off; return what they may see."""
        key, value = key.detach(), value.detach()
        if key.shape[1] == 1:
            self._write(step, key, value)
            return self._held(self.key, step).to(key.dtype), self._held(self.value, step).to(value.dtype)
        kept = key.to(self.key.dtype), value.to(self.value.dtype)
        step.pending[self] = kept
        if _is_all(step):
            return kept[0].to(key.dtype), kept[1].to(value.dtype)
        return self._joined(self.key, step, kept[0], key.dtype), self._joined(self.value, step, kept[1], value.dtype)

    def mask(self, step: CacheStep, mask: AttentionMask, /) -> AttentionMask:
        """Derive the mask over what `update` returned."""
        s = step.positions.shape[-1]
        if s > 1 and _is_all(step):
            return mask.for_cache(step.positions, step.lengths, s, aligned=True)
        positions = step.shared.get(("ring", self.window))
        if positions is None:
            positions = step.shared["ring", self.window] = self._key_positions(step)
        extent = 0 if torch.compiler.is_compiling() else step.extent
        return mask_of_ring(mask, step.positions, positions, extent)

    def commit(self, step: CacheStep, /) -> None:
        """Write what was put off."""
        if self in step.pending:
            self._write(step, *step.pending.pop(self))

    def reorder(self, rows: Tensor, length: int, /) -> None:
        """Let row i hold what row ``rows[i]`` holds."""
        copy_rows(self.key, rows, self.window)
        copy_rows(self.value, rows, self.window)

    def _write(self, step: CacheStep, key: Tensor, value: Tensor) -> None:
        slots = self._slots(step)
        batch = torch.arange(step.batch_size, device=key.device)[:, None]
        for memory, new in ((self.key, key), (self.value, value)):
            memory.index_put_((batch, slots), new.to(memory.dtype))

    def _slots(self, step: CacheStep) -> Tensor:
        """Give the slot of each token ``[b or 1, s]``; what would be overwritten by a later one goes nowhere."""
        rows = _rows(step)
        is_late = (rows >= 0) & (rows > rows.amax(dim=1, keepdim=True) - self.window)
        return torch.where(is_late, rows % self.window, self.window)

    def _held(self, memory: Tensor, step: CacheStep) -> Tensor:
        return memory.narrow(0, 0, step.batch_size).narrow(1, 0, self.window)

    def _joined(self, memory: Tensor, step: CacheStep, new: Tensor, dtype: torch.dtype) -> Tensor:
        return torch.cat([self._held(memory, step), new], dim=1).to(dtype)

    def _key_positions(self, step: CacheStep) -> Tensor:
        """Give the position of each key that `update` returned, ``[b, R]`` or ``[b, R + s]``; negative = none."""
        if step.positions.shape[-1] == 1:
            return self._positions_held(step.lengths)
        rows = _rows(step).expand(step.batch_size, -1)
        return torch.cat([self._positions_held(step.before), rows], dim=1)

    def _positions_held(self, lengths: Tensor) -> Tensor:
        """Give the position in each slot ``[b, R]`` of rows of ``lengths [b]``: the last one that belongs there."""
        last = lengths[:, None] - 1
        slots = torch.arange(self.window, device=lengths.device)
        return last - (last - slots) % self.window


def _rows(step: CacheStep) -> Tensor:
    return step.positions if step.positions.dim() == 2 else step.positions[None]


def _is_all(step: CacheStep) -> bool:
    """Whether the step's tokens are known to be all that there is: a prompt without padding."""
    return step.aligned and step.extent == step.positions.shape[-1]


@final
class SlidingWindowKVCache(KVCache):
    """A cache whose layers with a window keep the window alone, in a ring; the others keep every position.

    So a model whose layers alternate (Gemma 2) has a mixture. What a row holds before its window is forgotten: it can
    go back by one position, or to its start.

    Args:
        windows: of each layer, ``(left, right)``; `None`, or an unbounded left side = the layer keeps everything.
        batch_size: most rows; smaller batches use the first rows.
        capacity: most positions of a row.
        num_query_groups: g, key/value heads of this rank.
        head_size: d of keys.
        value_head_size: dv of values; `None` = d.
        dtype: of what is kept; keys and values are converted.
        device: of what is kept.

    Raises:
        CacheError: a size is below one.

    Source: the rolling buffer of Jiang et al. 2023, Mistral 7B, section 2.

    Example:
        >>> cache = SlidingWindowKVCache([(3, 0), None], batch_size=1, capacity=64, num_query_groups=1, head_size=4)
        >>> cache.entries[0].key.shape, cache.entries[1].key.data.shape
        (torch.Size([1, 5, 1, 4]), torch.Size([1, 65, 1, 4]))
    """

    def __init__(
        self,
        windows: Sequence[Window | None],
        *,
        batch_size: int,
        capacity: int,
        num_query_groups: int,
        head_size: int,
        value_head_size: int | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> None:
        check_sizes(type(self).__name__, num_layers=len(windows), batch_size=batch_size, capacity=capacity)
        widths = (head_size, head_size if value_head_size is None else value_head_size)

        def entry(window: Window | None) -> nn.Module:
            kept = capacity if window is None or window[0] is None else window[0] + 1
            shape = (batch_size, min(kept, capacity) + 1, num_query_groups)
            if kept < capacity:
                return RingEntry(kept, shape, widths, dtype, device)
            return SlotEntry(*(PlainMemory((*shape, width), dtype, device) for width in widths))

        super().__init__(map(entry, windows), batch_size=batch_size, capacity=capacity, device=device)


class _SlidingWindow:
    """Makes a `SlidingWindowKVCache`; registered as ``sliding_window`` in the slot ``kv_cache``."""

    @staticmethod
    def supports(request: KVCacheRequest) -> Sequence[str]:
        """Refuse a model in which it would be a static cache."""
        has_window = any(window is not None and window[0] is not None for window in request.windows)
        return [] if has_window else ["no layer of the model has a window to its left"]

    def __call__(
        self,
        config: TransformerConfig,
        *,
        request: KVCacheRequest,
        batch_size: int,
        capacity: int,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
    ) -> SlidingWindowKVCache:
        """Make the cache."""
        sizes = sizes_of(request, batch_size, capacity, dtype, device)
        del sizes["num_layers"]
        return SlidingWindowKVCache(request.windows, **sizes)


build_sliding_window_kv_cache = _SlidingWindow()


if TYPE_CHECKING:
    _builder: KVCacheBuilder = build_sliding_window_kv_cache

    def _is_an_entry(entry: RingEntry) -> CacheEntry:
        return entry
