"""LayerNorm and RMSNorm by Liger Kernel."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, final

import torch
from torch import Tensor, nn
from transom.transformer.utils import torch_dtype

from transom_liger import kernels
from transom_liger.installation import missing

if TYPE_CHECKING:
    from transom import TransformerConfig
    from transom.slots.norm import Norm, NormBuilder, NormRequest

__all__ = ["LigerNorm"]


@final
class LigerNorm(nn.Module):
    """Normalises the last dimension in one kernel, forward and backward, in float32; the result has the input's dtype.

    Args:
        config: ``normalization``, ``layernorm_zero_centered_gamma``, ``params_dtype``.
        hidden_size: width of the last dimension.
        eps: is added to the variance, or to the mean square.

    Source: Ba et al. 2016 (LayerNorm); Zhang and Sennrich 2019 (RMSNorm); Hsu et al. 2024 (Liger Kernel).

    Example:
        >>> from transom import TransformerConfig
        >>> config = TransformerConfig(num_layers=1, hidden_size=4, num_attention_heads=1, normalization="RMSNorm")
        >>> LigerNorm(config, hidden_size=4, eps=1e-6)
        LigerNorm(RMSNorm, 4, eps=1e-06)
    """

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float) -> None:
        super().__init__()
        dtype = torch_dtype(config.params_dtype)
        self.eps = eps
        self.offset = 1.0 if config.layernorm_zero_centered_gamma else 0.0
        self.weight = nn.Parameter(torch.empty(hidden_size, dtype=dtype))
        has_bias = config.normalization == "LayerNorm"
        self.bias = nn.Parameter(torch.empty(hidden_size, dtype=dtype)) if has_bias else None
        self.reset_parameters()

    @classmethod
    def supports(cls, request: NormRequest) -> Iterable[str]:
        """Say why a request cannot be served; nothing when it can."""
        reason = missing("layer_norm" if "layernorm" in request.features else "rms_norm")
        if reason is not None:
            yield reason

    def reset_parameters(self) -> None:
        """Start with a scale of one and a shift of zero."""
        nn.init.constant_(self.weight, 1.0 - self.offset)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor, /) -> Tensor:
        """Map ``[..., hidden_size]`` to the same shape and dtype."""
        if self.bias is None:
            return kernels.rms_norm(x, self.weight, self.eps, self.offset)
        scale = self.weight.float() + self.offset if self.offset else self.weight
        return kernels.layer_norm(x, scale, self.bias, self.eps)

    def extra_repr(self) -> str:
        """Say which norm, its width and eps."""
        kind = "RMSNorm" if self.bias is None else "LayerNorm"
        return f"{kind}, {len(self.weight)}, eps={self.eps}"


if TYPE_CHECKING:
    _builder: NormBuilder = LigerNorm

    def _is_a_norm(module: LigerNorm) -> Norm:
        return module
