"""Parameters of core's own that are split over tensor-parallel ranks: how they rest, compute and are described."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from transom.transformer.sharding import Offset, ShardedTensor, replica_of, sharded

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from transom.transformer.collectives import Ranks

__all__ = ["described", "local_tensor", "split_parameter"]


def split_parameter(part: Tensor, dim: int, group: ProcessGroup | None) -> nn.Parameter:
    """Let a rank's part rest as what it is of the whole, so that data parallelism and checkpoints know.

    Args:
        part: whose memory the parameter shares; all ranks' have one shape.
        dim: along which the whole is split.
        group: the tensor-parallel ranks; `None` = one process.

    Returns:
        ``part`` itself on one rank, else a DTensor.

    Example:
        >>> split_parameter(torch.zeros(3), 0, None).shape
        torch.Size([3])
    """
    if group is None or group.size() == 1:
        return nn.Parameter(part)
    from torch.distributed.tensor import DTensor, Shard

    from transom.transformer.meshes import mesh_of

    return nn.Parameter(DTensor.from_local(part, mesh_of(group, part.device.type), [Shard(dim)], run_check=False))


def local_tensor(parameter: Tensor, ranks: Ranks) -> Tensor:
    """Give what this rank computes with: the local tensor of a DTensor, anything else as it is.

    Args:
        parameter: split over the ranks, or plain.
        ranks: the tensor-parallel ranks; what one process has is plain.

    Example:
        >>> from transom.transformer.collectives import Ranks
        >>> local_tensor(torch.ones(2), Ranks.of(None))
        tensor([1., 1.])
    """
    if ranks.size == 1:
        return parameter
    # Asked by its type: torch.compile does not see the attributes that a subclass of tensors adds.
    from torch.distributed.tensor import DTensor

    return parameter.to_local() if isinstance(parameter, DTensor) else parameter


def described(
    key: str,
    parameter: Tensor,
    dim: int,
    ranks: Ranks,
    sharded_offsets: Sequence[Offset] = (),
    metadata: Mapping[str, Any] | None = None,
) -> ShardedTensor:
    """Describe a parameter of `split_parameter` as `transom.transformer.sharding` does.

    Args:
        key: name of the whole.
        parameter: this rank's.
        dim: along which the whole is split.
        ranks: the tensor-parallel ranks.
        sharded_offsets: axes that the whole has before those of the parameter.
        metadata: as ``sharded_state_dict`` takes it.

    Example:
        >>> from transom.transformer.collectives import Ranks
        >>> described("bias", torch.zeros(3), 0, Ranks("", 2, 1)).global_offset
        (3,)
    """
    shape = list(parameter.shape)
    if hasattr(parameter, "to_local"):
        shape[dim] //= ranks.size
    # Its shape alone: data parallelism may have left this rank less of its part.
    part = torch.empty(shape, dtype=parameter.dtype, device="meta")
    replica = replica_of(metadata, tensor_parallel_rank=0)
    shard = sharded(key, part, dim, ranks.rank, ranks.size, sharded_offsets, replica_id=replica)
    return replace(shard, data=parameter)
