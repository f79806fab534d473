"""What can be chosen of the core attention on FlashAttention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, final

__all__ = ["FlashOptions", "Wanted"]

Wanted = Literal["auto", 2, 3, 4]


@final
@dataclass(frozen=True, kw_only=True)
class FlashOptions:
    """Options of ``flash_attention``.

    Args:
        version: of FlashAttention; ``"auto"`` takes the newest that is installed and can serve. The plan says which.

    Example:
        >>> FlashOptions(version=2)
        FlashOptions(version=2)
    """

    version: Wanted = "auto"
