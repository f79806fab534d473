"""The linear slots: `column_linear` splits its output over tensor-parallel ranks, `row_linear` its input."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from transom.slots.request import Request
from transom.slots.slot import Slot

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from transom.transformer.transformer_config import TransformerConfig

__all__ = ["COLUMN_LINEAR", "ROW_LINEAR", "ColumnLinearBuilder", "Linear", "LinearRequest", "RowLinearBuilder"]


@dataclass(frozen=True, kw_only=True)
class LinearRequest(Request):
    """What a linear must serve.

    Args:
        input_size: width of the input over all tensor-parallel ranks.
        output_size: width of the output over all tensor-parallel ranks.
        bias: whether it has a bias.
        stride: how many logical matrices are stacked in the output dimension (2 for a fused gate and up projection).
        is_expert: whether it belongs to an expert of a mixture.
    """

    input_size: int
    output_size: int
    bias: bool
    stride: int = 1
    is_expert: bool = False


class Linear(Protocol):
    """A linear map ``x @ weight.T (+ bias)`` whose bias may be returned instead of added.

    ``weight`` has shape ``[out, in]`` (of this rank) and dtype ``config.params_dtype``; the bias starts at zero.
    """

    def forward(self, x: Tensor, /) -> tuple[Tensor, Tensor | None]:
        """Map ``[..., in]`` to ``([..., out], bias)``; bias is `None` unless ``skip_bias_add`` returns it."""
        ...

    def __call__(self, x: Tensor, /) -> tuple[Tensor, Tensor | None]:
        """Run `forward`."""
        ...

    def backward_dw(self) -> None:
        """Add the weight gradient that backward put off; does nothing unless ``config.delay_wgrad_compute``."""
        ...


class ColumnLinearBuilder(Protocol):
    """Makes a linear whose output is split over the tensor-parallel ranks.

    Args of the call:
        input_size: width of the input.
        output_size: width of the output over all ranks.
        config: the model's config (dtype, initialisation, parallel sizes).
        init_method: initialises the weight in place.
        gather_output: return the whole output on every rank rather than this rank's part.
        bias: have a bias.
        skip_bias_add: return the bias rather than adding it.
        is_expert: belongs to an expert of a mixture.
        tp_comm_buffer_name: name for overlapped communication buffers; may be ignored.
        tp_group: the tensor-parallel process group; `None` means one process.
        stride: how many logical matrices are stacked in the output dimension.
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
    ) -> Linear:
        """Make the module."""
        ...


class RowLinearBuilder(Protocol):
    """Makes a linear whose input is split over the tensor-parallel ranks.

    Args of the call are those of `ColumnLinearBuilder`; ``input_is_parallel``: the input is only this rank's part.
    """

    def __call__(
        self,
        input_size: int,
        output_size: int,
        /,
        *,
        config: TransformerConfig,
        init_method: Callable[[Tensor], Any],
        bias: bool,
        input_is_parallel: bool,
        skip_bias_add: bool,
        is_expert: bool,
        tp_comm_buffer_name: str | None,
        tp_group: torch.distributed.ProcessGroup | None,
    ) -> Linear:
        """Make the module."""
        ...


_FEATURES = {
    "tensor_parallel": "the weight is split over several processes",
    "sequence_parallel": "activations outside are split along the sequence",
    "delay_wgrad": "backward leaves the weight's gradient to backward_dw()",
    "expert": "belongs to an expert of a mixture",
}

COLUMN_LINEAR = Slot(
    name="column_linear",
    kind="kernel",
    api=(1, 0),
    summary="linear map whose output is split over tensor-parallel ranks",
    request=LinearRequest,
    builder=ColumnLinearBuilder,
    interface=Linear,
    features=_FEATURES,
    default="torch_linear",
)

ROW_LINEAR = Slot(
    name="row_linear",
    kind="kernel",
    api=(1, 0),
    summary="linear map whose input is split over tensor-parallel ranks",
    request=LinearRequest,
    builder=RowLinearBuilder,
    interface=Linear,
    features=_FEATURES,
    default="torch_linear",
)
