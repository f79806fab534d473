"""Plain linears for the column and row places of a transformer: one process, the whole weight."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, ClassVar, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transom.errors import ParallelError
from transom.transformer.delayed_wgrad import DelayedLinear
from transom.transformer.direct_attributes import parameter
from transom.transformer.initialization import initialize
from transom.transformer.sharding import ShardedModule
from transom.transformer.utils import torch_dtype

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from transom.slots.linear import ColumnLinearBuilder, Linear, LinearRequest, RowLinearBuilder
    from transom.transformer.transformer_config import TransformerConfig

__all__ = ["ColumnLinear", "LinearProduct", "PlainLinear", "RowLinear", "refuse_several_ranks"]

LinearProduct = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""``x [..., in]``, ``weight [out, in]`` and ``bias [out]`` to ``x @ weight.T + bias``, differentiable."""


def refuse_several_ranks(name: str, tp_group: ProcessGroup | None) -> None:
    """Refuse a tensor-parallel group of more than one process, which would compute with whole weights on each.

    Args:
        name: the implementation's, for the message.
        tp_group: the group, or `None`.

    Raises:
        ParallelError: the group has several processes.
    """
    size = 1 if tp_group is None else tp_group.size()
    if size > 1:
        raise ParallelError(
            f"{name} computes on one process and was given a tensor-parallel group of {size}.",
            hint="name an implementation that declares tensor_parallel (transom list)",
            name=name,
            ranks=size,
        )


class PlainLinear(ShardedModule):
    """``x @ weight.T + bias``: what column and row linears are alike on one process; a subclass may multiply otherwise.

    Args:
        input_size: width of the input.
        output_size: width of the output.
        config: dtype, initialisation, delayed weight gradients.
        init_method: fills the weight in place.
        bias: have a bias, zero at first.
        skip_bias_add: return the bias instead of adding it.
        tp_group: `None`, or a group of one process.
        of_the_place: what matters to several processes alone, ``gather_output`` say; is not read.

    Attributes:
        product: computes ``x @ weight.T + bias``, but where weight gradients are delayed.
        called: the implementation's name, for messages.

    Raises:
        ParallelError: ``tp_group`` has several processes.

    Example:
        >>> from transom import TransformerConfig
        >>> class Doubled(PlainLinear):
        ...     product = staticmethod(lambda x, weight, bias: 2 * F.linear(x, weight, bias))
        >>> config = TransformerConfig(num_layers=1, hidden_size=4, num_attention_heads=1)
        >>> linear = Doubled(
        ...     4, 2, config=config, init_method=nn.init.ones_, bias=False, skip_bias_add=False, tp_group=None
        ... )
        >>> linear(torch.ones(1, 4))[0].tolist()
        [[8.0, 8.0]]
    """

    product: ClassVar[staticmethod[[Tensor, Tensor, Tensor | None], Tensor]] = staticmethod(F.linear)
    called: ClassVar[str] = "torch_linear"

    weight: nn.Parameter = parameter()
    bias: nn.Parameter | None = parameter()

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
        refuse_several_ranks(self.called, tp_group)
        dtype = torch_dtype(config.params_dtype)
        self.weight = nn.Parameter(torch.empty(output_size, input_size, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(output_size, dtype=dtype)) if bias else None
        self.skip_bias_add = skip_bias_add
        self._config, self._init_method = config, init_method
        self._delayed = DelayedLinear() if config.delay_wgrad_compute else None
        self._linear: LinearProduct = self._delayed or self.product
        self.reset_parameters()

    @classmethod
    def supports(cls, request: LinearRequest) -> Iterable[str]:
        """Say why a request cannot be served; nothing when it can."""
        if "delay_wgrad" in request.features and request.context.compile:
            yield "delay_wgrad keeps tensors outside the graph, which a compiled backward pass cannot"

    def reset_parameters(self) -> None:
        """Fill the weight by the init method and the bias with zeros."""
        initialize(self.weight, self._init_method, self._config)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor, /) -> tuple[Tensor, Tensor | None]:
        """Map ``x [..., in]`` to ``[..., out]``, and return the bias when it is not added."""
        if self.skip_bias_add:
            return self._linear(x, self.weight, None), self.bias
        return self._linear(x, self.weight, self.bias), None

    def backward_dw(self) -> None:
        """Add the weight's gradient that backward put off; does nothing unless ``config.delay_wgrad_compute``."""
        if self._delayed is not None:
            self._delayed.add_gradient_to(self.weight)

    def extra_repr(self) -> str:
        """Say the sizes."""
        out_features, in_features = self.weight.shape
        return f"{in_features}, {out_features}, bias={self.bias is not None}"


@final
class ColumnLinear(PlainLinear):
    """A linear for a column place: its output would be split over tensor-parallel ranks, of which there is one.

    Args:
        input_size: width of the input.
        output_size: width of the output.
        config: dtype, initialisation, delayed weight gradients.
        init_method: fills the weight in place.
        gather_output: does not matter on one process.
        bias: have a bias, zero at first.
        skip_bias_add: return the bias instead of adding it.
        is_expert: does not matter on one process.
        tp_comm_buffer_name: is not used: there is no communication.
        tp_group: `None`, or a group of one process.
        stride: does not matter on one process.

    Raises:
        ParallelError: ``tp_group`` has several processes.

    Example:
        >>> from transom import TransformerConfig
        >>> config = TransformerConfig(num_layers=1, hidden_size=4, num_attention_heads=1)
        >>> linear = ColumnLinear(
        ...     4, 6, config=config, init_method=nn.init.ones_, gather_output=False, bias=True, skip_bias_add=True,
        ...     is_expert=False, tp_comm_buffer_name=None, tp_group=None,
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
        gather_output: bool,
        bias: bool,
        skip_bias_add: bool,
        is_expert: bool,
        tp_comm_buffer_name: str | None,
        tp_group: ProcessGroup | None,
        stride: int = 1,
    ) -> None:
        super().__init__(
            input_size,
            output_size,
            config=config,
            init_method=init_method,
            bias=bias,
            skip_bias_add=skip_bias_add,
            tp_group=tp_group,
        )


@final
class RowLinear(PlainLinear):
    """A linear for a row place: its input would be split over tensor-parallel ranks, of which there is one.

    Args:
        input_size: width of the input.
        output_size: width of the output.
        config: dtype, initialisation, delayed weight gradients.
        init_method: fills the weight in place.
        bias: have a bias, zero at first.
        input_is_parallel: does not matter on one process.
        skip_bias_add: return the bias instead of adding it.
        is_expert: does not matter on one process.
        tp_comm_buffer_name: is not used: there is no communication.
        tp_group: `None`, or a group of one process.

    Raises:
        ParallelError: ``tp_group`` has several processes.

    Example:
        >>> from transom import TransformerConfig
        >>> config = TransformerConfig(num_layers=1, hidden_size=4, num_attention_heads=1)
        >>> linear = RowLinear(
        ...     6, 4, config=config, init_method=nn.init.ones_, bias=False, input_is_parallel=True,
        ...     skip_bias_add=False, is_expert=False, tp_comm_buffer_name=None, tp_group=None,
        ... )
        >>> linear(torch.ones(2, 6))[0]
        tensor([[6., 6., 6., 6.],
                [6., 6., 6., 6.]], grad_fn=<MmBackward0>)
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
        input_is_parallel: bool,
        skip_bias_add: bool,
        is_expert: bool,
        tp_comm_buffer_name: str | None,
        tp_group: ProcessGroup | None,
    ) -> None:
        super().__init__(
            input_size,
            output_size,
            config=config,
            init_method=init_method,
            bias=bias,
            skip_bias_add=skip_bias_add,
            tp_group=tp_group,
        )


if TYPE_CHECKING:
    _column: ColumnLinearBuilder = ColumnLinear
    _row: RowLinearBuilder = RowLinear

    def _is_a_linear(module: PlainLinear) -> Linear:
        return module
