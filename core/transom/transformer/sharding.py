"""Which part of a whole tensor each rank holds, so that any other number of ranks can load what was saved.

A rank's state is a mapping from its own names to `ShardedTensor` and `ShardedTensorFactory`. Shards with one key are
parts of one whole, which is the same however many ranks there are.

``sharded_offsets`` are axes that the whole has before those of the tensor, one ``(axis, rank, ranks)`` each: of
``((0, 2, 8),)`` the tensor is ``whole[2]`` and ``len(whole)`` is 8.

``metadata`` says what a module cannot know of itself:

========================= ==================================================================
``tensor_parallel_rank``  this rank among those that hold replicas of what is not split; a ``tp_group`` says it too
``data_parallel_rank``    this rank among those that hold replicas of everything
``singleton_local_shards`` stacked matrices are saved under a key each
========================= ==================================================================
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from transom.errors import ParallelError
from transom.transformer.moved_names import moved_names

__all__ = [
    "Offset",
    "ReplicaId",
    "ShardedModule",
    "ShardedStateDict",
    "ShardedTensor",
    "ShardedTensorFactory",
    "local_part",
    "own_sharded_state",
    "replica_of",
    "replicated",
    "sharded",
    "sharded_state_of",
]

Offset: TypeAlias = tuple[int, int, int]
"""An axis of the whole, this rank along it, and how many there are."""

ReplicaId: TypeAlias = tuple[int, ...]
"""Which copy of a shard this is: all zeros is the one that is saved."""


@dataclass(frozen=True, eq=False)
class ShardedTensor:
    """A rank's part of a whole tensor.

    Args:
        key: name of the whole, the same on all ranks.
        data: the part, a parameter or a tensor shaped like one; it may be a DTensor, which says itself what it is.
        dtype: of the part.
        local_shape: of the part.
        global_shape: of the whole; it may have axes before those of the part.
        global_offset: where the part begins in the whole.
        axis_fragmentations: into how many parts each axis of the whole is split.
        replica_id: which copy this is; all zeros is the one that is saved.
        flattened: the part is a range of the flattened shard. Always false here.

    Raises:
        ParallelError: shapes and offsets that do not fit together.

    Example:
        >>> shard = sharded("w", torch.tensor([4, 5]), axis=0, rank=1, ranks=3)
        >>> shard.global_shape, shard.global_offset
        ((6,), (2,))
        >>> torch.arange(6)[shard.index]
        tensor([2, 3])
    """

    key: str
    data: Tensor
    dtype: torch.dtype
    local_shape: tuple[int, ...]
    global_shape: tuple[int, ...]
    global_offset: tuple[int, ...]
    axis_fragmentations: tuple[int, ...]
    replica_id: ReplicaId = (0,)
    flattened: bool = False

    def __post_init__(self) -> None:
        extents = (1,) * self.prepended + self.local_shape
        ends = tuple(start + extent for start, extent in zip(self.global_offset, extents, strict=False))
        axes = {len(self.global_shape), len(self.global_offset), len(self.axis_fragmentations), len(extents)}
        is_inside = all(end <= size for end, size in zip(ends, self.global_shape, strict=False))
        if len(axes) > 1 or not is_inside or min(self.global_offset, default=0) < 0:
            raise ParallelError(
                f"{self.key}: a shard {self.local_shape} at {self.global_offset} does not lie in {self.global_shape}.",
                hint="give an offset and a fragmentation for each axis of the whole",
                key=self.key,
            )

    @property
    def prepended(self) -> int:
        """How many axes the whole has before those of the part."""
        return len(self.global_shape) - len(self.local_shape)

    @property
    def index(self) -> tuple[int | slice, ...]:
        """What the whole is indexed with to get the part."""
        starts = self.global_offset[self.prepended :]
        slices = (slice(start, start + size) for start, size in zip(starts, self.local_shape, strict=True))
        return (*self.global_offset[: self.prepended], *slices)

    @property
    def local(self) -> Tensor:
        """The part in this rank's memory, in its own shape, whatever form the parameter rests in."""
        return local_part(self.data, self.local_shape)

    @property
    def is_main_replica(self) -> bool:
        """Whether this is the copy that is saved."""
        return not any(self.replica_id)


def local_part(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Give a rank's part as a plain tensor.

    Args:
        tensor: plain, or a DTensor of which this rank holds all of the part: stacked matrices may have a dimension of
            their own.
        shape: of the part.

    Returns:
        a plain tensor as it is; of a DTensor its memory in that shape, or as it is where it has other numbers of
        elements.
    """
    to_local = getattr(tensor, "to_local", None)
    if to_local is None:
        return tensor
    local: Tensor = to_local()
    return local.view(shape) if local.numel() == math.prod(shape) else local


BuildShards: TypeAlias = Callable[[str, Tensor, ReplicaId], list[ShardedTensor]]
MergeShards: TypeAlias = Callable[[Sequence[Tensor]], Tensor]


@dataclass(frozen=True, eq=False)
class ShardedTensorFactory:
    """A rank's tensor that is saved as several shards.

    Args:
        key: name of the whole.
        data: the rank's tensor.
        build_fn: from a key, a tensor shaped like ``data`` (an optimizer's state, say) and a replica to the shards.
        merge_fn: from the shards' tensors, in the order of ``build_fn``, back to one shaped like ``data``.
        replica_id: which copy this is; all zeros is the one that is saved.
        local_shape: of what ``build_fn`` takes, where ``data`` may rest otherwise; `None` = that of ``data``.
    """

    key: str
    data: Tensor
    build_fn: BuildShards
    merge_fn: MergeShards
    replica_id: ReplicaId = (0,)
    local_shape: tuple[int, ...] | None = None

    def build(self) -> list[ShardedTensor]:
        """Make the shards of ``data``."""
        return self.build_fn(self.key, self.data, self.replica_id)


ShardedStateDict: TypeAlias = dict[str, ShardedTensor | ShardedTensorFactory]


def replicated(
    key: str, tensor: Tensor, *, prepend_offsets: Sequence[Offset] = (), replica_id: ReplicaId = (0,)
) -> ShardedTensor:
    """Describe a tensor that every rank holds whole.

    Args:
        key: name of the whole.
        tensor: the whole.
        prepend_offsets: axes that the whole has before those of the tensor.
        replica_id: which copy this is.

    Returns:
        the shard.

    Raises:
        ParallelError: the offsets are not those of the first axes, in order.

    Example:
        >>> replicated("w", torch.ones(2), prepend_offsets=((0, 1, 4),)).global_shape
        (4, 2)
    """
    return _shard(key, tensor, tuple(prepend_offsets), len(prepend_offsets), replica_id)


def sharded(
    key: str,
    tensor: Tensor,
    axis: int,
    rank: int,
    ranks: int,
    prepend_offsets: Sequence[Offset] = (),
    *,
    replica_id: ReplicaId = (0,),
) -> ShardedTensor:
    """Describe a tensor that is split evenly along one of its axes.

    Args:
        key: name of the whole.
        tensor: this rank's part.
        axis: of the part, along which the whole is split.
        rank: which part this is, from 0.
        ranks: how many parts there are.
        prepend_offsets: axes that the whole has before those of the part.
        replica_id: which copy this is.

    Returns:
        the shard.

    Raises:
        ParallelError: there is no such axis or rank, or the offsets are not those of the first axes, in order.
    """
    if not 0 <= axis < tensor.dim():
        raise ParallelError(
            f"{key}: a tensor of {tensor.dim()} axes cannot be split along axis {axis}.", key=key, axis=axis
        )
    before = len(prepend_offsets)
    return _shard(key, tensor, (*prepend_offsets, (before + axis, rank, ranks)), before, replica_id)


def _shard(
    key: str, tensor: Tensor, offsets: tuple[Offset, ...], prepended: int, replica_id: ReplicaId
) -> ShardedTensor:
    if [axis for axis, _, _ in offsets[:prepended]] != list(range(prepended)):
        raise ParallelError(
            f"{key}: offsets {offsets[:prepended]} are not those of the whole's first {prepended} axes in order.",
            hint="number the axes from 0",
            key=key,
        )
    extents = (1,) * prepended + tuple(tensor.shape)
    starts, fragments = [0] * len(extents), [1] * len(extents)
    for axis, rank, ranks in offsets:
        if not 0 <= rank < ranks:
            raise ParallelError(f"{key}: there is no rank {rank} of {ranks}.", key=key, rank=rank, ranks=ranks)
        starts[axis], fragments[axis] = rank * extents[axis], ranks
    return ShardedTensor(
        key=key,
        data=tensor,
        dtype=tensor.dtype,
        local_shape=tuple(tensor.shape),
        global_shape=tuple(extent * count for extent, count in zip(extents, fragments, strict=True)),
        global_offset=tuple(starts),
        axis_fragmentations=tuple(fragments),
        replica_id=replica_id,
    )


def replica_of(metadata: Mapping[str, Any] | None, *, tensor_parallel_rank: int | None = None) -> ReplicaId:
    """Say which copy a rank's shard is.

    Args:
        metadata: as `ShardedModule.sharded_state_dict` takes it.
        tensor_parallel_rank: if the module knows it; 0 of what is split over these ranks. `None` = the metadata's.

    Example:
        >>> replica_of({"tensor_parallel_rank": 1})
        (1, 0)
        >>> replica_of({"tensor_parallel_rank": 1, "data_parallel_rank": 3}, tensor_parallel_rank=0)
        (0, 3)
    """
    said = metadata or {}
    if tensor_parallel_rank is None:
        tensor_parallel_rank = int(said.get("tensor_parallel_rank", 0))
    return tensor_parallel_rank, int(said.get("data_parallel_rank", 0))


def sharded_state_of(
    module: nn.Module,
    prefix: str = "",
    sharded_offsets: tuple[Offset, ...] = (),
    metadata: Mapping[str, Any] | None = None,
) -> ShardedStateDict:
    """Ask a module for its sharded state; of one that has no ``sharded_state_dict``, its own tensors are replicated.

    Args:
        module: any module.
        prefix: of all names and keys, with the dot.
        sharded_offsets: axes that the wholes have before those of the tensors.
        metadata: what a module cannot know of itself.

    Returns:
        from names, as in ``state_dict``, to shards.
    """
    ask = getattr(module, "sharded_state_dict", None)
    if ask is None:
        return own_sharded_state(module, prefix, sharded_offsets, metadata)
    state: ShardedStateDict = ask(prefix, sharded_offsets, metadata)
    return state


def own_sharded_state(
    module: nn.Module,
    prefix: str = "",
    sharded_offsets: tuple[Offset, ...] = (),
    metadata: Mapping[str, Any] | None = None,
) -> ShardedStateDict:
    """Describe a module's own parameters and persistent buffers as replicated, and ask its children for theirs.

    A tensor that has several names is saved once: later names have the key of the first and are a replica of it.

    Args:
        module: any module.
        prefix: of all names and keys, with the dot.
        sharded_offsets: axes that the wholes have before those of the tensors.
        metadata: what a module cannot know of itself.

    Returns:
        from names, as in ``state_dict``, to shards.
    """
    replica_id = replica_of(metadata)
    state: ShardedStateDict = {
        prefix + name: replicated(prefix + name, tensor, prepend_offsets=sharded_offsets, replica_id=replica_id)
        for name, tensor in _own_tensors(module)
    }
    for name, child in module.named_children():
        state |= sharded_state_of(child, f"{prefix}{name}.", sharded_offsets, metadata)
    for own, name in moved_names(module).items():
        shard = state.pop(prefix + own, None)
        if shard is not None:
            state[prefix + name] = replace(shard, key=prefix + name)
    return _with_one_owner_each(state)


def _own_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """As ``state_dict`` names them; parameters themselves, so that an optimizer's state finds its shard by them."""
    yield from ((name, tensor) for name, tensor in module._parameters.items() if tensor is not None)
    transient = module._non_persistent_buffers_set
    yield from ((n, tensor) for n, tensor in module._buffers.items() if tensor is not None and n not in transient)


def _with_one_owner_each(state: ShardedStateDict) -> ShardedStateDict:
    owners: dict[int, str] = {}
    found: ShardedStateDict = {}
    for name, shard in state.items():
        owner = owners.setdefault(id(shard.data), shard.key)
        is_copy = owner != shard.key
        found[name] = replace(shard, key=owner, replica_id=(*shard.replica_id, 1)) if is_copy else shard
    return found


class ShardedModule(nn.Module):
    """A module that can say which parts of whole tensors it holds."""

    tensor_parallel_rank: int | None = None  # among those that share the module, where it knows

    def sharded_state_dict(
        self,
        prefix: str = "",
        sharded_offsets: tuple[Offset, ...] = (),
        metadata: Mapping[str, Any] | None = None,
    ) -> ShardedStateDict:
        """Describe all parameters and persistent buffers, of this module and of those below.

        Args:
            prefix: of all names and keys, with the dot.
            sharded_offsets: axes that the wholes have before those of the tensors, ``(axis, rank, ranks)`` each.
            metadata: what a module cannot know of itself; see `transom.transformer.sharding`.

        Returns:
            from names, as in ``state_dict``, to shards.

        Example:
            >>> class Scale(ShardedModule):
            ...     def __init__(self):
            ...         super().__init__()
            ...         self.factor = nn.Parameter(torch.ones(3))
            >>> Scale().sharded_state_dict("scale.")["scale.factor"].global_shape
            (3,)
        """
        if self.tensor_parallel_rank is not None:
            metadata = {"tensor_parallel_rank": self.tensor_parallel_rank, **(metadata or {})}
        return own_sharded_state(self, prefix, sharded_offsets, metadata)
