"""How the part of a weight that a rank holds gets its first values, and whether sizes suit Transformer Engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transom.errors import SpecError
from transom.transformer.initialization import initialize

if TYPE_CHECKING:
    from transom import BuildContext, TransformerConfig
    from transom.transformer.collectives import Ranks

    from transom_te_linear.options import TeOptions

__all__ = ["check_recipe", "describe_recipe", "fill", "uneven"]

_OLDEST = {"delayed": (8, 9), "current": (8, 9), "block": (9, 0)}
_OLDEST_CUDA_OF_BLOCK = (12, 9)


def uneven(name: str, size: int, stride: int, ranks: int) -> Iterator[str]:
    """Say why a dimension of ``stride`` stacked matrices cannot be split evenly; nothing when it can.

    Example:
        >>> list(uneven("output_size", 12, 2, 4))
        ['output_size 12 does not divide into 2 matrices over 4 ranks each']
    """
    if size % (stride * ranks):
        yield f"{name} {size} does not divide into {stride} matrices over {ranks} ranks each"


@torch.no_grad()
def fill(
    part: Tensor,
    init_method: Callable[[Tensor], Any],
    config: TransformerConfig,
    ranks: Ranks,
    dim: int,
    stride: int = 1,
) -> None:
    """Give a part its first values: those that it would have in a single process.

    Every rank draws the whole from its generator, which must be in the same state everywhere, and keeps its part.

    Args:
        part: this rank's parameter, filled in place; nothing happens on the meta device.
        init_method: fills a tensor in place.
        config: whether to draw, and where.
        ranks: that share the whole.
        dim: along which it is split.
        stride: how many logical matrices are stacked along it, each split by itself.
    """
    if ranks.size == 1 or part.is_meta or not config.perform_initialization:
        initialize(part, init_method, config)
        return
    shape = list(part.shape)
    shape[dim] *= ranks.size
    whole = torch.empty(shape, dtype=part.dtype, device="cpu" if config.use_cpu_initialization else part.device)
    initialize(whole, init_method, config)
    matrices = torch.unflatten(whole, dim, (stride, -1))
    part.copy_(ranks.part(matrices, dim + 1).flatten(dim, dim + 1))


def check_recipe(options: TeOptions, context: BuildContext, sizes: tuple[int, ...]) -> None:
    """Refuse a recipe that the device or the sizes do not allow, before anything is built.

    Raises:
        SpecError: with what would do.
    """
    if options.recipe is None:
        return
    capability, oldest = context.compute_capability, _OLDEST[options.recipe]
    if capability is not None and capability < oldest:
        raise _error(
            f"recipe {options.recipe!r} needs compute capability {_dotted(oldest)}, this device has "
            f"{_dotted(capability)}.",
            "recipe",
        )
    cuda = torch.version.cuda
    if options.recipe == "block" and cuda is not None and tuple(map(int, cuda.split(".")[:2])) < _OLDEST_CUDA_OF_BLOCK:
        oldest_cuda = _dotted(_OLDEST_CUDA_OF_BLOCK)
        raise _error(f"recipe 'block' needs CUDA {oldest_cuda}, this torch was built with {cuda}.", "recipe")
    odd = [size for size in sizes if size % 16]
    if odd:
        raise _error(f"FP8 needs sizes that are multiples of 16, not {', '.join(map(str, odd))}.", "recipe")


def describe_recipe(options: TeOptions | None) -> str:
    """Say in which precision will be computed."""
    if options is None or options.recipe is None:
        return ""
    if options.recipe != "delayed":
        return f"FP8, {options.recipe} scaling"
    return f"FP8, delayed scaling ({options.amax} of {options.amax_history}, margin {options.margin})"


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))


def _error(what: str, field: str) -> SpecError:
    return SpecError(what, hint="leave recipe out", path=f"options.{field}", file=None, line=None)
