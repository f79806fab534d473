"""LayerNorm and RMSNorm."""

from __future__ import annotations

from typing import TYPE_CHECKING, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transom.transformer.direct_attributes import parameter
from transom.transformer.rms_norm import rms_norm
from transom.transformer.utils import torch_dtype

if TYPE_CHECKING:
    from transom.slots.norm import Norm, NormBuilder
    from transom.transformer.transformer_config import TransformerConfig

__all__ = ["TorchNorm"]


@final
class TorchNorm(nn.Module):
    """Normalises the last dimension, then scales it (and, for LayerNorm, shifts it).

    LayerNorm: ``(x - mean(x)) / √(var(x) + ε) * γ + β``; RMSNorm: ``x / √(mean(x²) + ε) * γ``. All of it is computed in
    float32 (float64 for a float64 input), and the result has the input's dtype. With zero-centred gamma, ``weight`` is
    γ - 1: weight decay then pulls γ towards one.

    Args:
        config: ``normalization``, ``layernorm_zero_centered_gamma``, ``params_dtype``.
        hidden_size: width of the last dimension.
        eps: ε.

    Source: Ba et al. 2016 (LayerNorm, biased variance); Zhang and Sennrich 2019 (RMSNorm).

    Example:
        >>> from transom import TransformerConfig
        >>> config = TransformerConfig(
        ...     num_layers=1, hidden_size=2, num_attention_heads=1, normalization="RMSNorm")
        >>> TorchNorm(config, hidden_size=2, eps=0.0)(torch.tensor([1.0, 7.0])).detach()
        tensor([0.2000, 1.4000])
    """

    weight: nn.Parameter = parameter()
    bias: nn.Parameter | None = parameter()

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float) -> None:
        super().__init__()
        dtype = torch_dtype(config.params_dtype)
        self.eps = eps
        self.zero_centered_gamma = config.layernorm_zero_centered_gamma
        self.weight = nn.Parameter(torch.empty(hidden_size, dtype=dtype))
        has_bias = config.normalization == "LayerNorm"
        self.bias = nn.Parameter(torch.empty(hidden_size, dtype=dtype)) if has_bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start with γ = 1 and β = 0."""
        nn.init.constant_(self.weight, 0.0 if self.zero_centered_gamma else 1.0)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor, /) -> Tensor:
        """Map ``[..., hidden_size]`` to the same shape and dtype."""
        weight, bias = self.weight, self.bias
        if x.dtype == weight.dtype and not self.zero_centered_gamma:  # torch's kernels compute in float32 inside
            return rms_norm(x, weight, self.eps) if bias is None else self._normalise(x, weight, bias)
        wide = torch.promote_types(x.dtype, torch.float32)
        scale = weight.to(wide) + 1.0 if self.zero_centered_gamma else weight.to(wide)
        shift = None if bias is None else bias.to(wide)
        return self._normalise(x.to(wide), scale, shift).to(x.dtype)

    def _normalise(self, x: Tensor, scale: Tensor, shift: Tensor | None) -> Tensor:
        if shift is None:
            return rms_norm(x, scale, self.eps)
        return F.layer_norm(x, scale.shape, scale, shift, self.eps)

    def extra_repr(self) -> str:
        """Say which norm, its width and ε."""
        kind = "RMSNorm" if self.bias is None else "LayerNorm"
        return f"{kind}, {len(self.weight)}, eps={self.eps}"


if TYPE_CHECKING:
    _builder: NormBuilder = TorchNorm

    def _is_a_norm(module: TorchNorm) -> Norm:
        return module
