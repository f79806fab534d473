"""Keys and values of all layers, kept for decoding token by token: what caches share, and the static one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor, nn

from transom.errors import CacheError
from transom.transformer._cache_checks import (
    check_positions,
    check_sizes,
    inspect_positions,
    read_aligned,
    refuse_overflow,
    sizes_of,
)
from transom.transformer._cache_entry import CacheEntry
from transom.transformer._cache_memory import PlainMemory, SlotEntry
from transom.transformer.attention_mask import AttentionMask
from transom.transformer.direct_attributes import buffer

if TYPE_CHECKING:
    from transom.slots.kv_cache import CacheStep as CacheStepInterface
    from transom.slots.kv_cache import KVCache as KVCacheInterface
    from transom.slots.kv_cache import KVCacheBuilder, KVCacheRequest, PagedLayerCache, Pages
    from transom.transformer.transformer_config import TransformerConfig

__all__ = ["CacheEntry", "CacheStep", "KVCache", "StaticKVCache", "StepLayer", "build_static_kv_cache"]


class KVCache(nn.Module):
    """Keys and values of all layers of a model.

    A step of a model is::

        step = cache.begin(positions, batch_size)   # CacheError before any layer has written
        for number, layer in enumerate(layers):
            hidden, _ = layer(hidden, mask=step.mask(mask, number), positions=positions, cache=step.layer(number))
        step.commit()

    All layers share one count of the positions in use, so they cannot get out of step: a step that fails before its
    commit leaves all at the same length. Writing to positions that are in use rewinds the row to the first of them.
    The cache is for inference: no gradient flows back through what it holds.

    Args:
        entries: what each layer holds: modules that satisfy `CacheEntry`.
        batch_size: most rows; smaller batches use the first rows.
        capacity: most positions of a row.
        device: of the counts.

    Attributes:
        lengths: integers ``[batch_size]``, positions of each row in use.
    """

    lengths: Tensor = buffer()
    reached: Tensor = buffer()

    def __init__(
        self,
        entries: Iterable[nn.Module],
        *,
        batch_size: int,
        capacity: int,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.capacity = capacity
        self.entries = nn.ModuleList(entries)
        # In a tuple too: a decoding step looks each of them up.
        self._entries: tuple[Any, ...] = tuple(self.entries)
        self.windows = tuple({entry.window for entry in self._entries} - {None})
        self.masks_alike = all(isinstance(entry, SlotEntry) for entry in self._entries)
        # Made in inference mode, they could be written to in that mode only.
        with torch.inference_mode(False):
            for name in ("lengths", "reached"):
                self.register_buffer(name, torch.zeros(batch_size, dtype=torch.long, device=device), persistent=False)

    @property
    def num_layers(self) -> int:
        """Number of entries."""
        return len(self._entries)

    def begin(self, positions: Tensor | None, batch_size: int, /) -> CacheStep:
        """Open a step: check that all of it fits, and rewind the rows to where it writes.

        The values of the positions are checked on the host; while compiling that cannot be, and only shapes are: call
        `reserve` before a compiled model.

        Args:
            positions: of the tokens to come, ``[s]`` or ``[b, s]``; following each other along a row, but for negative
                ones, which are padding and kept nowhere.
            batch_size: b, rows to come.

        Returns:
            the step.

        Raises:
            CacheError: positions are missing, of another shape, beyond the capacity, leave a gap behind what is held,
                or go back to where a window's keys are forgotten; or there are too many rows.
        """
        positions = check_positions(positions, batch_size)
        self.check(batch_size, positions.shape[-1])
        used = self.lengths[:batch_size]
        start = None if torch.compiler.is_compiling() else read_aligned(self, positions, used)
        if start is not None:
            return self._begin_aligned(positions, used, start)
        rows = positions if positions.dim() == 2 else positions[None]
        first = rows.masked_fill(rows < 0, self.capacity).amin(dim=1)
        extent, aligned = self.capacity, False
        if not torch.compiler.is_compiling():
            extent, aligned = inspect_positions(self, rows, first, used)
            self._make_room(rows.expand(batch_size, -1))
        before = torch.minimum(used, first)
        used.copy_(before)
        lengths = torch.maximum(before, rows.amax(dim=1) + 1)
        if self.windows:
            self._note_reached(first, lengths, is_single=rows.shape[1] == 1)
        return CacheStep(self, positions, batch_size, before, lengths, extent, aligned)

    def _begin_aligned(self, positions: Tensor, used: Tensor, start: int) -> CacheStep:
        """Open a step whose rows all go on at the same position: what it needs are numbers that are known."""
        end = start + positions.shape[-1]
        self._make_room(positions.expand(len(used), -1))
        before, lengths = torch.full_like(used, start), torch.full_like(used, end)
        used.fill_(start)
        if self.windows:
            self._note_reached(before, lengths, is_single=end == start + 1)
        return CacheStep(self, positions, len(used), before, lengths, end, aligned=True)

    def check(self, batch_size: int, length: int, /) -> None:
        """Refuse what would not fit, by numbers alone: nothing is read from a device.

        Args:
            batch_size: rows.
            length: tokens a row, those in the cache included.

        Raises:
            CacheError: with the capacity and what was asked for, also as attributes.
        """
        refuse_overflow(self, batch_size, length)

    def reserve(self, batch_size: int, length: int, /) -> None:
        """Make room for ``length`` positions of the first rows: a compiled step needs nothing else beforehand.

        Raises:
            CacheError: as `check`.
        """
        self.check(batch_size, length)

    def layer(self, number: int, /) -> StepLayer:
        """Return the entry of a layer, counted from 0, for an attention used alone: each update is a whole step."""
        return StepLayer(self, self._entries[number], number, None)

    def rewind(self, length: int, /) -> None:
        """Forget all positions from ``length`` on.

        Raises:
            CacheError: a window's keys before ``length`` are forgotten already.
        """
        ends = self.lengths.clamp(max=length)
        self.check_kept(torch.where(self.lengths > length, ends, self.reached), self.reached)
        self.lengths.copy_(ends)

    def reorder(self, rows: Tensor, /) -> None:
        """Let row i go on from what row ``rows[i]`` holds.

        Args:
            rows: integers ``[b]``; the first b rows change.
        """
        length = int(self.lengths.max())
        for entry in self._entries:
            entry.reorder(rows, length)
        for counts in (self.lengths, self.reached):
            counts[: len(rows)] = counts[rows]

    def reset(self) -> None:
        """Forget everything, keeping the memory."""
        for held in self.buffers():
            held.zero_()

    def check_kept(self, first: Tensor, reached: Tensor) -> None:
        """Refuse to go back to ``first [b]`` where a window has forgotten what is before it.

        Raises:
            CacheError: with the row's position as an attribute.
        """
        for window in self.windows:
            lost = (first > 0) & (first < reached - 1) & (reached > window)
            if bool(lost.any()):
                row = int(lost.nonzero()[0])
                raise CacheError(
                    f"row {row} goes back to position {int(first[row])}, and a layer with a window of {window} tokens "
                    f"has forgotten what is before it.",
                    hint="start the row again at position 0, or use a cache that keeps everything: kv_cache=static",
                    asked=int(first[row]),
                )

    def _make_room(self, rows: Tensor) -> None:
        """Get what the positions ``[b or 1, s]`` need before a step; here it is all there from the start."""

    def _note_reached(self, first: Tensor, lengths: Tensor, *, is_single: bool) -> None:
        """Note how far rows were written: a ring has forgotten what is a window before that."""
        reached = self.reached[: len(lengths)]
        kept = reached * (first > 0)  # a row that starts again has forgotten nothing
        # One token is written at once, several when the step is committed.
        reached.copy_(torch.maximum(kept, lengths) if is_single else kept)


@final
@dataclass(eq=False)
class CacheStep:
    """One forward pass over a cache, from `KVCache.begin` on.

    Args:
        cache: what it writes to.
        positions: of its tokens, ``[s]`` or ``[b, s]``.
        batch_size: b.
        before: ``[b]``, positions in use when it begins.
        lengths: ``[b]``, positions in use when it is done.
        extent: the last position in use, plus one; the capacity when that is not known.
        aligned: every row's positions are known to be extent-s ... extent-1.
        shared: what entries of a kind compute once a step.
        pending: what they put off until the commit.
        derived: the mask that was derived last, which a layer asks about again.
        asked: what it was derived from.
    """

    cache: KVCache
    positions: Tensor
    batch_size: int
    before: Tensor
    lengths: Tensor
    extent: int
    aligned: bool
    shared: dict[Any, Any] = field(default_factory=dict)
    pending: dict[Any, Any] = field(default_factory=dict)
    derived: AttentionMask | None = None
    asked: AttentionMask | None = None

    def layer(self, number: int, /) -> StepLayer:
        """Return the entry of a layer, counted from 0."""
        return StepLayer(self.cache, self.cache._entries[number], number, self)

    def mask(self, mask: AttentionMask | None, number: int = 0, /) -> AttentionMask:
        """Derive the mask of a layer of this step from the caller's; `None` = all that is held is seen."""
        if self.derived is None or mask is None or mask is not self.asked or not self.cache.masks_alike:
            self.derived = self.cache._entries[number].mask(self, AttentionMask() if mask is None else mask)
            self.asked = mask
        return self.derived

    def commit(self) -> None:
        """Count what was written as in use."""
        cache = self.cache
        cache.lengths[: self.batch_size].copy_(self.lengths)
        if cache.windows:
            reached = cache.reached[: self.batch_size]
            reached.copy_(torch.maximum(reached, self.lengths))
            for entry in cache._entries:
                entry.commit(self)


@final
class StepLayer:
    """One layer's entry in a `KVCache`.

    Args:
        cache: whose entry it is.
        entry: what holds the layer's keys and values.
        number: of the layer, from 0.
        step: of the model; `None` = each update is one.
    """

    def __init__(self, cache: KVCache, entry: Any, number: int, step: CacheStep | None) -> None:
        self.cache, self.entry, self.number = cache, entry, number
        self.step = step
        self.is_alone = step is None

    def update(self, key: Tensor, value: Tensor, positions: Tensor, /) -> tuple[Tensor, Tensor, Tensor]:
        """Write new keys and values, and return all that the new tokens may attend to.

        Args:
            key: ``[b, s, g, d]``.
            value: ``[b, s, g, dv]``.
            positions: where to write, ``[s]`` or ``[b, s]``, those of the step if there is one; negative = nowhere.

        Returns:
            keys ``[b, t, g, d]``, values ``[b, t, g, dv]``, in the dtype of the new ones, and lengths ``[b]``.

        Raises:
            CacheError: as `KVCache.begin`, when no step of the model is open.
        """
        step = self.step
        if step is None or self.is_alone:
            (keys, values), step = self._run(self.entry.update, key, value, positions)
        else:
            keys, values = self.entry.update(step, key, value)
        return keys, values, step.lengths

    def update_pages(self, key: Tensor, value: Tensor, positions: Tensor, /) -> Pages | None:
        """Write as `update` does, and say where all lies; `None` = not in pages, and nothing was written."""
        update = getattr(self.entry, "update_pages", None)
        return None if update is None else self._run(update, key, value, positions)[0]

    def _run(self, update: Any, key: Tensor, value: Tensor, positions: Tensor) -> tuple[Any, CacheStep]:
        if self.is_alone:
            self.step = self.cache.begin(positions, key.shape[0])
        assert self.step is not None
        found = update(self.step, key, value)
        if self.is_alone:
            self.step.commit()
        return found, self.step

    def mask(self, mask: AttentionMask | None, /) -> AttentionMask:
        """Derive the mask over what the last `update` returned from the caller's, or return one that is derived."""
        step = self.step
        assert step is not None, "update() comes first"
        return mask if mask is not None and mask is step.derived else step.mask(mask, self.number)


@final
class StaticKVCache(KVCache):
    """A cache in memory that is allocated once: slot j of a row holds the key and the value of position j.

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
        check_sizes(type(self).__name__, num_layers=num_layers, batch_size=batch_size, capacity=capacity)
        widths = (head_size, head_size if value_head_size is None else value_head_size)
        # One slot more than the capacity: padding is written there, and never read.
        shape = (batch_size, capacity + 1, num_query_groups)
        entries = [SlotEntry(*(PlainMemory((*shape, w), dtype, device) for w in widths)) for _ in range(num_layers)]
        super().__init__(entries, batch_size=batch_size, capacity=capacity, device=device)


def build_static_kv_cache(
    config: TransformerConfig,
    *,
    request: KVCacheRequest,
    batch_size: int,
    capacity: int,
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
) -> StaticKVCache:
    """Make a static cache for a request; registered as ``static`` in the slot ``kv_cache``."""
    return StaticKVCache(**sizes_of(request, batch_size, capacity, dtype, device))


if TYPE_CHECKING:
    _builder: KVCacheBuilder = build_static_kv_cache

    def _fit_the_slot(
        cache: KVCache, step: CacheStep, layer: StepLayer
    ) -> tuple[KVCacheInterface, CacheStepInterface, PagedLayerCache]:
        return cache, step, layer
