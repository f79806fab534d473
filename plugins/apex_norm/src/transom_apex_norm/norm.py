"""LayerNorm and RMSNorm by Apex's fused kernels."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, final

import torch
from torch import Tensor, nn
from transom.transformer.utils import torch_dtype

from transom_apex_norm import kernels
from transom_apex_norm.installation import FUSED, missing
from transom_apex_norm.options import ApexOptions

if TYPE_CHECKING:
    from transom import TransformerConfig
    from transom.slots.norm import Norm, NormBuilder, NormRequest

__all__ = ["ApexNorm"]


@final
class ApexNorm(nn.Module):
    """Normalises the last dimension in one kernel, forward and backward; statistics are in float32.

    Apex's kernel gives the dtype of its scale. Where input and scale differ, the wider is computed in and the result
    has the input's dtype: the kernel for mixed dtypes reads the narrower input as it is, but cannot be compiled, so
    that under ``torch.compile`` the input is widened first. With zero-centred gamma the scale is always float32.

    Args:
        config: ``normalization``, ``layernorm_zero_centered_gamma``, ``params_dtype``.
        hidden_size: width of the last dimension.
        eps: is added to the variance, or to the mean square.
        options: `ApexOptions`.

    Source: Ba et al. 2016 (LayerNorm); Zhang and Sennrich 2019 (RMSNorm).

    Example:
        >>> from transom import TransformerConfig
        >>> config = TransformerConfig(num_layers=1, hidden_size=4, num_attention_heads=1, normalization="RMSNorm")
        >>> ApexNorm(config, hidden_size=4, eps=1e-6)
        ApexNorm(RMSNorm, 4, eps=1e-06)
    """

    Options = ApexOptions

    def __init__(
        self, config: TransformerConfig, hidden_size: int, eps: float, *, options: ApexOptions | None = None
    ) -> None:
        super().__init__()
        dtype = torch_dtype(config.params_dtype)
        self.eps = eps
        self.memory_efficient = (options or ApexOptions()).memory_efficient
        self.zero_centered_gamma = config.layernorm_zero_centered_gamma
        self.weight = nn.Parameter(torch.empty(hidden_size, dtype=dtype))
        has_bias = config.normalization == "LayerNorm"
        self.bias = nn.Parameter(torch.empty(hidden_size, dtype=dtype)) if has_bias else None
        self.reset_parameters()

    @classmethod
    def supports(cls, request: NormRequest) -> Iterable[str]:
        """Say why a request cannot be served; nothing when it can."""
        reason = missing(FUSED)
        if reason is not None:
            yield reason

    def reset_parameters(self) -> None:
        """Start with a scale of one and a shift of zero."""
        nn.init.constant_(self.weight, 0.0 if self.zero_centered_gamma else 1.0)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor, /) -> Tensor:
        """Map ``[..., hidden_size]`` to the same shape and dtype."""
        if x.dtype == self.weight.dtype and not self.zero_centered_gamma:
            return self._fused(x, self.weight, self.bias)
        wide = torch.promote_types(x.dtype, torch.float32)
        scale = self.weight.to(wide) + 1.0 if self.zero_centered_gamma else self.weight.to(wide)
        shift = None if self.bias is None else self.bias.to(wide)
        if x.dtype == wide or torch.compiler.is_compiling():
            return self._fused(x.to(wide), scale, shift).to(x.dtype)
        return self._mixed(x, scale, shift).to(x.dtype)

    def _fused(self, x: Tensor, scale: Tensor, shift: Tensor | None) -> Tensor:
        if shift is None:
            return kernels.rms_norm(x, scale, self.eps, memory_efficient=self.memory_efficient)
        return kernels.layer_norm(x, scale, shift, self.eps, memory_efficient=self.memory_efficient)

    def _mixed(self, x: Tensor, scale: Tensor, shift: Tensor | None) -> Tensor:
        if shift is None:
            return kernels.mixed_rms_norm(x, scale, self.eps, memory_efficient=self.memory_efficient)
        return kernels.mixed_layer_norm(x, scale, shift, self.eps, memory_efficient=self.memory_efficient)

    def extra_repr(self) -> str:
        """Say which norm, its width, eps, and whether it saves memory."""
        kind = "RMSNorm" if self.bias is None else "LayerNorm"
        saves = ", memory_efficient" if self.memory_efficient else ""
        return f"{kind}, {len(self.weight)}, eps={self.eps}{saves}"


if TYPE_CHECKING:
    _builder: NormBuilder = ApexNorm

    def _is_a_norm(module: ApexNorm) -> Norm:
        return module
