"""LayerNorm by Apex's FastLayerNorm, whose kernels are each made for one width."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, final

import torch
from torch import Tensor, nn
from transom.transformer.utils import torch_dtype

from transom_apex_norm import kernels
from transom_apex_norm.installation import FAST, missing
from transom_apex_norm.options import ApexOptions

if TYPE_CHECKING:
    from transom import TransformerConfig
    from transom.slots.norm import Norm, NormBuilder, NormRequest

__all__ = ["WIDTHS", "ApexFastLayerNorm"]

WIDTHS = frozenset(
    {1024, 1536, 2048, 2304, 3072, 3840, 4096, 5120, 6144, 8192, 10240, 12288, 12800, 15360, 16384, 18432, 20480}
    | {24576, 25600, 30720, 32768, 40960, 49152, 65536}
)
"""Widths for which every Apex since 2021 has a kernel."""


@final
class ApexFastLayerNorm(nn.Module):
    """LayerNorm by a kernel that was tuned for its width; statistics are in float32.

    Input, scale and shift are brought to one dtype, the widest of theirs (float32 with zero-centred gamma), and the
    result back to the input's.

    Args:
        config: ``layernorm_zero_centered_gamma``, ``params_dtype``.
        hidden_size: width of the last dimension, one of `WIDTHS`.
        eps: is added to the variance.
        options: `ApexOptions`.

    Source: Ba et al. 2016.

    Example:
        >>> from transom import TransformerConfig
        >>> config = TransformerConfig(num_layers=1, hidden_size=1024, num_attention_heads=8)
        >>> ApexFastLayerNorm(config, hidden_size=1024, eps=1e-5)
        ApexFastLayerNorm(1024, eps=1e-05)
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
        self.bias = nn.Parameter(torch.empty(hidden_size, dtype=dtype))
        self.reset_parameters()

    @classmethod
    def supports(cls, request: NormRequest) -> Iterable[str]:
        """Say why a request cannot be served; nothing when it can."""
        if request.hidden_size not in WIDTHS:
            yield (
                f"it has no kernel for a width of {request.hidden_size}, only for {min(WIDTHS)} to {max(WIDTHS)} in "
                f"{len(WIDTHS)} steps (transom_apex_norm.fast.WIDTHS)"
            )
        reason = missing(FAST)
        if reason is not None:
            yield reason

    def reset_parameters(self) -> None:
        """Start with a scale of one and a shift of zero."""
        nn.init.constant_(self.weight, 0.0 if self.zero_centered_gamma else 1.0)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor, /) -> Tensor:
        """Map ``[..., hidden_size]`` to the same shape and dtype."""
        wide = torch.promote_types(x.dtype, self.weight.dtype)
        scale = self.weight.to(wide)
        if self.zero_centered_gamma:
            wide = torch.float32
            scale = self.weight.to(wide) + 1.0
        out = kernels.fast_layer_norm(
            x.to(wide), scale, self.bias.to(wide), self.eps, memory_efficient=self.memory_efficient
        )
        return out.to(x.dtype)

    def extra_repr(self) -> str:
        """Say its width, eps, and whether it saves memory."""
        saves = ", memory_efficient" if self.memory_efficient else ""
        return f"{len(self.weight)}, eps={self.eps}{saves}"


if TYPE_CHECKING:
    _builder: NormBuilder = ApexFastLayerNorm

    def _is_a_norm(module: ApexFastLayerNorm) -> Norm:
        return module
