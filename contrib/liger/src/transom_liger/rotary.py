"""Rotary position embedding by Liger Kernel."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor, nn
from transom.transformer.rotary import rotary_frequencies

from transom_liger import kernels
from transom_liger.installation import missing

if TYPE_CHECKING:
    from transom import TransformerConfig
    from transom.slots.rotary import Rotary, RotaryBuilder, RotaryRequest

__all__ = ["LigerRotary"]


@final
class LigerRotary(nn.Module):
    """Rotates queries and keys in one kernel, whose angles are those of core's, in float32.

    Args:
        config: base and scaling.
        request: ``head_size`` d, of which the first ``rotary_dim`` components are rotated.

    Source: Su et al. 2021, RoFormer; Hsu et al. 2024 (Liger Kernel).

    Example:
        >>> from transom import BuildContext, TransformerConfig
        >>> from transom.slots.rotary import RotaryRequest
        >>> config = TransformerConfig(num_layers=1, hidden_size=8, num_attention_heads=2)
        >>> request = RotaryRequest(context=BuildContext(), head_size=4, rotary_dim=4)
        >>> LigerRotary(config, request=request).angles(2, None)[0, 1]
        tensor([1.0000, 0.0100, 1.0000, 0.0100])
    """

    frequencies: Tensor

    def __init__(self, config: TransformerConfig, *, request: RotaryRequest) -> None:
        super().__init__()
        stretch = config.seq_len_interpolation_factor or 1.0
        self._frequencies = rotary_frequencies(
            request.rotary_dim, config.rotary_base, config.rope_scaling, interpolation_factor=stretch
        )
        scaling = config.rope_scaling
        self.amplitude = 1.0 if scaling is None or scaling.attention_factor is None else scaling.attention_factor
        self._hold()

    @classmethod
    def supports(cls, request: RotaryRequest) -> Iterable[str]:
        """Say why a request cannot be served; nothing when it can."""
        reason = missing("rope")
        if reason is not None:
            yield reason

    def forward(self, query: Tensor, key: Tensor, positions: Tensor | None = None, /) -> tuple[Tensor, Tensor]:
        """Rotate queries and keys.

        Args:
            query: ``[b, s, n, d]``.
            key: ``[b, s, g, d]``.
            positions: integers ``[s]`` or ``[b, s]``; `None` = 0 ... s-1.

        Returns:
            query and key, rotated; new tensors.
        """
        angles = self.angles(query.shape[1], positions)
        cos, sin = angles.cos() * self.amplitude, angles.sin() * self.amplitude
        # The kernel works in place, over memory that is [b, s, n, d].
        query, key = (x.clone(memory_format=torch.contiguous_format).transpose(1, 2) for x in (query, key))
        query, key = kernels.rotate(query, key, cos, sin)
        return query.transpose(1, 2), key.transpose(1, 2)

    def angles(self, length: int, positions: Tensor | None) -> Tensor:
        """Compute the angle of each component, ``[1 or b, s, rotary_dim]``."""
        where = torch.arange(length, device=self.frequencies.device) if positions is None else positions
        angles = where.unsqueeze(-1) * self.frequencies  # [(b,) s, D / 2]
        both = torch.cat([angles, angles], dim=-1)
        return both if both.dim() == 3 else both.unsqueeze(0)

    def _hold(self, device: torch.device | None = None) -> None:
        frequencies = torch.tensor(self._frequencies, dtype=torch.float32, device=device)
        self.register_buffer("frequencies", frequencies, persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        # A cast would round the frequencies, and to_empty blank them.
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._hold(self.frequencies.device)
        return self


if TYPE_CHECKING:
    _builder: RotaryBuilder = LigerRotary

    def _is_rotary(module: LigerRotary) -> Rotary:
        return module
