"""LayerNorm and RMSNorm by Transformer Engine."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, final

import torch
from torch import Tensor, nn
from transom.transformer.utils import torch_dtype

from transom_te_linear import engine
from transom_te_linear.host import TeHost
from transom_te_linear.installation import missing

if TYPE_CHECKING:
    from transom import TransformerConfig
    from transom.slots.norm import Norm, NormBuilder, NormRequest

__all__ = ["TeNorm"]


@final
class TeNorm(TeHost):
    """Normalises the last dimension in one kernel; statistics are in float32.

    Args:
        config: ``normalization``, ``layernorm_zero_centered_gamma``, ``params_dtype``.
        hidden_size: width of the last dimension.
        eps: is added to the variance, or to the mean square.

    Source: Ba et al. 2016 (LayerNorm); Zhang and Sennrich 2019 (RMSNorm).
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float) -> None:
        super().__init__()
        self.kind, self.zero_centered_gamma = config.normalization, config.layernorm_zero_centered_gamma
        dtype = torch_dtype(config.params_dtype)
        self.adopt(
            partial(
                engine.make_norm, self.kind, hidden_size, eps=eps, dtype=dtype, zero_centered=self.zero_centered_gamma
            ),
            {"weight": "weight", "bias": "bias"},
        )
        self.eps = eps
        self.reset_parameters()

    @classmethod
    def supports(cls, request: NormRequest) -> Iterable[str]:
        """Say why a request cannot be served; nothing when it can."""
        return missing(request.context)

    def reset_parameters(self) -> None:
        """Start with a scale of one and a shift of zero."""
        nn.init.constant_(self.weight, 0.0 if self.zero_centered_gamma else 1.0)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor, /) -> Tensor:
        """Map ``[..., hidden_size]`` to the same shape and dtype."""
        if x.dtype == self.weight.dtype:
            out: Tensor = self.inner(x)
            return out
        wide = torch.promote_types(x.dtype, self.weight.dtype)  # the narrower would round what the other keeps
        return self.inner(x.to(wide)).to(x.dtype)  # type: ignore[no-any-return]

    def extra_repr(self) -> str:
        """Say which norm, its width and eps."""
        return f"{self.kind}, {len(self.weight)}, eps={self.eps}"


if TYPE_CHECKING:
    _builder: NormBuilder = TeNorm

    def _is_a_norm(module: TeNorm) -> Norm:
        return module
