"""Rotary positions with xPos decay, as Zeta's block has them."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor, nn

__all__ = ["XPosRotary"]


@final
class XPosRotary(nn.Module):
    """Rotates component i of a head with i + d/2; queries grow and keys shrink with their positions.

    The tables are constants: a state that lacks them, or has others, loads as well. They stay in float32 (float64 in a
    float64 model) when the model is cast.

    Args:
        dim: d, an even head size.
        scale_base: tokens over which the decay reaches its base; the longer, the slower.
        use_xpos: grow and shrink; False = rotate alone.
        dtype: of the model.

    Attributes:
        inv_freq: ``[d / 2]``, radians per token.
        scale: ``[d / 2]``, bases of the decay.

    Source: Su et al. 2021 (RoFormer), equation 34; Sun et al. 2022 (xPos), section 3.2. The decay is counted from
    ``centre``, which cancels in every score, and keeps the factors near one.

    Example:
        >>> rotary = XPosRotary(4)
        >>> query, key = torch.randn(1, 3, 2, 4), torch.randn(1, 3, 1, 4)
        >>> rotated, _ = rotary(query, key, torch.arange(3), centre=0)
        >>> torch.equal(rotated[:, 0], query[:, 0])
        True
    """

    inv_freq: Tensor
    scale: Tensor

    def __init__(
        self, dim: int, scale_base: int = 512, use_xpos: bool = True, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.dim, self.scale_base, self.use_xpos = dim, scale_base, use_xpos
        self._make_tables(dtype or torch.float32)

    def forward(self, query: Tensor, key: Tensor, positions: Tensor, *, centre: int) -> tuple[Tensor, Tensor]:
        """Rotate.

        Args:
            query: ``[b, s, n, d]``.
            key: ``[b, s, g, d]``.
            positions: integers ``[s]`` or ``[b, s]``.
            centre: the position at which nothing grows or shrinks.

        Returns:
            query and key, in their dtypes.
        """
        where = positions[..., None, None].to(self.inv_freq.dtype)  # [(b,) s, 1, 1]
        cos, sin = (where * self.inv_freq).cos(), (where * self.inv_freq).sin()  # [(b,) s, 1, d / 2]
        if not self.use_xpos:
            return _rotated(query, cos, sin), _rotated(key, cos, sin)
        grown = self.scale ** ((where - centre) / self.scale_base)
        return _rotated(query, cos * grown, sin * grown), _rotated(key, cos / grown, sin / grown)

    def _make_tables(self, dtype: torch.dtype, device: torch.device | None = None) -> None:
        wide = torch.float64 if dtype is torch.float64 else torch.float32
        even = torch.arange(0, self.dim, 2, dtype=wide, device=device)
        self.register_buffer("inv_freq", 1.0 / 10000.0 ** (even / self.dim))
        self.register_buffer("scale", (even + 0.4 * self.dim) / (1.4 * self.dim))

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        # Moved to another device or dtype, the tables are made anew: a cast would round them, and to_empty blank them.
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._make_tables(self.inv_freq.dtype, self.inv_freq.device)
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        """Load nothing, and miss nothing: both tables follow from the head size."""


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair ``(x_i, x_{i + d/2})`` of ``[b, s, n, d]``, in the tables' precision."""
    first, second = x.to(torch.promote_types(x.dtype, cos.dtype)).chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)
