"""Modules of Transformer Engine that norm and multiply in one: what `transom_te_linear.layer` is made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, final

from torch import Tensor, nn
from transom.transformer.initialization import initialize
from transom.transformer.utils import torch_dtype

from transom_te_linear import engine
from transom_te_linear.host import TeHost
from transom_te_linear.options import TeOptions

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from transom import TransformerConfig

__all__ = ["ACTIVATIONS", "TeLayerNormLinear", "TeLayerNormMLP"]

ACTIVATIONS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "gelu_tanh": ("gelu", "geglu"),
        "silu": ("silu", "swiglu"),
        "relu": ("relu", "reglu"),
        "squared_relu": ("srelu", "sreglu"),
        "quick_gelu": ("qgelu", "qgeglu"),
    }
)
"""What Transformer Engine calls the config's non-linearities in an MLP, plain and gated."""


@final
class TeLayerNormLinear(TeHost):
    """A norm followed by a linear, in the place of a column linear: ``norm(x) @ weight.T + bias``.

    Args:
        input_size: width of the input.
        output_size: width of the output.
        config: which norm, its epsilon, dtype, initialisation.
        init_method: fills the weight in place.
        gather_output: changes nothing on one process.
        bias: have a bias, zero at first.
        skip_bias_add: return the bias instead of adding it.
        is_expert: changes nothing.
        tp_comm_buffer_name: name of the buffers for overlapped communication.
        tp_group: `None`: it is for one process.
        stride: changes nothing on one process.
        options: `TeOptions`.

    Attributes:
        norm_weight: ``[in]``, the norm's scale.
        norm_bias: ``[in]``, of a LayerNorm.
        weight: ``[out, in]``.
        bias: ``[out]``.
    """

    norm_weight: Tensor
    norm_bias: Tensor | None
    weight: Tensor
    bias: Tensor | None

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
        options: TeOptions | None = None,
    ) -> None:
        super().__init__()
        self.options = options or TeOptions()
        self.adopt(
            engine.make_norm_linear(
                input_size,
                output_size,
                kind=config.normalization,
                eps=config.layernorm_epsilon,
                zero_centered=config.layernorm_zero_centered_gamma,
                bias=bias,
                return_bias=skip_bias_add,
                dtype=torch_dtype(config.params_dtype),
                group=None,
                sequence_parallel=False,
                delay=False,
                overlap=False,
                name=tp_comm_buffer_name,
            ),
            {
                "norm_weight": "layer_norm_weight",
                "norm_bias": "layer_norm_bias",
                "weight": "weight",
                "bias": "bias",
            },
        )
        self.gives_bias = bias and skip_bias_add
        self._fill = (init_method, config)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start with a norm that only norms, a weight by the init method, and a bias of zeros."""
        _reset_norm(self.norm_weight, self.norm_bias, self._fill[1])
        initialize(self.weight, *self._fill)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor, /) -> tuple[Tensor, Tensor | None]:
        """Map ``[..., in]`` to ``([..., out], bias)``; the bias is `None` where it was added."""
        with engine.scaling(self.options):
            out, _ = engine.apply_norm_linear(self.inner, x, self.first_microbatch())
        return out, self.bias if self.gives_bias else None

    def backward_dw(self) -> None:
        """Do nothing: no weight gradient is put off."""


@final
class TeLayerNormMLP(TeHost):
    """A norm followed by an MLP, ``fc2(act(fc1(norm(x))))``, in the place of an MLP.

    Args:
        config: which norm, its epsilon, sizes, activation, dtype, initialisation.
        tp_group: `None`: it is for one process.
        options: `TeOptions`.

    Attributes:
        norm_weight: ``[h]``, the norm's scale.
        norm_bias: ``[h]``, of a LayerNorm.
        fc1_weight: ``[f, h]``, or ``[2f, h]`` gated, the gate first.
        fc1_bias: ``[f]`` or ``[2f]``.
        fc2_weight: ``[h, f]``.
        fc2_bias: ``[h]``.
    """

    norm_weight: Tensor
    norm_bias: Tensor | None
    fc1_weight: Tensor
    fc1_bias: Tensor | None
    fc2_weight: Tensor
    fc2_bias: Tensor | None

    def __init__(
        self, config: TransformerConfig, *, tp_group: ProcessGroup | None = None, options: TeOptions | None = None
    ) -> None:
        super().__init__()
        self.options, self.config = options or TeOptions(), config
        self.adopt(
            engine.make_mlp(
                config.hidden_size,
                config.ffn_hidden_size,
                kind=config.normalization,
                eps=config.layernorm_epsilon,
                zero_centered=config.layernorm_zero_centered_gamma,
                activation=ACTIVATIONS[config.activation_func][config.gated_linear_unit],
                bias=config.add_bias_linear,
                dtype=torch_dtype(config.params_dtype),
                group=None,
                sequence_parallel=False,
                delay=False,
            ),
            {
                "norm_weight": "layer_norm_weight",
                "norm_bias": "layer_norm_bias",
                "fc1_weight": "fc1_weight",
                "fc1_bias": "fc1_bias",
                "fc2_weight": "fc2_weight",
                "fc2_bias": "fc2_bias",
            },
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start as a norm that only norms and an MLP start."""
        _reset_norm(self.norm_weight, self.norm_bias, self.config)
        initialize(self.fc1_weight, self.config.init_method, self.config)
        initialize(self.fc2_weight, self.config.output_layer_init_method, self.config)
        for bias in (self.fc1_bias, self.fc2_bias):
            if bias is not None:
                nn.init.zeros_(bias)

    def forward(self, hidden_states: Tensor, per_token_scale: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Map ``[b, s, h]`` to ``([b, s, h], bias)``; tokens cannot be scaled inside the fused module."""
        assert per_token_scale is None, "a layer does not scale tokens"
        with engine.scaling(self.options):
            out, _ = engine.apply_mlp(self.inner, hidden_states, self.first_microbatch())
        return out, self.fc2_bias

    def backward_dw(self) -> None:
        """Do nothing: no weight gradient is put off."""


def _reset_norm(weight: Tensor, bias: Tensor | None, config: TransformerConfig) -> None:
    nn.init.constant_(weight, 0.0 if config.layernorm_zero_centered_gamma else 1.0)
    if bias is not None:
        nn.init.zeros_(bias)
