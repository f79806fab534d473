"""Linears whose weights are split over tensor-parallel processes: columns (outputs) or rows (inputs) each.

With one process (``tp_group=None``, or a group of one) they are plain linears. With p processes, rank r holds the r-th
part of what the single process would hold, computes with local tensors, and outputs and gradients are those of the
single process.

Source: Shoeybi et al. 2019, Megatron-LM; Korthikanti et al. 2022 for sequence parallelism. Unlike theirs, the sequence
is the last dimension but one, a gathered output of stacked matrices comes in logical order, and the gradient of a row
linear's bias is whole on every rank under sequence parallelism.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import Parameter
from transom.errors import ParallelError
from transom.transformer.collectives import (
    Ranks,
    copy_to_ranks,
    gather_features,
    gather_sequence,
    scatter_features,
    scatter_sequence,
    sum_over_ranks,
)
from transom.transformer.delayed_wgrad import DelayedLinear
from transom.transformer.sharding import Offset, ShardedStateDict, replica_of, replicated
from transom.transformer.utils import torch_dtype

from transom_parallel_linear.shard import Shard, uneven
from transom_parallel_linear.split_module import SplitModule

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from transom import TransformerConfig
    from transom.slots.linear import ColumnLinearBuilder, LinearRequest, RowLinearBuilder

__all__ = ["ColumnParallelLinear", "RowParallelLinear"]

Exchange = Callable[[Tensor, Ranks], Tensor]
"""What ranks do with a tensor on the way in or out."""


class _SplitLinear(SplitModule):
    """What both kinds of linear do alike."""

    weight: Parameter
    bias: Parameter | None

    def __init__(self, shard: Shard, config: TransformerConfig, init_method: Callable[[Tensor], Any]) -> None:
        super().__init__(shard)
        self._delayed = DelayedLinear() if config.delay_wgrad_compute else None
        self._linear = self._delayed or F.linear
        self._init_method, self._config = init_method, config

    def reset_parameters(self) -> None:
        """Fill the weight by the init method and the bias with zeros."""
        self.shard.fill(self.weight, self._init_method, self._config)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    @torch.no_grad()
    def backward_dw(self) -> None:
        """Add the weight's gradient that backward put off; does nothing unless ``config.delay_wgrad_compute``."""
        if self._delayed is None:
            return
        local = self.shard.local(self.weight).detach()
        local.grad = None if self.weight.grad is None else self.shard.local(self.weight.grad)
        self._delayed.add_gradient_to(local)
        if local.grad is not None:
            self.weight.grad = self.shard.like(self.weight, local.grad)

    def extra_repr(self) -> str:
        """Say the sizes of this rank's part."""
        rows, columns = self.shard.local(self.weight).shape
        ranks = self.shard.ranks
        rank = "" if ranks.size == 1 else f", rank={ranks.rank} of {ranks.size}"
        return f"{columns}, {rows}, bias={self.bias is not None}{rank}"


@final
class ColumnParallelLinear(_SplitLinear):
    """A linear whose outputs are split over the tensor-parallel ranks.

    Rank r holds rows of the weight: with ``stride=1`` the r-th of p blocks, with ``stride=2`` (a fused gate and up
    projection) the r-th of p blocks of each half.

    Args:
        input_size: width of the input.
        output_size: width of the output over all ranks; ``output_size / stride`` is a multiple of p.
        config: dtype, initialisation, sequence parallelism, delayed weight gradients.
        init_method: fills the whole weight in place; every rank calls it with its generator in the same state.
        gather_output: return the whole output (and the whole bias) on every rank.
        bias: have a bias, zero at first.
        skip_bias_add: return the bias instead of adding it.
        is_expert: of a mixture: its tokens come one by one, so that sequence parallelism does not apply.
        tp_comm_buffer_name: is not used here: there are no buffers to name.
        tp_group: the p ranks; `None` = one process.
        stride: how many logical matrices are stacked in the output dimension.

    Raises:
        ParallelError: ``output_size`` cannot be split; nothing was allocated.

    Example:
        >>> from transom import TransformerConfig
        >>> config = TransformerConfig(num_layers=1, hidden_size=4, num_attention_heads=1)
        >>> linear = ColumnParallelLinear(
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
        shard = Shard(Ranks.of(tp_group), dim=0, stride=stride)
        width = shard.width(output_size, name="output_size", of=f"column linear {input_size} -> {output_size}")
        super().__init__(shard, config, init_method)
        dtype = torch_dtype(config.params_dtype)
        self.weight = shard.rest(torch.empty(width, input_size, dtype=dtype), tp_group)
        self.bias = shard.rest(torch.empty(width, dtype=dtype), tp_group) if bias else None
        self.skip_bias_add = skip_bias_add
        self.gather_output = gather_output and shard.ranks.size > 1
        self._enter = _column_entrance(shard.ranks, sequence_parallel=config.sequence_parallel and not is_expert)
        self.reset_parameters()

    @classmethod
    def supports(cls, request: LinearRequest) -> Iterable[str]:
        """Say why a request cannot be served; nothing when it can."""
        return _objections(request, "output_size", request.output_size)

    def forward(self, x: Tensor, /) -> tuple[Tensor, Tensor | None]:
        """Map ``x @ weight.T + bias``.

        Args:
            x: ``[..., in]``, the same on every rank; with sequence parallelism this rank's ``[b, s/p, in]``.

        Returns:
            ``[..., out/p]`` (``[..., out]`` when gathered), of the whole sequence; and the bias when it was not added.
        """
        x = self._enter(x, self.shard.ranks)
        weight = self.shard.local(self.weight)
        bias = None if self.bias is None else self.shard.local(self.bias)
        if not self.skip_bias_add:
            return self._leave(self._linear(x, weight, bias)), None
        return self._leave(self._linear(x, weight, None)), None if bias is None else self._leave(bias)

    def _leave(self, x: Tensor) -> Tensor:
        if not self.gather_output:
            return x
        # [..., stride·o/p] -> [..., stride, o/p] -> [..., stride, o] -> [..., stride·o]
        return gather_features(torch.unflatten(x, -1, (self.shard.stride, -1)), self.shard.ranks).flatten(-2)


@final
class RowParallelLinear(_SplitLinear):
    """A linear whose inputs are split over the tensor-parallel ranks; the sum of the ranks' products is the output.

    Args:
        input_size: width of the input over all ranks, a multiple of p.
        output_size: width of the output.
        config: dtype, initialisation, sequence parallelism, delayed weight gradients.
        init_method: fills the whole weight in place; every rank calls it with its generator in the same state.
        bias: have a bias, zero at first, which every rank holds whole; it is added once, after the sum.
        input_is_parallel: the input is this rank's part already.
        skip_bias_add: return the bias instead of adding it.
        is_expert: of a mixture: its tokens come one by one, so that sequence parallelism does not apply.
        tp_comm_buffer_name: is not used here: there are no buffers to name.
        tp_group: the p ranks; `None` = one process.

    Raises:
        ParallelError: ``input_size`` cannot be split, or sequence parallelism meets an input that is whole on every
            rank; nothing was allocated.

    Example:
        >>> from transom import TransformerConfig
        >>> config = TransformerConfig(num_layers=1, hidden_size=4, num_attention_heads=1)
        >>> linear = RowParallelLinear(
        ...     6, 4, config=config, init_method=nn.init.ones_, bias=True, input_is_parallel=True, skip_bias_add=False,
        ...     is_expert=False, tp_comm_buffer_name=None, tp_group=None,
        ... )
        >>> linear(torch.ones(1, 1, 6))
        (tensor([[[6., 6., 6., 6.]]], grad_fn=<ViewBackward0>), None)
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
        shard = Shard(Ranks.of(tp_group), dim=1)
        name = f"row linear {input_size} -> {output_size}"
        enter, leave, lend = _row_exchange(
            shard.ranks, input_is_parallel, sequence_parallel=config.sequence_parallel and not is_expert, of=name
        )
        width = shard.width(input_size, name="input_size", of=name)
        super().__init__(shard, config, init_method)
        self._enter, self._leave, self._lend = enter, leave, lend
        dtype = torch_dtype(config.params_dtype)
        self.weight = shard.rest(torch.empty(output_size, width, dtype=dtype), tp_group)
        self.bias = Parameter(torch.empty(output_size, dtype=dtype)) if bias else None
        self.skip_bias_add = skip_bias_add
        self.reset_parameters()

    @classmethod
    def supports(cls, request: LinearRequest) -> Iterable[str]:
        """Say why a request cannot be served; nothing when it can."""
        return _objections(request, "input_size", request.input_size)

    def forward(self, x: Tensor, /) -> tuple[Tensor, Tensor | None]:
        """Map ``x @ weight.T + bias``.

        Args:
            x: ``[..., in/p]``, or ``[..., in]`` unless ``input_is_parallel``.

        Returns:
            ``[..., out]``, the same on every rank; with sequence parallelism this rank's ``[b, s/p, out]``. And the
            bias when it was not added.
        """
        ranks, weight = self.shard.ranks, self.shard.local(self.weight)
        x = self._enter(x, ranks)  # [..., in/p]
        bias = None if self.bias is None else self._lend(self.bias, ranks)
        if ranks.size == 1 and not self.skip_bias_add:  # in the product: the plain linear, to the bit
            return self._linear(x, weight, bias), None
        out = self._leave(self._linear(x, weight, None), ranks)
        if self.skip_bias_add or bias is None:
            return out, bias
        return out + bias.to(out.dtype), None  # under autocast the products are narrower than the bias

    def sharded_state_dict(
        self,
        prefix: str = "",
        sharded_offsets: tuple[Offset, ...] = (),
        metadata: Mapping[str, Any] | None = None,
    ) -> ShardedStateDict:
        """Describe this rank's columns of the weight, and the bias, which every rank holds whole."""
        state = super().sharded_state_dict(prefix, sharded_offsets, metadata)
        if self.bias is not None:
            key, whole = f"{prefix}bias", replica_of(metadata, tensor_parallel_rank=self.shard.ranks.rank)
            state[key] = replicated(key, self.bias, prepend_offsets=sharded_offsets, replica_id=whole)
        return state


def _as_is(x: Tensor, ranks: Ranks) -> Tensor:
    return x


def _column_entrance(ranks: Ranks, *, sequence_parallel: bool) -> Exchange:
    """Choose what happens to the input."""
    if ranks.size == 1:
        return _as_is
    return gather_sequence if sequence_parallel else copy_to_ranks


def _row_exchange(
    ranks: Ranks, input_is_parallel: bool, *, sequence_parallel: bool, of: str
) -> tuple[Exchange, Exchange, Exchange]:
    """Choose what happens to the input, to the output and to the bias."""
    if ranks.size == 1:
        return _as_is, _as_is, _as_is
    if sequence_parallel and not input_is_parallel:
        raise ParallelError(
            f"{of} has an input that is whole on every rank, which sequence_parallel does not have.",
            hint="input_is_parallel=True after a column linear, or sequence_parallel=False",
            ranks=ranks.size,
        )
    if sequence_parallel:  # each rank adds the bias to its part of the sequence: its gradients add up
        return _as_is, scatter_sequence, copy_to_ranks
    return _as_is if input_is_parallel else scatter_features, sum_over_ranks, _as_is


def _objections(request: LinearRequest, name: str, width: int) -> Iterator[str]:
    reason = uneven(width, request.stride, request.context.tensor_parallel_size)
    if reason is not None:
        yield f"{name} cannot be split: {reason}"
    if "delay_wgrad" in request.features and request.context.compile:
        yield "delay_wgrad keeps tensors outside the graph, which a compiled backward pass cannot"


if TYPE_CHECKING:
    _column: ColumnLinearBuilder = ColumnParallelLinear
    _row: RowLinearBuilder = RowParallelLinear
