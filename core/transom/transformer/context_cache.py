"""What a decoder keeps of the sequence that it reads: each layer's keys and values, made once a sequence."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, final

from torch import Tensor, nn

from transom.errors import CacheError
from transom.transformer.direct_attributes import submodule

if TYPE_CHECKING:
    from transom.slots.attention import ContextCache
    from transom.slots.kv_cache import CacheStep, KVCache, LayerCache
    from transom.transformer.attention_mask import AttentionMask

__all__ = ["ContextEntry", "EncoderDecoderCache"]


@final
class ContextEntry:
    """The keys and values of what one cross-attention reads.

    Example:
        >>> import torch
        >>> entry, states = ContextEntry(), torch.ones(1, 3, 8)
        >>> project = lambda states: (states.view(1, 3, 2, 4), states.view(1, 3, 2, 4))
        >>> key, _ = entry.read(states, project)
        >>> entry.read(None, project)[0] is key
        True
    """

    def __init__(self) -> None:
        self.held: tuple[Tensor, Tensor] | None = None

    def read(
        self, states: Tensor | None, project: Callable[[Tensor], tuple[Tensor, Tensor]], /
    ) -> tuple[Tensor, Tensor]:
        """Give what is held; else project the states ``[b, t, h]`` and hold that.

        Raises:
            CacheError: nothing is held, and there are no states to make it of.
        """
        if self.held is None:
            if states is None:
                raise CacheError(
                    "the cache holds nothing that could be read.",
                    hint="pass encoder_hidden_states at a sequence's first step",
                )
            # Whole, not views of what holds both: so they stay alike when rows are reordered, to a compiled step too.
            key, value = project(states)
            self.held = key.contiguous(), value.contiguous()
        return self.held


@final
class EncoderDecoderCache(nn.Module):
    """A decoder's cache: of what it wrote, in any kind of `transom.slots.kv_cache.KVCache`; and of what it reads.

    What is read never grows, so it has entries of its own that self-attention never sees. They are made at a sequence's
    first step, and anew when another tensor is to be read.

    Args:
        written: keys and values of the self-attentions.
        num_layers: entries of what is read.

    Attributes:
        source: what the entries were made of, ``[b, t, h]``; `None` = nothing yet.
    """

    written: Any = submodule()
    source: Tensor | None

    def __init__(self, written: KVCache, num_layers: int) -> None:
        super().__init__()
        self.written = written
        self.entries = [ContextEntry() for _ in range(num_layers)]
        self.source = None

    @property
    def lengths(self) -> Tensor:
        """Integers ``[batch_size]``, positions of each row that were written."""
        lengths: Tensor = self.written.lengths
        return lengths

    @property
    def batch_size(self) -> int:
        """Most rows."""
        return int(self.written.batch_size)

    @property
    def capacity(self) -> int:
        """Most positions of a row."""
        return int(self.written.capacity)

    def read_from(self, source: Tensor | None, batch_size: int) -> None:
        """Say what the next step reads.

        Args:
            source: ``[b, t, h]``; `None` = the same as before. The same tensor as before is not read again.
            batch_size: b of the step.

        Raises:
            CacheError: there is nothing to read, or it is for another number of rows.
        """
        if source is not None and source is not self.source:
            self.source = source
            self.entries = [ContextEntry() for _ in self.entries]
        if self.source is None:
            raise CacheError(
                "the decoder has nothing to read.",
                hint="pass encoder_hidden_states at a sequence's first step",
            )
        if self.source.shape[0] != batch_size:
            raise CacheError(
                f"the cache reads {self.source.shape[0]} rows and the step writes {batch_size}.",
                hint="pass encoder_hidden_states with a row for each row that is written, or reset the caches",
                capacity=self.source.shape[0],
                asked=batch_size,
            )

    def begin(self, positions: Tensor | None, batch_size: int, /) -> _Step:
        """Open a step, as `transom.slots.kv_cache.KVCache` says."""
        return _Step(self.written.begin(positions, batch_size), self.entries)

    def check(self, batch_size: int, length: int, /) -> None:
        """Refuse with a `CacheError` what would not fit, by numbers alone."""
        self.written.check(batch_size, length)

    def reserve(self, batch_size: int, length: int, /) -> None:
        """Make room for ``length`` positions of the first rows."""
        self.written.reserve(batch_size, length)

    def layer(self, number: int, /) -> LayerCache:
        """Return self-attention's entry of a layer, counted from 0, for an attention used alone."""
        entry: LayerCache = self.written.layer(number)
        return entry

    def rewind(self, length: int, /) -> None:
        """Forget all written positions from ``length`` on; what is read stays."""
        self.written.rewind(length)

    def reorder(self, rows: Tensor, /) -> None:
        """Let row i go on from what row ``rows[i]`` holds, written and read; ``rows`` are integers ``[b]``."""
        self.written.reorder(rows)
        for entry in self.entries:
            if entry.held is not None:
                key, value = entry.held
                entry.held = key.index_select(0, rows), value.index_select(0, rows)

    def reset(self) -> None:
        """Forget everything, what is read included, keeping the memory of what is written."""
        self.written.reset()
        self.entries = [ContextEntry() for _ in self.entries]
        self.source = None


@final
class _Step:
    """A step of the written part, whose layers also know what they read."""

    def __init__(self, step: CacheStep, entries: list[ContextEntry]) -> None:
        self.step, self.entries = step, entries

    def layer(self, number: int, /) -> _Layer:
        return _Layer(self.step.layer(number), self.entries[number])

    def mask(self, mask: AttentionMask | None, *number: int) -> AttentionMask:
        return self.step.mask(mask, *number)

    def commit(self) -> None:
        self.step.commit()


@final
class _Layer:
    """One layer's two entries: self-attention's, as which it serves, and cross-attention's."""

    def __init__(self, written: LayerCache, context: ContextEntry) -> None:
        self.written, self.context = written, context

    def update(self, key: Tensor, value: Tensor, positions: Tensor, /) -> tuple[Tensor, Tensor, Tensor]:
        return self.written.update(key, value, positions)

    def mask(self, mask: AttentionMask | None, /) -> AttentionMask:
        return self.written.mask(mask)


if TYPE_CHECKING:

    def _is_a_context_cache(entry: ContextEntry) -> ContextCache:
        return entry
