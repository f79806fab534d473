"""What attention sees of a key/value cache: one layer's entry."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["LayerCache"]


class LayerCache(Protocol):
    """The keys and values that one attention of one layer has seen; self- and cross-attention have separate entries."""

    def update(self, key: Tensor, value: Tensor, positions: Tensor, /) -> tuple[Tensor, Tensor, Tensor]:
        """Write new keys and values, and return all that are held.

        Args:
            key: ``[b, s, g, d]``, already rotated.
            value: ``[b, s, g, dv]``.
            positions: where to write, ``[s]`` or ``[b, s]``.

        Returns:
            keys ``[b, t, g, d]``, values ``[b, t, g, dv]`` and lengths ``[b]``: positions of each row in use.
        """
        ...
