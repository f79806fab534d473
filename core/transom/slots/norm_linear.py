"""The norm_linear slot: a norm and the column linear that alone reads it, in one module that fills both places."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from transom.slots.linear import COLUMN_LINEAR, LinearRequest
from transom.slots.norm import NORM
from transom.slots.slot import Slot

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from transom.transformer.transformer_config import TransformerConfig

__all__ = ["NORM_LINEAR", "SEPARATE", "NormLinear", "NormLinearBuilder", "NormLinearRequest"]

SEPARATE = "separate"
"""Stands, at the end of a chain, for no module of this slot: norm and linear are filled by their own slots."""


@dataclass(frozen=True, kw_only=True)
class NormLinearRequest(LinearRequest):
    """What the module must serve: a linear's request, the norm's features among its own, and the norm's ``eps``."""

    eps: float


class NormLinear(Protocol):
    """A norm followed by a linear map: ``norm(x) @ weight.T (+ bias)``; the bias may be returned instead of added.

    Its canonical parameters are ``weight`` ``[out, in]`` and ``bias`` ``[out]``, as those of
    `transom.slots.linear.Linear`, and ``norm.weight`` and, of a LayerNorm, ``norm.bias`` ``[in]``, as those of
    `transom.slots.norm.Norm`. A model's checkpoints hold the latter under the name of the norm's own place.
    """

    def forward(self, x: Tensor, /) -> tuple[Tensor, Tensor | None]:
        """Map ``[..., in]`` to ``([..., out], bias)``; bias is `None` unless ``skip_bias_add`` returns it."""
        ...

    def __call__(self, x: Tensor, /) -> tuple[Tensor, Tensor | None]:
        """Run `forward`."""
        ...

    def norm(self, x: Tensor, /) -> Tensor:
        """Norm alone, ``[..., in]`` to the same shape: for what acts on the linear's input, as adapters do."""
        ...

    def backward_dw(self) -> None:
        """Add the weight gradient that backward put off; does nothing unless ``config.delay_wgrad_compute``."""
        ...


class NormLinearBuilder(Protocol):
    """Makes a norm and a column linear in one; it is called in the linear's place, as a column linear's builder is.

    Args of the call are those of `transom.slots.linear.ColumnLinearBuilder`; which norm it is, its epsilon and whether
    its scale is stored minus one, ``config`` says.
    """

    def __call__(
        self,
        input_size: int,
        output_size: int,
        /,
        *,
        config: TransformerConfig,
        init_method: Callable[[Tensor], Any],
        gather_output: bool,
        bias: bool,
        skip_bias_add: bool,
        is_expert: bool,
        tp_comm_buffer_name: str | None,
        tp_group: torch.distributed.ProcessGroup | None,
        stride: int = 1,
    ) -> NormLinear:
        """Make the module."""
        ...


NORM_LINEAR = Slot(
    name="norm_linear",
    kind="kernel",
    api=(1, 0),
    summary="norm and column linear in one module, which fills both places",
    request=NormLinearRequest,
    builder=NormLinearBuilder,
    interface=NormLinear,
    features={**NORM.features, **COLUMN_LINEAR.features},
)
