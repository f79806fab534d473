"""A linear for column and row places on one process, with products of oneDNN."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor, nn
from transom.transformer.initialization import initialize
from transom.transformer.linear import refuse_several_ranks
from transom.transformer.sharding import ShardedModule
from transom.transformer.utils import torch_dtype

from transom_onednn_linear.product import linear, missing

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from transom import TransformerConfig
    from transom.slots.linear import ColumnLinearBuilder, LinearRequest, RowLinearBuilder

__all__ = ["OneDNNLinear"]


@final
class OneDNNLinear(ShardedModule):
    """``x @ weight.T + bias``, by oneDNN in float32 on a CPU, for column and row places alike.

    A model that is moved to another device or cast to another dtype stays correct: torch computes there.

    Args:
        input_size: width of the input.
        output_size: width of the output.
        config: dtype, initialisation.
        init_method: fills the weight in place.
        bias: have a bias, zero at first.
        skip_bias_add: return the bias instead of adding it.
        tp_group: `None`, or a group of one process.
        of_the_place: what matters to several processes alone, ``gather_output`` say; is not read.

    Raises:
        ParallelError: ``tp_group`` has several processes.

    Example:
        >>> from transom import TransformerConfig
        >>> config = TransformerConfig(num_layers=1, hidden_size=4, num_attention_heads=1)
        >>> linear = OneDNNLinear(
        ...     4, 6, config=config, init_method=nn.init.ones_, bias=True, skip_bias_add=True, tp_group=None
        ... )
        >>> out, bias = linear(torch.ones(1, 2, 4))
        >>> out.shape, bias.shape
        (torch.Size([1, 2, 6]), torch.Size([6]))
    """

    def __init__(
        self,
        input_size: int,
        output_size: int,
        /,
        *,
        config: TransformerConfig,
        init_method: Callable[[Tensor], Any],
        bias: bool,
        skip_bias_add: bool,
        tp_group: ProcessGroup | None,
        **of_the_place: Any,
    ) -> None:
        super().__init__()
        refuse_several_ranks("onednn_linear", tp_group)
        dtype = torch_dtype(config.params_dtype)
        self.weight = nn.Parameter(torch.empty(output_size, input_size, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(output_size, dtype=dtype)) if bias else None
        self.skip_bias_add = skip_bias_add
        self._config, self._init_method = config, init_method
        self.reset_parameters()

    @classmethod
    def supports(cls, request: LinearRequest) -> Iterable[str]:
        """Say why a request cannot be served; nothing when it can."""
        reason = missing()
        if reason is not None:
            yield reason

    def reset_parameters(self) -> None:
        """Fill the weight by the init method and the bias with zeros."""
        initialize(self.weight, self._init_method, self._config)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor, /) -> tuple[Tensor, Tensor | None]:
        """Map ``x [..., in]`` to ``[..., out]``, and return the bias when it is not added."""
        if self.skip_bias_add:
            return linear(x, self.weight), self.bias
        return linear(x, self.weight, self.bias), None

    def backward_dw(self) -> None:
        """Do nothing: no gradient is put off."""

    def extra_repr(self) -> str:
        """Say the sizes."""
        out_features, in_features = self.weight.shape
        return f"{in_features}, {out_features}, bias={self.bias is not None}"


if TYPE_CHECKING:
    _column: ColumnLinearBuilder = OneDNNLinear
    _row: RowLinearBuilder = OneDNNLinear
