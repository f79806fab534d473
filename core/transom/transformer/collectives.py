"""What tensor-parallel processes say to one another, each with the backward that a tensor-parallel layer needs.

Plugins that split a layer's weights use these, and so does attention where key/value heads are fewer than ranks.

Over p ranks, with the gradients of replicated tensors alike on every rank:

==================== ============================== ==============================
function             forward                        backward
==================== ============================== ==============================
`copy_to_ranks`      identity                       sum over ranks
`sum_over_ranks`     sum over ranks                 identity
`gather_features`    concatenate the last dimension this rank's part
`scatter_features`   this rank's part               concatenate the last dimension
`gather_sequence`    concatenate the sequence       sum, then this rank's part
`scatter_sequence`   sum, then this rank's part     concatenate the sequence
==================== ============================== ==============================

The collectives are torch's functional ones, which `torch.compile(fullgraph=True)` traces. Their own derivatives are
another thing (that of all-reduce is an all-reduce, right only for a loss that is summed over ranks), hence the
autograd functions here.

Source: Shoeybi et al. 2019, Megatron-LM (conjugate operators f and g); Korthikanti et al. 2022 (sequence parallelism).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from torch.autograd import Function

from transom.errors import ParallelError

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = [
    "Ranks",
    "copy_to_ranks",
    "gather_features",
    "gather_sequence",
    "max_over_ranks",
    "scatter_features",
    "scatter_sequence",
    "sum_over_ranks",
]

_FEATURES = -1
_SEQUENCE = -2


@dataclass(frozen=True)
class Ranks:
    """The processes that share a layer's weights, by what the collectives ask for.

    The group's name stands for the group: unlike a process group it can be pickled and copied, and a compiled graph
    refers to it.

    Args:
        name: of the process group; ``""`` for a single process.
        size: p, the number of processes.
        rank: of this process among them.

    Example:
        >>> Ranks.of(None)
        Ranks(name='', size=1, rank=0)
    """

    name: str
    size: int
    rank: int

    @classmethod
    def of(cls, group: ProcessGroup | None) -> Ranks:
        """Describe a process group; `None` means one process."""
        return cls("", 1, 0) if group is None else cls(group.group_name, group.size(), group.rank())

    def part(self, x: Tensor, dim: int) -> Tensor:
        """This rank's part of ``x`` along ``dim``, a view."""
        width = x.shape[dim] // self.size
        return x.narrow(dim, self.rank * width, width)


def copy_to_ranks(x: Tensor, ranks: Ranks) -> Tensor:
    """Hand a replicated tensor to ranks that each compute a part with it; their gradients add up."""
    return _Copy.apply(x, ranks)


def sum_over_ranks(x: Tensor, ranks: Ranks) -> Tensor:
    """Add up the ranks' partial results; every rank gets the sum."""
    return _Sum.apply(x, ranks)


@torch.no_grad()
def max_over_ranks(x: Tensor, ranks: Ranks) -> Tensor:
    """Take the largest of the ranks' numbers, element by element; no gradient flows through it."""
    return _all_reduce(x, ranks, "max")


def gather_features(x: Tensor, ranks: Ranks) -> Tensor:
    """Put the ranks' parts of the last dimension together, ``[..., f/p] -> [..., f]``, on every rank."""
    return _GatherFeatures.apply(x, ranks)


def scatter_features(x: Tensor, ranks: Ranks) -> Tensor:
    """Keep this rank's part of the last dimension, ``[..., f] -> [..., f/p]``, of a replicated tensor."""
    return _ScatterFeatures.apply(x, ranks)


def gather_sequence(x: Tensor, ranks: Ranks) -> Tensor:
    """Put the ranks' parts of the sequence together, ``[..., s/p, f] -> [..., s, f]``, on every rank."""
    return _GatherSequence.apply(x, ranks)


def scatter_sequence(x: Tensor, ranks: Ranks) -> Tensor:
    """Add up the ranks' partial results and keep this rank's part of the sequence, ``[..., s, f] -> [..., s/p, f]``.

    Raises:
        ParallelError: s is not a multiple of p.
    """
    if x.shape[_SEQUENCE] % ranks.size:
        raise ParallelError(
            f"a sequence of {x.shape[_SEQUENCE]} tokens cannot be split over {ranks.size} ranks.",
            hint=f"pad the sequence to a multiple of {ranks.size}, or leave sequence_parallel off",
            sequence_length=x.shape[_SEQUENCE],
            ranks=ranks.size,
        )
    return _ScatterSequence.apply(x, ranks)


def _all_reduce(x: Tensor, ranks: Ranks, operation: str = "sum") -> Tensor:
    ops = torch.ops._c10d_functional
    return cast(Tensor, ops.wait_tensor(ops.all_reduce(x.contiguous(), operation, ranks.name)))


def _all_gather(x: Tensor, dim: int, ranks: Ranks) -> Tensor:
    ops = torch.ops._c10d_functional
    stacked = ops.wait_tensor(ops.all_gather_into_tensor(x.contiguous(), ranks.size, ranks.name))
    dim = dim % x.dim()
    # [p·x0, ...] -> [p, x0, ...] -> [..., p, x_dim, ...] -> [..., p·x_dim, ...]
    return torch.unflatten(stacked, 0, (ranks.size, -1)).movedim(0, dim).flatten(dim, dim + 1)


def _reduce_scatter(x: Tensor, dim: int, ranks: Ranks) -> Tensor:
    ops = torch.ops._c10d_functional
    # [..., p·x_dim, ...] -> [p, ..., x_dim, ...] -> [p·x0, ...]
    stacked = torch.unflatten(x, dim, (ranks.size, -1)).movedim(dim % x.dim(), 0).flatten(0, 1).contiguous()
    return cast(Tensor, ops.wait_tensor(ops.reduce_scatter_tensor(stacked, "sum", ranks.size, ranks.name)))


class _Exchange(Function):
    """Types what `torch.autograd.Function` leaves untyped."""

    if TYPE_CHECKING:

        @classmethod
        def apply(cls, x: Tensor, ranks: Ranks, /) -> Tensor: ...


class _Copy(_Exchange):
    @staticmethod
    def forward(ctx: Any, x: Tensor, ranks: Ranks) -> Tensor:
        ctx.ranks = ranks
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _all_reduce(grad, ctx.ranks), None


class _Sum(_Exchange):
    @staticmethod
    def forward(ctx: Any, x: Tensor, ranks: Ranks) -> Tensor:
        return _all_reduce(x, ranks)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


class _GatherFeatures(_Exchange):
    @staticmethod
    def forward(ctx: Any, x: Tensor, ranks: Ranks) -> Tensor:
        ctx.ranks = ranks
        return _all_gather(x, _FEATURES, ranks)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.ranks.part(grad, _FEATURES).contiguous(), None


class _ScatterFeatures(_Exchange):
    @staticmethod
    def forward(ctx: Any, x: Tensor, ranks: Ranks) -> Tensor:
        ctx.ranks = ranks
        return ranks.part(x, _FEATURES).contiguous()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _all_gather(grad, _FEATURES, ctx.ranks), None


class _GatherSequence(_Exchange):
    @staticmethod
    def forward(ctx: Any, x: Tensor, ranks: Ranks) -> Tensor:
        ctx.ranks = ranks
        return _all_gather(x, _SEQUENCE, ranks)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _reduce_scatter(grad, _SEQUENCE, ctx.ranks), None


class _ScatterSequence(_Exchange):
    @staticmethod
    def forward(ctx: Any, x: Tensor, ranks: Ranks) -> Tensor:
        ctx.ranks = ranks
        return _reduce_scatter(x, _SEQUENCE, ranks)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _all_gather(grad, _SEQUENCE, ctx.ranks), None
