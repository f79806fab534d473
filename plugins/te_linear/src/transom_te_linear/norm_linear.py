"""A norm and a column linear in one kernel of Transformer Engine, whose output keeps its precision for the product.

Source: Ba et al. 2016 (LayerNorm); Zhang and Sennrich 2019 (RMSNorm); Shoeybi et al. 2019 and Korthikanti et al. 2022
for what is split over ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transom import LayoutMap
from transom.checkpoint.layout_map import Rule
from transom.transformer.collectives import Ranks
from transom.transformer.partial_gradients import mark_partial_gradients
from transom.transformer.sharding import Offset, ShardedStateDict, replica_of, replicated, sharded
from transom.transformer.utils import torch_dtype

from transom_te_linear import engine
from transom_te_linear.installation import missing
from transom_te_linear.linear import TeLinear, check_split
from transom_te_linear.options import TeOptions
from transom_te_linear.shard import check_recipe, describe_recipe, fill, uneven

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from transom import TransformerConfig
    from transom.slots.norm_linear import NormLinear, NormLinearBuilder, NormLinearRequest

__all__ = ["NORM_NAMES", "TeNormLinear", "norm_of", "reset_norm", "sharded_norm"]

NORM_NAMES = {"norm_weight": "norm.weight", "norm_bias": "norm.bias"}
"""Own names of a norm's parameters, and the canonical ones."""


@final
class TeNormLinear(TeLinear):
    """``norm(x) @ weight.T + bias``, the outputs split over the tensor-parallel ranks.

    Args:
        input_size: width of the input, which is normed.
        output_size: width of the output over all ranks; ``output_size / stride`` is a multiple of p.
        config: which norm, its epsilon, dtype, initialisation, sequence parallelism, delayed weight gradients.
        init_method: fills the whole weight in place; every rank calls it with its generator in the same state.
        gather_output: must be False on several ranks: Transformer Engine does not gather.
        bias: have a bias, zero at first.
        skip_bias_add: return the bias instead of adding it.
        is_expert: of a mixture: its tokens come one by one, so that sequence parallelism does not apply.
        tp_comm_buffer_name: name of the buffers for overlapped communication.
        tp_group: the p ranks; `None` = one process.
        stride: how many logical matrices are stacked in the output dimension.
        options: `TeOptions`.

    Attributes:
        norm_weight: ``[in]``, the norm's scale.
        norm_bias: ``[in]``, of a LayerNorm.
        weight: ``[out/p, in]``.
        bias: ``[out/p]``.

    Raises:
        ParallelError: ``output_size`` cannot be split, or the output is to be gathered; nothing was allocated.
    """

    norm_weight: Tensor
    norm_bias: Tensor | None

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
        self.start(config, Ranks.of(tp_group), options, splits=not is_expert)
        of = f"norm and column linear {input_size} -> {output_size}"
        check_split(of, self.ranks, output_size, stride, gathers=gather_output)
        self.inner_adds = adds = bias and not skip_bias_add and not self.delays
        self.adopt(
            partial(
                engine.make_norm_linear,
                input_size,
                output_size,
                kind=config.normalization,
                eps=config.layernorm_epsilon,
                zero_centered=config.layernorm_zero_centered_gamma,
                bias=bias,
                return_bias=not adds,
                dtype=torch_dtype(config.params_dtype),
                group=tp_group,
                sequence_parallel=self.sequence,
                delay=self.delays,
                overlap=self.options.overlap,
                name=tp_comm_buffer_name,
            ),
            {
                "norm_weight": "layer_norm_weight",
                "norm_bias": "layer_norm_bias",
                "weight": "weight",
                "bias": "bias",
            },
        )
        if self.sequence:  # each rank norms its part of the sequence
            mark_partial_gradients(self, ("norm_weight", "norm_bias"))
        self.adds_bias = bias and not skip_bias_add and not adds
        self.gives_bias = bias and skip_bias_add
        self._fill = (init_method, config, stride)
        self.reset_parameters()

    @classmethod
    def supports(cls, request: NormLinearRequest) -> Iterable[str]:
        """Say why a request cannot be served; nothing when it can."""
        yield from uneven("output_size", request.output_size, request.stride, request.context.tensor_parallel_size)
        yield from missing(request.context)

    @classmethod
    def describe(cls, request: NormLinearRequest, options: TeOptions | None) -> str:
        """Say in which precision it will compute.

        Raises:
            SpecError: the device or the sizes do not allow the recipe.
        """
        ranks = request.context.tensor_parallel_size
        check_recipe(options or TeOptions(), request.context, (request.input_size, request.output_size // ranks))
        return describe_recipe(options)

    def layout_map(self) -> LayoutMap:
        """Say how the norm's parameters become canonical."""
        return LayoutMap([Rule(own, canonical) for own, canonical in NORM_NAMES.items()])

    def reset_parameters(self) -> None:
        """Start with a norm that only norms, a weight by the init method, and a bias of zeros."""
        init_method, config, stride = self._fill
        reset_norm(self.norm_weight, self.norm_bias, config)
        fill(self.weight, init_method, config, self.ranks, 0, stride)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor, /) -> tuple[Tensor, Tensor | None]:
        """Map ``norm(x) @ weight.T + bias``.

        Args:
            x: ``[..., in]``, the same on every rank; with sequence parallelism this rank's ``[b, s/p, in]``.

        Returns:
            ``[..., out/p]`` of the whole sequence; and the bias when it was not added.
        """
        out = self.product(x, engine.apply_norm_linear)
        if self.adds_bias and self.bias is not None:
            out = out + self.bias
        return out, self.bias if self.gives_bias else None

    def norm(self, x: Tensor, /) -> Tensor:
        """Norm alone, with statistics in float32, by PyTorch's own kernels."""
        return norm_of(x, self.norm_weight, self.norm_bias, self._fill[1])

    def sharded_state_dict(
        self,
        prefix: str = "",
        sharded_offsets: tuple[Offset, ...] = (),
        metadata: Mapping[str, Any] | None = None,
    ) -> ShardedStateDict:
        """Describe this rank's rows of weight and bias, and the norm, which every rank holds whole."""
        rank, ranks = self.ranks.rank, self.ranks.size
        replica = replica_of(metadata, tensor_parallel_rank=0)
        state: ShardedStateDict = {
            prefix + name: sharded(prefix + name, tensor, 0, rank, ranks, sharded_offsets, replica_id=replica)
            for name, tensor in (("weight", self.weight), ("bias", self.bias))
            if tensor is not None
        }
        return state | sharded_norm(self, rank, prefix, sharded_offsets, metadata)


def reset_norm(weight: Tensor, bias: Tensor | None, config: TransformerConfig) -> None:
    """Let a norm start with a scale of one and a shift of zero."""
    nn.init.constant_(weight, 0.0 if config.layernorm_zero_centered_gamma else 1.0)
    if bias is not None:
        nn.init.zeros_(bias)


def norm_of(x: Tensor, weight: Tensor, bias: Tensor | None, config: TransformerConfig) -> Tensor:
    """Norm by PyTorch's own kernels, in float32: a LayerNorm where there is a bias, else an RMSNorm."""
    wide = torch.promote_types(x.dtype, torch.float32)
    scale = weight.to(wide) + (1.0 if config.layernorm_zero_centered_gamma else 0.0)
    if bias is None:
        return F.rms_norm(x.to(wide), scale.shape, scale, config.layernorm_epsilon).to(x.dtype)
    return F.layer_norm(x.to(wide), scale.shape, scale, bias.to(wide), config.layernorm_epsilon).to(x.dtype)


def sharded_norm(
    module: Any,
    rank: int,
    prefix: str,
    sharded_offsets: tuple[Offset, ...],
    metadata: Mapping[str, Any] | None,
) -> ShardedStateDict:
    """Describe a norm inside a module, which every rank holds whole, under canonical names."""
    replica = replica_of(metadata, tensor_parallel_rank=rank)
    return {
        prefix + name: replicated(
            prefix + name, getattr(module, own), prepend_offsets=sharded_offsets, replica_id=replica
        )
        for own, name in NORM_NAMES.items()
        if getattr(module, own) is not None
    }


if TYPE_CHECKING:
    _builder: NormLinearBuilder = TeNormLinear

    def _is_a_norm_linear(module: TeNormLinear) -> NormLinear:
        return module
