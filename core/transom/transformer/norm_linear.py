"""A norm and a linear in one module: what kernels that do both at once are held to."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transom.transformer.delayed_wgrad import DelayedLinear
from transom.transformer.initialization import initialize
from transom.transformer.linear import ColumnLinear, refuse_several_ranks
from transom.transformer.norm import TorchNorm
from transom.transformer.sharding import ShardedModule
from transom.transformer.utils import torch_dtype

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from transom.slots.norm_linear import NormLinear, NormLinearBuilder, NormLinearRequest
    from transom.transformer.transformer_config import TransformerConfig

__all__ = ["TorchNormLinear"]


@final
class TorchNormLinear(ShardedModule):
    """``norm(x) @ weight.T + bias`` on one process: the config's norm, then a linear, with the parameters of both.

    Args:
        input_size: width of the input, which is normed.
        output_size: width of the output.
        config: which norm, its epsilon, dtype, initialisation, delayed weight gradients.
        init_method: fills the weight in place.
        gather_output: does not matter on one process.
        bias: have a bias, zero at first.
        skip_bias_add: return the bias instead of adding it.
        is_expert: does not matter on one process.
        tp_comm_buffer_name: is not used: there is no communication.
        tp_group: `None`, or a group of one process.
        stride: does not matter on one process.

    Attributes:
        norm: the norm, with ``norm.weight`` and, of a LayerNorm, ``norm.bias``.
        weight: ``[out, in]``.
        bias: ``[out]``, or `None`.

    Raises:
        ParallelError: ``tp_group`` has several processes.

    Example:
        >>> import torch
        >>> from transom import TransformerConfig
        >>> config = TransformerConfig(num_layers=1, hidden_size=2, num_attention_heads=1)
        >>> linear = TorchNormLinear(
        ...     2, 3, config=config, init_method=torch.nn.init.ones_, gather_output=False, bias=False,
        ...     skip_bias_add=False, is_expert=False, tp_comm_buffer_name=None, tp_group=None,
        ... )
        >>> sorted(linear.state_dict()), linear(torch.tensor([1.0, 3.0]))[0].abs().max() < 1e-6
        (['norm.bias', 'norm.weight', 'weight'], tensor(True))
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
        super().__init__()
        refuse_several_ranks("torch_norm_linear", tp_group)
        dtype = torch_dtype(config.params_dtype)
        self.norm = TorchNorm(config, hidden_size=input_size, eps=config.layernorm_epsilon)
        self.weight = nn.Parameter(torch.empty(output_size, input_size, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(output_size, dtype=dtype)) if bias else None
        self.skip_bias_add = skip_bias_add
        self._config, self._init_method = config, init_method
        self._delayed = DelayedLinear() if config.delay_wgrad_compute else None
        self._linear = self._delayed or F.linear
        self.reset_parameters()

    @classmethod
    def supports(cls, request: NormLinearRequest) -> Iterable[str]:
        """Say why a request cannot be served; nothing when it can."""
        return ColumnLinear.supports(request)

    def reset_parameters(self) -> None:
        """Start with a norm that only norms, a weight by the init method, and a bias of zeros."""
        self.norm.reset_parameters()
        initialize(self.weight, self._init_method, self._config)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor, /) -> tuple[Tensor, Tensor | None]:
        """Map ``x [..., in]`` to ``[..., out]``, and return the bias when it is not added."""
        if self.skip_bias_add:
            return self._linear(self.norm(x), self.weight, None), self.bias
        return self._linear(self.norm(x), self.weight, self.bias), None

    def backward_dw(self) -> None:
        """Add the weight's gradient that backward put off; does nothing unless ``config.delay_wgrad_compute``."""
        if self._delayed is not None:
            self._delayed.add_gradient_to(self.weight)

    def extra_repr(self) -> str:
        """Say the sizes."""
        out_features, in_features = self.weight.shape
        return f"{in_features}, {out_features}, bias={self.bias is not None}"


if TYPE_CHECKING:
    _builder: NormLinearBuilder = TorchNormLinear

    def _is_a_norm_linear(module: TorchNormLinear) -> NormLinear:
        return module
