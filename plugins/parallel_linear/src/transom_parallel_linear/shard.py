"""Which part of a whole weight a rank holds, and how it gets its first values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import Parameter
from transom.errors import ParallelError
from transom.transformer.initialization import initialize

from transom_parallel_linear.collectives import Ranks

if TYPE_CHECKING:
    from transom import TransformerConfig

__all__ = ["Shard", "uneven"]


def uneven(width: int, stride: int, ranks: int) -> str | None:
    """Say why a dimension cannot be split evenly; `None` when it can.

    Args:
        width: of the dimension over all ranks.
        stride: how many logical matrices are stacked in it; each is split by itself.
        ranks: p, among how many.

    Example:
        >>> uneven(12, 2, 4)
        '6 (half of 12) is not a multiple of 4 ranks'
        >>> uneven(12, 1, 4) is None
        True
    """
    if width % stride:
        return f"{width} does not divide into {stride} stacked matrices"
    logical = width // stride
    if logical % ranks == 0:
        return None
    whole = "" if stride == 1 else f" (half of {width})" if stride == 2 else f" ({width} / {stride})"
    return f"{logical}{whole} is not a multiple of {ranks} ranks"


@dataclass(frozen=True)
class Shard:
    """The part of a whole tensor that a rank holds.

    The whole stacks ``stride`` logical matrices along ``dim`` (a fused gate and up projection: 2); each is split over
    the ranks by itself, so that rank r of ``[gate; up]`` holds ``[gate_r; up_r]``.

    Args:
        ranks: among whom.
        dim: that is split.
        stride: how many logical matrices are stacked along it.

    Example:
        >>> whole = torch.arange(8)  # two matrices: 0-3 and 4-7
        >>> Shard(Ranks("", 2, 1), dim=0, stride=2).of(whole)
        tensor([2, 3, 6, 7])
    """

    ranks: Ranks
    dim: int = 0
    stride: int = 1

    def of(self, whole: Tensor) -> Tensor:
        """This rank's part of ``whole``."""
        matrices = torch.unflatten(whole, self.dim, (self.stride, -1))  # [.., stride·w, ..] -> [.., stride, w, ..]
        return self.ranks.part(matrices, self.dim + 1).flatten(self.dim, self.dim + 1)

    def width(self, whole: int, *, name: str, of: str) -> int:
        """Width of the part of a dimension that is ``whole`` wide.

        Args:
            whole: width over all ranks.
            name: what the width is called, for the error.
            of: whose width it is, for the error.

        Raises:
            ParallelError: it does not divide evenly.
        """
        reason = uneven(whole, self.stride, self.ranks.size)
        if reason is not None:
            raise ParallelError(
                f"{name} of {of} cannot be split: {reason}.",
                hint=f"a {name} that is a multiple of {self.stride * self.ranks.size}, or fewer tensor-parallel ranks",
                size=whole,
                stride=self.stride,
                ranks=self.ranks.size,
            )
        return whole // self.ranks.size

    @torch.no_grad()
    def fill(self, part: Parameter, init_method: Callable[[Tensor], Any], config: TransformerConfig) -> None:
        """Give a part its first values: those that it would have in a single process.

        Every rank draws the whole tensor from its generator, which must be in the same state everywhere, and keeps
        its part; afterwards all generators are in the state that a single process's would be in.

        Args:
            part: this rank's parameter, filled in place; nothing happens on the meta device.
            init_method: fills a tensor in place.
            config: whether to draw, and where.
        """
        if self.ranks.size == 1:
            initialize(part, init_method, config)
        elif config.perform_initialization and not part.is_meta:
            shape = list(part.shape)
            shape[self.dim] *= self.ranks.size
            device = "cpu" if config.use_cpu_initialization else part.device
            whole = torch.empty(shape, dtype=part.dtype, device=device)
            initialize(whole, init_method, config)
            part.copy_(self.of(whole))
