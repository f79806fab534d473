"""What a key/value cache asks of what each layer holds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from transom.transformer.attention_mask import AttentionMask
    from transom.transformer.kv_cache import CacheStep

__all__ = ["CacheEntry"]


class CacheEntry(Protocol):
    """What one layer of a `KVCache` holds; a module."""

    @property
    def window(self) -> int | None:
        """How many of the last positions it holds; `None` = all."""
        ...

    def update(self, step: CacheStep, key: Tensor, value: Tensor, /) -> tuple[Tensor, Tensor]:
        """Write ``[b, s, g, d]`` and ``[b, s, g, dv]``; return the keys and values ``[b, t, ...]`` to attend to."""
        ...

    def mask(self, step: CacheStep, mask: AttentionMask, /) -> AttentionMask:
        """Derive the mask over what `update` returned."""
        ...

    def commit(self, step: CacheStep, /) -> None:
        """Write what `update` put off."""
        ...

    def reorder(self, rows: Tensor, length: int, /) -> None:
        """Let row i hold what row ``rows[i]`` holds in its first ``length`` positions."""
        ...
