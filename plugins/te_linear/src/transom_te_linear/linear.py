"""Linears by Transformer Engine, whose weights may be split over tensor-parallel processes: columns or rows each.

Source: Shoeybi et al. 2019, Megatron-LM; Korthikanti et al. 2022 for sequence parallelism; Micikevicius et al. 2022 for
FP8. Transformer Engine splits the first dimension for sequence parallelism; here it is the last but one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, final

import torch.nn.functional as F
from torch import Tensor, nn
from transom.errors import ParallelError
from transom.transformer.collectives import Ranks, copy_to_ranks
from transom.transformer.sharding import Offset, ShardedStateDict, replica_of, replicated, sharded
from transom.transformer.utils import torch_dtype

from transom_te_linear import engine
from transom_te_linear.host import TeHost
from transom_te_linear.installation import missing
from transom_te_linear.options import TeOptions
from transom_te_linear.shard import check_recipe, describe_recipe, fill, uneven

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from transom import TransformerConfig
    from transom.slots.linear import ColumnLinearBuilder, LinearRequest, RowLinearBuilder

__all__ = ["TeColumnLinear", "TeLinear", "TeRowLinear", "check_split"]

_NAMES = {"weight": "weight", "bias": "bias"}


class TeLinear(TeHost):
    """What linears do with the module inside: scale, put the sequence first, count gradients that are put off."""

    weight: Tensor
    bias: Tensor | None
    Options = TeOptions

    def start(self, config: TransformerConfig, ranks: Ranks, options: TeOptions | None, *, splits: bool) -> None:
        """Note how to compute; ``splits``: sequence parallelism, where the config asks for it, applies."""
        self.ranks, self.options = ranks, options or TeOptions()
        self.sequence = config.sequence_parallel and ranks.size > 1 and splits
        self.delays = config.delay_wgrad_compute
        self.put_off = 0
        self.inner_adds = False

    def product(self, x: Tensor, apply: Callable[..., tuple[Tensor, Tensor | None]] = engine.apply_linear) -> Tensor:
        """Map ``[..., in]`` to ``[..., out]``, with the bias only where the inner linear adds it."""
        if x.numel() == 0:  # Transformer Engine cannot tell the shape of what has no tokens
            return F.linear(x, self.weight, self.bias if self.inner_adds else None)
        if x.dim() == 1:  # which it takes for a batch of one
            return self.product(x.unsqueeze(0), apply).squeeze(0)
        with engine.scaling(self.options):
            if self.sequence:
                x = x.transpose(0, 1)  # [b, s/p, in] -> [s/p, b, in]
            out, _ = apply(self.inner, x, self.first_microbatch())
        if self.delays and out.requires_grad:
            out.register_hook(self._count)  # type: ignore[no-untyped-call]
        return out.transpose(0, 1) if self.sequence else out

    def _count(self, grad: Tensor) -> None:
        self.put_off += 1

    def backward_dw(self) -> None:
        """Add the weight's gradients that backward put off; does nothing unless ``config.delay_wgrad_compute``."""
        while self.put_off:
            self.put_off -= 1
            before, self.weight.grad = self.weight.grad, None
            engine.compute_weight_gradient(self.inner)
            if before is not None and self.weight.grad is not None:
                self.weight.grad += before

    def extra_repr(self) -> str:
        """Say the sizes of this rank's part, and the precision."""
        rank = "" if self.ranks.size == 1 else f", rank={self.ranks.rank} of {self.ranks.size}"
        precision = describe_recipe(self.options)
        sizes = f"{self.weight.shape[1]}, {self.weight.shape[0]}, bias={self.bias is not None}"
        return f"{sizes}{rank}{f', {precision}' if precision else ''}"


@final
class TeColumnLinear(TeLinear):
    """A linear whose outputs are split over the tensor-parallel ranks.

    Args:
        input_size: width of the input.
        output_size: width of the output over all ranks; ``output_size / stride`` is a multiple of p.
        config: dtype, initialisation, sequence parallelism, delayed weight gradients.
        init_method: fills the whole weight in place; every rank calls it with its generator in the same state.
        gather_output: must be False on several ranks: Transformer Engine does not gather.
        bias: have a bias, zero at first.
        skip_bias_add: return the bias instead of adding it.
        is_expert: of a mixture: its tokens come one by one, so that sequence parallelism does not apply.
        tp_comm_buffer_name: name of the buffers for overlapped communication.
        tp_group: the p ranks; `None` = one process.
        stride: how many logical matrices are stacked in the output dimension.
        options: `TeOptions`.

    Raises:
        ParallelError: ``output_size`` cannot be split, or the output is to be gathered; nothing was allocated.
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
        options: TeOptions | None = None,
    ) -> None:
        super().__init__()
        self.start(config, Ranks.of(tp_group), options, splits=not is_expert)
        check_split(
            f"column linear {input_size} -> {output_size}", self.ranks, output_size, stride, gathers=gather_output
        )
        self.inner_adds = adds = bias and not skip_bias_add and not self.delays
        self.adopt(
            partial(
                engine.make_linear,
                input_size,
                output_size,
                mode="column",
                bias=bias,
                return_bias=not adds,
                dtype=torch_dtype(config.params_dtype),
                group=tp_group,
                sequence_parallel=self.sequence,
                delay=self.delays,
                overlap=self.options.overlap,
                name=tp_comm_buffer_name,
            ),
            _NAMES,
        )
        self.adds_bias = bias and not skip_bias_add and not adds
        self.gives_bias = bias and skip_bias_add
        self._fill = (init_method, config, stride)
        self.reset_parameters()

    @classmethod
    def supports(cls, request: LinearRequest) -> Iterable[str]:
        """Say why a request cannot be served; nothing when it can."""
        yield from uneven("output_size", request.output_size, request.stride, request.context.tensor_parallel_size)
        yield from missing(request.context)

    @classmethod
    def describe(cls, request: LinearRequest, options: TeOptions | None) -> str:
        """Say in which precision it will compute.

        Raises:
            SpecError: the device or the sizes do not allow the recipe.
        """
        ranks = request.context.tensor_parallel_size
        check_recipe(options or TeOptions(), request.context, (request.input_size, request.output_size // ranks))
        return describe_recipe(options)

    def reset_parameters(self) -> None:
        """Fill the weight by the init method and the bias with zeros."""
        init_method, config, stride = self._fill
        fill(self.weight, init_method, config, self.ranks, 0, stride)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor, /) -> tuple[Tensor, Tensor | None]:
        """Map ``x @ weight.T + bias``.

        Args:
            x: ``[..., in]``, the same on every rank; with sequence parallelism this rank's ``[b, s/p, in]``.

        Returns:
            ``[..., out/p]`` of the whole sequence; and the bias when it was not added.
        """
        out = self.product(x)
        if self.adds_bias and self.bias is not None:
            out = out + self.bias
        return out, self.bias if self.gives_bias else None

    def sharded_state_dict(
        self,
        prefix: str = "",
        sharded_offsets: tuple[Offset, ...] = (),
        metadata: Mapping[str, Any] | None = None,
    ) -> ShardedStateDict:
        """Describe this rank's rows of weight and bias."""
        rank, ranks = self.ranks.rank, self.ranks.size
        replica = replica_of(metadata, tensor_parallel_rank=0)
        return {
            prefix + name: sharded(prefix + name, tensor, 0, rank, ranks, sharded_offsets, replica_id=replica)
            for name, tensor in self.named_parameters()
        }


@final
class TeRowLinear(TeLinear):
    """A linear whose inputs are split over the tensor-parallel ranks; the sum of the ranks' products is the output.

    Args:
        input_size: width of the input over all ranks, a multiple of p.
        output_size: width of the output.
        config: as for `TeColumnLinear`.
        init_method: as for `TeColumnLinear`.
        bias: have a bias, zero at first, whole on every rank.
        input_is_parallel: must be True on several ranks.
        skip_bias_add: return the bias instead of adding it.
        is_expert: as for `TeColumnLinear`.
        tp_comm_buffer_name: name of the buffers for overlapped communication.
        tp_group: the p ranks; `None` = one process.
        options: `TeOptions`.

    Raises:
        ParallelError: ``input_size`` cannot be split, or the input is whole; nothing was allocated.
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
        options: TeOptions | None = None,
    ) -> None:
        super().__init__()
        self.start(config, Ranks.of(tp_group), options, splits=not is_expert)
        check_split(
            f"row linear {input_size} -> {output_size}", self.ranks, input_size, 1, scatters=not input_is_parallel
        )
        self.adopt(
            partial(
                engine.make_linear,
                input_size,
                output_size,
                mode="row",
                bias=bias,
                return_bias=True,
                dtype=torch_dtype(config.params_dtype),
                group=tp_group,
                sequence_parallel=self.sequence,
                delay=self.delays,
                overlap=self.options.overlap,
                name=tp_comm_buffer_name,
            ),
            _NAMES,
        )
        self.skip_bias_add = skip_bias_add
        self._fill = (init_method, config)
        self.reset_parameters()

    @classmethod
    def supports(cls, request: LinearRequest) -> Iterable[str]:
        """Say why a request cannot be served; nothing when it can."""
        yield from uneven("input_size", request.input_size, 1, request.context.tensor_parallel_size)
        yield from missing(request.context)

    @classmethod
    def describe(cls, request: LinearRequest, options: TeOptions | None) -> str:
        """Say in which precision it will compute.

        Raises:
            SpecError: the device or the sizes do not allow the recipe.
        """
        ranks = request.context.tensor_parallel_size
        check_recipe(options or TeOptions(), request.context, (request.input_size // ranks, request.output_size))
        return describe_recipe(options)

    def reset_parameters(self) -> None:
        """Fill the weight by the init method and the bias with zeros."""
        fill(self.weight, *self._fill, self.ranks, 1)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor, /) -> tuple[Tensor, Tensor | None]:
        """Map ``x @ weight.T + bias``.

        Args:
            x: this rank's ``[..., in/p]``.

        Returns:
            ``[..., out]``, the same on every rank, or with sequence parallelism this rank's ``[b, s/p, out]``; and the
            bias when it was not added.
        """
        out, bias = self.product(x), self.bias
        if bias is not None and self.sequence:  # each rank adds it to its part of the sequence: its gradients add up
            bias = copy_to_ranks(bias, self.ranks)
        if self.skip_bias_add or bias is None:
            return out, bias
        return out + bias.to(out.dtype), None

    def sharded_state_dict(
        self,
        prefix: str = "",
        sharded_offsets: tuple[Offset, ...] = (),
        metadata: Mapping[str, Any] | None = None,
    ) -> ShardedStateDict:
        """Describe this rank's columns of the weight, and the bias, which every rank holds whole."""
        rank, ranks = self.ranks.rank, self.ranks.size
        key, split = f"{prefix}weight", replica_of(metadata, tensor_parallel_rank=0)
        state: ShardedStateDict = {key: sharded(key, self.weight, 1, rank, ranks, sharded_offsets, replica_id=split)}
        if self.bias is not None:
            key, whole = f"{prefix}bias", replica_of(metadata, tensor_parallel_rank=rank)
            state[key] = replicated(key, self.bias, prepend_offsets=sharded_offsets, replica_id=whole)
        return state


def check_split(
    of: str, ranks: Ranks, size: int, stride: int, *, gathers: bool = False, scatters: bool = False
) -> None:
    """Refuse what Transformer Engine does not do.

    Raises:
        ParallelError: a size does not divide, or the whole output or input is asked for on several ranks.
    """
    for reason in uneven("its width", size, stride, ranks.size):
        raise ParallelError(
            f"{of} cannot be split: {reason}.",
            hint=f"a multiple of {stride * ranks.size}, or fewer tensor-parallel ranks",
            size=size,
            stride=stride,
            ranks=ranks.size,
        )
    if ranks.size > 1 and (gathers or scatters):
        what = "gathers its output" if gathers else "scatters its input"
        raise ParallelError(
            f"{of} {what}, which te_linear does not do on {ranks.size} ranks.",
            hint="parallel_linear does, for this place",
            ranks=ranks.size,
        )


if TYPE_CHECKING:
    _column: ColumnLinearBuilder = TeColumnLinear
    _row: RowLinearBuilder = TeRowLinear
