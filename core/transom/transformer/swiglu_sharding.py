"""The fused gate and up projection of a rank, described as parts of the two whole matrices."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from transom.errors import ParallelError
from transom.transformer.sharding import (
    Offset,
    ReplicaId,
    ShardedTensor,
    ShardedTensorFactory,
    local_part,
    sharded,
)

__all__ = ["apply_swiglu_sharded_factory"]


def apply_swiglu_sharded_factory(
    original_sh_ten: ShardedTensor,
    sharded_offsets: tuple[Offset, ...],
    singleton_local_shards: bool = False,
) -> ShardedTensorFactory:
    """Describe a rank's ``[gate_r; up_r]`` as two shards of ``[gate; up]``, which any number of ranks can load.

    Args:
        original_sh_ten: of the fused weight ``[2f/p, h]`` or bias ``[2f/p]``, split along its first axis over p ranks
            as if it were one matrix.
        sharded_offsets: axes that the whole has before those of the tensor.
        singleton_local_shards: save gate and up under the keys ``<key>_w`` and ``<key>_v``, each split over p ranks;
            otherwise they are parts r and r + p of the 2p parts of one tensor.

    Returns:
        whose ``build_fn`` makes the shards of gate and up, and whose ``merge_fn`` puts them together again.

    Raises:
        ParallelError: f is not a multiple of p; or ``build_fn`` was given a tensor of another shape.

    Example:
        >>> fused = sharded("fc1.weight", torch.ones(6, 4), axis=0, rank=1, ranks=2)
        >>> factory = apply_swiglu_sharded_factory(fused, ())
        >>> [(shard.global_offset, shard.global_shape) for shard in factory.build()]
        [((3, 0), (12, 4)), ((9, 0), (12, 4))]
    """
    fused, axis, shape = original_sh_ten, original_sh_ten.prepended, original_sh_ten.local_shape
    ranks = original_sh_ten.axis_fragmentations[axis]
    rank = original_sh_ten.global_offset[axis] // shape[0]
    _check_halves(original_sh_ten, ranks)

    def build(key: str, tensor: Tensor, replica_id: ReplicaId) -> list[ShardedTensor]:
        tensor = local_part(tensor, shape)
        if tuple(tensor.shape) != shape:
            raise ParallelError(
                f"{key}: a tensor {tuple(tensor.shape)} is not shaped like the fused gate and up {shape}.", key=key
            )
        gate, up = tensor.chunk(2)  # [2f/p, ...] -> 2 x [f/p, ...]
        if singleton_local_shards:
            places = (f"{key}_w", rank, ranks), (f"{key}_v", rank, ranks)
        else:
            places = (key, rank, 2 * ranks), (key, rank + ranks, 2 * ranks)
        return [
            sharded(name, half, 0, part, parts, sharded_offsets, replica_id=replica_id)
            for half, (name, part, parts) in zip((gate, up), places, strict=True)
        ]

    def merge(halves: Sequence[Tensor]) -> Tensor:
        return torch.cat(tuple(halves))

    return ShardedTensorFactory(fused.key, fused.data, build, merge, fused.replica_id, shape)


def _check_halves(fused: ShardedTensor, ranks: int) -> None:
    """Check that gate and up are each split evenly: that their sum is says nothing."""
    width = fused.global_shape[fused.prepended]
    if fused.local_shape[0] % 2:
        raise ParallelError(
            f"{fused.key}: gate and up of {width / 2:g} rows each cannot be split over {ranks} ranks.",
            hint=f"an ffn_hidden_size that is a multiple of {ranks}, or fewer tensor-parallel ranks",
            key=fused.key,
            size=width,
            ranks=ranks,
        )
