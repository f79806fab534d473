"""A norm and an MLP in one module of Transformer Engine, in the places of both."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, final

import torch.nn.functional as F
from torch import Tensor, nn
from transom import LayoutMap
from transom.checkpoint.layout_map import Rule
from transom.errors import ParallelError
from transom.transformer.activation import activation_of
from transom.transformer.collectives import Ranks, copy_to_ranks
from transom.transformer.mlp import apply_swiglu_sharded_factory
from transom.transformer.partial_gradients import mark_partial_gradients
from transom.transformer.sharding import Offset, ShardedStateDict, replica_of, replicated, sharded
from transom.transformer.utils import torch_dtype

from transom_te_linear import engine
from transom_te_linear.host import TeHost
from transom_te_linear.installation import missing
from transom_te_linear.norm_linear import NORM_NAMES, norm_of, reset_norm, sharded_norm
from transom_te_linear.options import TeOptions
from transom_te_linear.shard import check_recipe, describe_recipe, fill, uneven

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from transom import TransformerConfig
    from transom.slots.mlp import MLPBuilder, MLPInterface, MLPRequest

__all__ = ["ACTIVATIONS", "TeNormMLP"]

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

_CANONICAL = NORM_NAMES | {
    f"fc{number}_{name}": f"linear_fc{number}.{name}" for number in (1, 2) for name in ("weight", "bias")
}


@final
class TeNormMLP(TeHost):
    """``fc2(act(fc1(norm(x))))``, of every token by itself; the norm is the one before the MLP.

    The inner width is split over the tensor-parallel ranks.

    Args:
        config: which norm, its epsilon, sizes, activation, biases, dtype, initialisation.
        submodules: not used: nothing inside can be exchanged.
        is_expert: must be False.
        input_size: must be `None`: the input is as wide as the output.
        ffn_hidden_size: f, the inner width over all ranks; `None` = the config's.
        tp_group: the p ranks; `None` = one process.
        options: `TeOptions`.

    Attributes:
        norm_weight: ``[h]``, the norm's scale.
        norm_bias: ``[h]``, of a LayerNorm.
        fc1_weight: ``[f/p, h]``, or ``[2f/p, h]`` gated, the gate first.
        fc1_bias: ``[f/p]`` or ``[2f/p]``.
        fc2_weight: ``[h, f/p]``.
        fc2_bias: ``[h]``.

    Source: Vaswani et al. 2017, section 3.3; gated units: Shazeer 2020; Shoeybi et al. 2019 for what is split.
    """

    norm_weight: Tensor
    norm_bias: Tensor | None
    fc1_weight: Tensor
    fc1_bias: Tensor | None
    fc2_weight: Tensor
    fc2_bias: Tensor | None
    Options = TeOptions

    def __init__(
        self,
        config: TransformerConfig,
        submodules: Any = None,
        *,
        is_expert: bool = False,
        input_size: int | None = None,
        ffn_hidden_size: int | None = None,
        tp_group: ProcessGroup | None = None,
        options: TeOptions | None = None,
    ) -> None:
        super().__init__()
        assert not is_expert, "supports() refuses it"
        assert input_size is None, "supports() refuses it"
        self.options, self.config, self.ranks = options or TeOptions(), config, Ranks.of(tp_group)
        self.sequence = config.sequence_parallel and self.ranks.size > 1
        self.stride = 2 if config.gated_linear_unit else 1
        self.adopt(
            partial(
                engine.make_mlp,
                config.hidden_size,
                config.ffn_hidden_size if ffn_hidden_size is None else ffn_hidden_size,
                kind=config.normalization,
                eps=config.layernorm_epsilon,
                zero_centered=config.layernorm_zero_centered_gamma,
                activation=ACTIVATIONS[config.activation_func][config.gated_linear_unit],
                bias=config.add_bias_linear,
                dtype=torch_dtype(config.params_dtype),
                group=tp_group,
                sequence_parallel=self.sequence,
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
        if self.sequence:  # each rank norms its part of the sequence
            mark_partial_gradients(self, ("norm_weight", "norm_bias"))
        self.reset_parameters()

    @classmethod
    def supports(cls, request: MLPRequest) -> Iterable[str]:
        """Say why a request cannot be served; nothing when it can."""
        config, ranks = request.config, request.context.tensor_parallel_size
        inner = config.ffn_hidden_size if request.ffn_hidden_size is None else request.ffn_hidden_size
        if request.is_expert or request.input_size is not None:
            yield "it is neither an expert nor as wide as another input"
        if config.activation_func not in ACTIVATIONS:
            yield f"it knows {', '.join(ACTIVATIONS)}, not {config.activation_func}"
        if config.activation_func_clamp_value is not None or config.glu_linear_offset:
            yield "it neither clamps nor shifts"
        if config.ffn_dropout:
            yield "it drops nothing inside"
        if config.delay_wgrad_compute:
            yield "it does not put weight gradients off"
        yield from uneven("ffn_hidden_size", inner, 1, ranks)
        yield from missing(request.context)

    @classmethod
    def describe(cls, request: MLPRequest, options: TeOptions | None) -> str:
        """Say in which precision it will compute.

        Raises:
            SpecError: the device or the sizes do not allow the recipe.
        """
        config, ranks = request.config, request.context.tensor_parallel_size
        inner = config.ffn_hidden_size if request.ffn_hidden_size is None else request.ffn_hidden_size
        check_recipe(options or TeOptions(), request.context, (config.hidden_size, inner // ranks))
        return describe_recipe(options)

    def layout_map(self) -> LayoutMap:
        """Say how the parameters become those of a norm and of the reference's MLP."""
        return LayoutMap([Rule(own, canonical) for own, canonical in _CANONICAL.items()])

    def reset_parameters(self) -> None:
        """Start as a norm that only norms and an MLP start."""
        config, ranks = self.config, self.ranks
        reset_norm(self.norm_weight, self.norm_bias, config)
        fill(self.fc1_weight, config.init_method, config, ranks, 0, self.stride)
        fill(self.fc2_weight, config.output_layer_init_method, config, ranks, 1)
        for bias in (self.fc1_bias, self.fc2_bias):
            if bias is not None:
                nn.init.zeros_(bias)

    def forward(self, hidden_states: Tensor, per_token_scale: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Run norm and MLP.

        Args:
            hidden_states: ``[b, s, h]``, the same on every rank; with sequence parallelism this rank's part of s.
            per_token_scale: ``[b, s]``, multiplies what goes into the second linear, and its bias; by PyTorch's own
                kernels, on one process alone.

        Returns:
            ``[b, s, h]``, and the output bias ``[h]`` that the caller must add, or `None`.

        Raises:
            ParallelError: tokens are to be scaled on several ranks.
        """
        if per_token_scale is not None:
            return self._scaled(hidden_states, per_token_scale), None
        if hidden_states.numel() == 0:  # Transformer Engine cannot tell the shape of what has no tokens
            return F.linear(self._activated(hidden_states), self.fc2_weight), self.fc2_bias
        with engine.scaling(self.options):
            x = hidden_states.transpose(0, 1) if self.sequence else hidden_states  # [b, s/p, h] -> [s/p, b, h]
            out, _ = engine.apply_mlp(self.inner, x, self.first_microbatch())
        bias = self.fc2_bias
        if bias is not None and self.sequence:  # each rank adds it to its part of the sequence: its gradients add up
            bias = copy_to_ranks(bias, self.ranks)
        return out.transpose(0, 1) if self.sequence else out, bias

    def backward_dw(self) -> None:
        """Do nothing: no weight gradient is put off."""

    def _scaled(self, x: Tensor, per_token_scale: Tensor) -> Tensor:
        if self.ranks.size > 1:
            raise ParallelError(
                f"te_layernorm_mlp scales tokens on one process alone, and there are {self.ranks.size} ranks.",
                hint="the mlp named mlp, for this place",
                ranks=self.ranks.size,
            )
        scale = per_token_scale.unsqueeze(-1)  # [b, s, 1]
        inner = self._activated(x)
        output = F.linear((inner * scale).to(inner.dtype), self.fc2_weight)
        return output if self.fc2_bias is None else output + (self.fc2_bias * scale).to(output.dtype)

    def _activated(self, x: Tensor) -> Tensor:
        """Compute what goes into the second linear, by PyTorch's own kernels."""
        normed = norm_of(x, self.norm_weight, self.norm_bias, self.config)
        return activation_of(self.config)(F.linear(normed, self.fc1_weight, self.fc1_bias))

    def sharded_state_dict(
        self,
        prefix: str = "",
        sharded_offsets: tuple[Offset, ...] = (),
        metadata: Mapping[str, Any] | None = None,
    ) -> ShardedStateDict:
        """Describe this rank's part of the inner width, and what every rank holds whole, under canonical names."""
        rank, ranks = self.ranks.rank, self.ranks.size
        split, whole = replica_of(metadata, tensor_parallel_rank=0), replica_of(metadata, tensor_parallel_rank=rank)
        state = sharded_norm(self, rank, prefix, sharded_offsets, metadata)
        for own, dim in (("fc1_weight", 0), ("fc1_bias", 0), ("fc2_weight", 1)):
            key, tensor = prefix + _CANONICAL[own], getattr(self, own)
            if tensor is not None:
                part = sharded(key, tensor, dim, rank, ranks, sharded_offsets, replica_id=split)
                is_gated = self.stride == 2 and own.startswith("fc1")
                state[key] = apply_swiglu_sharded_factory(part, sharded_offsets) if is_gated else part
        if self.fc2_bias is not None:
            key = f"{prefix}linear_fc2.bias"
            state[key] = replicated(key, self.fc2_bias, prepend_offsets=sharded_offsets, replica_id=whole)
        return state


if TYPE_CHECKING:
    _builder: MLPBuilder = TeNormMLP

    def _is_an_mlp(module: TeNormMLP) -> MLPInterface:
        return module
