"""The feed-forward half of a layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, final

import torch

from transom.errors import ConfigError
from transom.transformer import parts
from transom.transformer.activation import activation_of
from transom.transformer.direct_attributes import submodule
from transom.transformer.module import Module
from transom.transformer.remade_input import with_remade_input
from transom.transformer.rms_norm import with_remade_norm
from transom.transformer.sharding import Offset, ShardedStateDict, ShardedTensor
from transom.transformer.swiglu_sharding import apply_swiglu_sharded_factory

if TYPE_CHECKING:
    from torch import Tensor

    from transom.slots import Parts
    from transom.slots.activation import Activation, ActivationBuilder
    from transom.slots.linear import ColumnLinearBuilder, Linear, RowLinearBuilder
    from transom.slots.mlp import MLPBuilder, MLPInterface, MLPRequest
    from transom.transformer.transformer_config import TransformerConfig

__all__ = [
    "MLP",
    "LinearFc1Builder",
    "LinearFc1Interface",
    "LinearFc2Builder",
    "LinearFc2Interface",
    "MLPSubmodules",
    "TEActivationFunctionBuilder",
    "TEActivationFunctionInterface",
    "apply_swiglu_sharded_factory",
]


class LinearFc1Interface(Protocol):
    """What an MLP needs of its first linear, as `transom.slots.linear.Linear`."""

    def forward(self, hidden_states: Tensor, /) -> tuple[Tensor, Tensor | None]:
        """Map ``[..., h]`` to ``[..., f]`` (gated: ``[..., 2f]``), and return the bias that is still to be added."""
        ...

    def __call__(self, hidden_states: Tensor, /) -> tuple[Tensor, Tensor | None]:
        """Run `forward`."""
        ...

    def backward_dw(self) -> None:
        """Add the weight's gradient that the backward pass put off."""
        ...


class LinearFc1Builder(Protocol):
    """Makes an MLP's first linear, as `transom.slots.linear.ColumnLinearBuilder`, which explains the arguments."""

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
    ) -> LinearFc1Interface:
        """Make the module."""
        ...


class TEActivationFunctionInterface(Protocol):
    """What an MLP needs of an activation that is a module, as `transom.slots.activation.Activation`."""

    def forward(self, input_: Tensor, /) -> Tensor:
        """Map ``[..., f]``, or ``[..., 2f]`` when gated, to ``[..., f]``."""
        ...

    def __call__(self, input_: Tensor, /) -> Tensor:
        """Run `forward`."""
        ...


class TEActivationFunctionBuilder(Protocol):
    """Makes the activation that the config describes."""

    def __call__(self, *, config: TransformerConfig) -> TEActivationFunctionInterface:
        """Make the module."""
        ...


class LinearFc2Interface(Protocol):
    """What an MLP needs of its second linear, as `transom.slots.linear.Linear`."""

    def forward(self, hidden_states: Tensor, /) -> tuple[Tensor, Tensor | None]:
        """Map ``[..., f]`` to ``[..., h]``, and return the bias that is still to be added."""
        ...

    def __call__(self, hidden_states: Tensor, /) -> tuple[Tensor, Tensor | None]:
        """Run `forward`."""
        ...

    def backward_dw(self) -> None:
        """Add the weight's gradient that the backward pass put off."""
        ...


class LinearFc2Builder(Protocol):
    """Makes an MLP's second linear, as `transom.slots.linear.RowLinearBuilder`, which explains the arguments."""

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
    ) -> LinearFc2Interface:
        """Make the module."""
        ...


@dataclass(frozen=True)
class MLPSubmodules:
    """Builders of an MLP's parts.

    Args:
        linear_fc1: of the linear into the inner width.
        linear_fc2: of the linear out of it.
        activation_func: of the activation, when ``config.use_te_activation_func``.
    """

    linear_fc1: LinearFc1Builder
    linear_fc2: LinearFc2Builder
    activation_func: TEActivationFunctionBuilder | None = None


@final
class MLP(Module):
    """``fc2(act(fc1(x)))``, of every token by itself; gated: ``fc2(act(gate) * up)`` with ``[gate; up] = fc1(x)``.

    Args:
        config: sizes, activation, biases, initialisation.
        submodules: builders of the linears and, when ``config.use_te_activation_func``, of the activation.
        is_expert: is an expert of a mixture.
        input_size: width of the input; `None` = ``config.hidden_size``, which the output always has.
        ffn_hidden_size: f, the inner width; `None` = ``config.ffn_hidden_size``. An expert must say its own.
        tp_group: tensor-parallel process group.

    Raises:
        ConfigError: an expert without ``ffn_hidden_size``, or an activation module without its builder.

    Source: Vaswani et al. 2017, section 3.3; gated units: Shazeer 2020.

    Example:
        >>> from transom import TransformerConfig
        >>> from transom.transformer.linear import ColumnLinear, RowLinear
        >>> config = TransformerConfig(num_layers=1, hidden_size=8, num_attention_heads=2)
        >>> mlp = MLP(config, MLPSubmodules(linear_fc1=ColumnLinear, linear_fc2=RowLinear))
        >>> output, bias = mlp(torch.ones(2, 3, 8))
        >>> output.shape, bias.shape
        (torch.Size([2, 3, 8]), torch.Size([8]))
    """

    Submodules = MLPSubmodules

    linear_fc1: LinearFc1Interface = submodule()
    activation_func: Callable[[Tensor], Tensor] = submodule()
    linear_fc2: LinearFc2Interface = submodule()

    def __init__(
        self,
        config: TransformerConfig,
        submodules: MLPSubmodules,
        is_expert: bool = False,
        input_size: int | None = None,
        ffn_hidden_size: int | None = None,
        tp_group: torch.distributed.ProcessGroup | None = None,
    ) -> None:
        super().__init__(config, tp_group)
        inner = _inner_width(config, is_expert, ffn_hidden_size)
        self.linear_fc1 = submodules.linear_fc1(
            config.hidden_size if input_size is None else input_size,
            _fc1_stride(config) * inner,
            config=config,
            init_method=config.init_method,
            gather_output=False,
            bias=config.add_bias_linear,
            skip_bias_add=True,
            is_expert=is_expert,
            tp_comm_buffer_name="fc1",
            tp_group=tp_group,
            stride=_fc1_stride(config),
        )
        self.activation_func = _activation(config, submodules.activation_func)
        self.linear_fc2 = submodules.linear_fc2(
            inner,
            config.hidden_size,
            config=config,
            init_method=config.output_layer_init_method,
            bias=config.add_bias_linear,
            input_is_parallel=True,
            skip_bias_add=True,
            is_expert=is_expert,
            tp_comm_buffer_name="fc2",
            tp_group=tp_group,
        )

    @classmethod
    def parts(cls, request: MLPRequest) -> Parts:
        """Say what is inside: the two linears, and the activation where it is a module of its own."""
        config = request.config
        inner = _inner_width(config, request.is_expert, request.ffn_hidden_size)
        stride = _fc1_stride(config)
        width = config.hidden_size if request.input_size is None else request.input_size
        bias, is_expert = config.add_bias_linear, request.is_expert
        found = {
            "linear_fc1": parts.column_linear(
                request, width, stride * inner, bias=bias, stride=stride, is_expert=is_expert, reads_input=True
            ),
            "linear_fc2": parts.row_linear(request, inner, config.hidden_size, bias=bias, is_expert=is_expert),
        }
        return found | ({"activation_func": parts.activation(request)} if config.use_te_activation_func else {})

    def forward(self, hidden_states: Tensor, per_token_scale: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Run the MLP.

        Args:
            hidden_states: ``[b, s, h]``.
            per_token_scale: ``[b, s]``, multiplies what goes into the second linear, and its bias.

        Returns:
            ``[b, s, h]``, and the output bias ``[h]`` that the caller must add; it is `None` without
            ``config.add_bias_linear``, and when a scale is given: then it is scaled and added here.
        """
        inner, bias = with_remade_norm(self.linear_fc1, hidden_states)  # [b, s, h] -> [b, s, f] or [b, s, 2f]
        inner = inner if bias is None else inner + bias
        if per_token_scale is None and not torch.is_grad_enabled():
            return self.linear_fc2(self.activation_func(inner))  # -> [b, s, h]
        if per_token_scale is None:
            return with_remade_input(self.linear_fc2, self.activation_func, inner)
        inner, scale = self.activation_func(inner), per_token_scale.unsqueeze(-1)  # [b, s, f], [b, s, 1]
        output, bias = self.linear_fc2((inner * scale).to(inner.dtype))  # -> [b, s, h]
        return output if bias is None else output + (bias * scale).to(output.dtype), None

    def backward_dw(self) -> None:
        """Add the weights' gradients that backward put off, the last linear's first."""
        self.linear_fc2.backward_dw()
        self.linear_fc1.backward_dw()

    def sharded_state_dict(
        self,
        prefix: str = "",
        sharded_offsets: tuple[Offset, ...] = (),
        metadata: Mapping[str, Any] | None = None,
    ) -> ShardedStateDict:
        """Describe the state as `transom.transformer.sharding` does; a fused gate and up projection is two shards."""
        state = super().sharded_state_dict(prefix, sharded_offsets, metadata)
        if not self.config.gated_linear_unit:
            return state
        singleton = bool((metadata or {}).get("singleton_local_shards", False))
        for name in (f"{prefix}linear_fc1.weight", f"{prefix}linear_fc1.bias"):
            shard = state.get(name)
            if isinstance(shard, ShardedTensor):
                state[name] = apply_swiglu_sharded_factory(shard, sharded_offsets, singleton)
        return state


def _inner_width(config: TransformerConfig, is_expert: bool, ffn_hidden_size: int | None) -> int:
    if ffn_hidden_size is None and is_expert:
        raise ConfigError(
            "an expert's ffn_hidden_size is None; the config's is that of a whole MLP.",
            hint="give ffn_hidden_size",
            field="ffn_hidden_size",
            value=None,
            path="ffn_hidden_size",
            file=None,
            line=None,
        )
    return config.ffn_hidden_size if ffn_hidden_size is None else ffn_hidden_size


def _fc1_stride(config: TransformerConfig) -> int:
    """How many matrices are stacked in the first linear: gate and up, or one."""
    return 2 if config.gated_linear_unit else 1


def _activation(config: TransformerConfig, builder: TEActivationFunctionBuilder | None) -> Callable[[Tensor], Tensor]:
    if not config.use_te_activation_func:
        return activation_of(config)
    if builder is None:
        raise ConfigError(
            "use_te_activation_func is True and submodules.activation_func is None.",
            hint="give a builder, for instance transom.transformer.activation.TorchActivation",
            field="use_te_activation_func",
            value=True,
            path="config.use_te_activation_func",
            file=None,
            line=None,
        )
    return builder(config=config)


if TYPE_CHECKING:
    _builder: MLPBuilder = MLP

    def _is_an_mlp(module: MLP) -> MLPInterface:
        return module

    def _slots_serve(
        column: ColumnLinearBuilder, row: RowLinearBuilder, activation: ActivationBuilder
    ) -> tuple[LinearFc1Builder, LinearFc2Builder, TEActivationFunctionBuilder]:
        return column, row, activation

    def _modules_serve(
        linear: Linear, activation: Activation
    ) -> tuple[LinearFc1Interface, LinearFc2Interface, TEActivationFunctionInterface]:
        return linear, linear, activation
