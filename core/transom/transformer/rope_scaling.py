"""How rotary position embeddings are stretched beyond the context they were trained on."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["RopeScaling"]


@dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """How RoPE's frequencies are scaled.

    Args:
        type: ``"linear"`` divides all of them by `factor` (Chen et al. 2023); ``"llama3"`` only the low ones, with a
            smooth transition (Llama 3.1); ``"yarn"`` likewise by the number of rotations (Peng et al. 2023);
            ``"xpos"`` keeps them and lets queries and keys decay (Sun et al. 2022).
        factor: how much longer the context becomes.
        original_max_position_embeddings: the context the model was trained on, in tokens (llama3, yarn).
        low_freq_factor: llama3: wavelengths above original / this are scaled.
        high_freq_factor: llama3: wavelengths below original / this are kept.
        beta_fast: yarn: dimensions that rotate more often than this are kept.
        beta_slow: yarn: dimensions that rotate less often than this are scaled.
        attention_factor: yarn: multiplies cosines and sines. `None` = 0.1 ln(factor) + 1.
        mscale: yarn: 0.1 mscale ln(factor) + 1 instead, over the same with `mscale_all_dim`.
        mscale_all_dim: see `mscale`.
        scale_base: xpos: tokens over which the decay is to the power of one.
    """

    type: Literal["linear", "llama3", "yarn", "xpos"]
    factor: float = 1.0
    original_max_position_embeddings: int | None = None
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    scale_base: float = 512.0

    def to_dict(self) -> dict[str, Any]:
        """Give the fields that are not at their defaults as plain data."""
        values = {f.name: (getattr(self, f.name), f.default) for f in dataclasses.fields(self)}
        return {name: value for name, (value, default) in values.items() if value != default}
