"""One call of a core attention: a mask, beside a formula that says independently which keys a query sees.

In every formula ``b``, ``h``, ``i`` and ``j`` are the indices of row, head, query and key, as integer tensors that
broadcast to ``[b, n, s, t]``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

__all__ = ["Formula", "Scenario", "scenario"]

Formula = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
Window = tuple[int | None, int | None]


@dataclass(frozen=True)
class Scenario:
    """One call of a core attention.

    Args:
        name: of the case.
        shows: what agreement shows.
        features: that the request asks for, beside those that follow from the fields below.
        mask: fields of an `AttentionMask`; lists become tensors. `None` = no mask object at all.
        sees: whether a query sees a key; `None` = it does.
        adds: what is added to the scores, computed in float64.
        sizes: ``(b, s, t)``.
        heads: ``(n, g)``.
        head_sizes: ``(d, dv)``.
        window: of the request.
        config: fields of the config.
        scale: ``softmax_scale`` given to the builder.
        bias_shape: of a random bias, an input of its own.
        magnitude: of queries and keys.
        shares: context-parallel ranks, whose shares of the queries are asked one after another; 1 = all in one call.
        principal: is tried in every dtype.
    """

    name: str
    shows: str
    features: frozenset[str] = frozenset()
    mask: Mapping[str, Any] | None = None
    sees: Formula | None = None
    adds: Formula | None = None
    sizes: tuple[int, int, int] = (2, 6, 6)
    heads: tuple[int, int] = (4, 4)
    head_sizes: tuple[int, int] = (16, 16)
    window: Window | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    scale: float | None = None
    bias_shape: tuple[int, int] | None = None
    magnitude: float = 1.0
    shares: int = 1
    principal: bool = False

    @property
    def asked(self) -> frozenset[str]:
        """Every feature that the request asks for."""
        implied = {
            "gqa": self.heads[0] != self.heads[1],
            "value_head_size": self.head_sizes[0] != self.head_sizes[1],
            "window": self.window is not None,
        }
        return self.features | {name for name, is_asked in implied.items() if is_asked}


def scenario(name: str, shows: str, features: str, **fields: Any) -> Scenario:
    """Make a scenario; ``features`` are words."""
    return Scenario(name, shows, frozenset(features.split()), **fields)
