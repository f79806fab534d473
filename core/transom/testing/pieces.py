"""What ranks have of whole tensors, and what is the same for all that is computed on several of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from transom.slots.request import BuildContext
from transom.testing.case import ConformanceError
from transom.testing.subject import Subject, config_for
from transom.transformer.transformer_config import TransformerConfig

__all__ = ["DTYPE", "FEATURES", "Piece", "Pieces", "config_of", "context_of", "features_of", "local", "part", "run"]

DTYPE = "float32"
FEATURES = ("tensor_parallel", "sequence_parallel")


@dataclass(frozen=True)
class Piece:
    """A tensor of one rank: the same on all of them, or a part of the whole along a dimension."""

    tensor: Tensor
    dim: int | None = None


Pieces = dict[str, Piece]


def config_of(size: int, sequence: bool) -> TransformerConfig:
    """Make the config of a model on ``size`` ranks."""
    return config_for(
        num_query_groups=2,
        position_embedding_type="rope",
        tensor_model_parallel_size=size,
        sequence_parallel=sequence,
        params_dtype=DTYPE,
    )


def context_of(subject: Subject, config: TransformerConfig) -> BuildContext:
    """Make the context in which such a model is built."""
    return subject.context(DTYPE, tensor_parallel_size=config.tensor_model_parallel_size)


def features_of(group: ProcessGroup | None, sequence: bool) -> frozenset[str]:
    """Say what is asked for."""
    return frozenset(() if group is None else FEATURES if sequence else FEATURES[:1])


def part(x: Tensor, dim: int, group: ProcessGroup | None, *, split: bool = True) -> Tensor:
    """Give this rank's part of a whole tensor."""
    return x if group is None or not split else x.chunk(group.size(), dim=dim)[group.rank()].contiguous()


def local(x: Tensor) -> Tensor:
    """Give this rank's part of what may be a DTensor, as a plain tensor that shares its memory."""
    to_local = getattr(x, "to_local", None)
    plain: Tensor = x if to_local is None else to_local()
    return plain.detach()


def run(call: Callable[[Tensor], Any], x: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    """Run forward and backward; give the output and the gradient of the input."""
    x = x.clone().requires_grad_()
    output = call(x)
    if output.shape != direction.shape:
        raise ConformanceError(f"the output has shape {list(output.shape)}, expected {list(direction.shape)}")
    torch.autograd.backward((output * direction).sum())
    assert x.grad is not None
    return output.detach(), x.grad
