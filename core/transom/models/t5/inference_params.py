"""What T5 needs to write token by token: the caches, kept by the model or by the caller."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

import torch
from torch import Tensor, nn

from transom.errors import CacheError
from transom.transformer.context_cache import EncoderDecoderCache

if TYPE_CHECKING:
    from transom.slots.kv_cache import KVCache

__all__ = ["CacheMaker", "InferenceParams", "holds_context"]


@final
@dataclass
class InferenceParams:
    """A cache that belongs to the caller, and how far it is filled; each has its own sequences.

    Args:
        max_batch_size: most rows.
        max_sequence_length: most positions that the decoder writes.
        sequence_len_offset: position of the next call's first token; the caller adds the tokens of each call.
        cache: made at the first call.

    Example:
        >>> params = InferenceParams(max_batch_size=2, max_sequence_length=32)
        >>> params.sequence_len_offset += 1
        >>> params.sequence_len_offset
        1
    """

    max_batch_size: int
    max_sequence_length: int
    sequence_len_offset: int = 0
    cache: EncoderDecoderCache | None = None


def holds_context(cache: EncoderDecoderCache | None) -> bool:
    """Whether a cache holds what the decoder reads."""
    return cache is not None and cache.source is not None


@final
@dataclass(frozen=True)
class CacheMaker:
    """Makes the caches of a T5.

    Args:
        make: makes what keeps what the decoder writes, of ``batch_size``, ``capacity``, ``dtype`` and ``device``.
        masks: kinds of mask that the decoder was built for.
        longest: most positions of the model.
    """

    make: Callable[..., KVCache]
    masks: frozenset[str]
    longest: int

    def __call__(
        self, decoder: nn.Module | None, batch_size: int, dtype: torch.dtype | None, capacity: int | None
    ) -> EncoderDecoderCache:
        """Make one.

        Args:
            decoder: whose keys and values are kept.
            batch_size: most rows.
            dtype: of what is kept; `None` = the parameters'.
            capacity: most positions; `None` = as many as the model has.

        Raises:
            CacheError: there is no decoder, it was not built for caches, or a size is not one that it can have.
        """
        if decoder is None:
            raise CacheError("this stage has no decoder, and nothing else is cached.", hint="add_decoder=True")
        missing = sorted({"bottom_right", "positions"} - self.masks)
        if missing:
            raise CacheError(
                f"the model was not built for caches: its attention need not know {' and '.join(missing)}.",
                hint='build it with mode="infer", or add `masks: [bottom_right, positions]` to the spec',
            )
        capacity = self.longest if capacity is None else capacity
        if capacity > self.longest:
            raise CacheError(
                f"a capacity of {capacity} is more than max_sequence_length, {self.longest}.",
                hint="build the model with a larger max_sequence_length",
                capacity=self.longest,
                asked=capacity,
            )
        weight = next(decoder.parameters())
        written = self.make(batch_size=batch_size, capacity=capacity, dtype=dtype or weight.dtype, device=weight.device)
        return EncoderDecoderCache(written, num_layers=len(decoder.layers))  # type: ignore[arg-type]  # a ModuleList

    def of_caller(
        self, params: InferenceParams, decoder: nn.Module | None, ids: Tensor | None, positions: Tensor | None
    ) -> tuple[EncoderDecoderCache, Tensor | None]:
        """Give a caller's cache, made at the first call, and the positions of what is written.

        Args:
            params: the caller's.
            decoder: whose keys and values are kept.
            ids: ``[b, s]``, what is written.
            positions: of the ids; `None` = they go on from the caller's offset.

        Raises:
            CacheError: as for the maker itself.
        """
        if params.cache is None:
            params.cache = self(decoder, params.max_batch_size, None, params.max_sequence_length)
        if positions is None and ids is not None:
            positions = params.sequence_len_offset + torch.arange(ids.shape[-1], device=ids.device)
        return params.cache, positions
