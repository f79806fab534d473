"""What a rank holds of every whole tensor, in the form in which `torch.distributed.checkpoint` saves and loads it.

Wholes have canonical names and shapes, whatever the number of ranks: those of one process, except that gate and up of a
fused projection may be two wholes, ``NAME_w`` and ``NAME_v``, so that each rank's part of each is one block.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, Metadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from torch.optim import Optimizer

from transom.transformer.sharding import ShardedTensor, ShardedTensorFactory, sharded_state_of

__all__ = ["Piece", "PieceLoader", "PieceSaver", "Pieces", "model_pieces", "optimizer_pieces"]

Offset = tuple[int, ...]
Block = tuple[Offset, Tensor]
"""Where a block begins in its whole, and its memory on this rank."""


@dataclass(eq=False)
class Piece:
    """A rank's blocks of one whole; none, one, or the two of a fused projection.

    Args:
        key: name of the whole.
        shape: of the whole.
        dtype: of its elements.
        blocks: the rank's.
    """

    key: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    blocks: tuple[Block, ...]

    def as_number(self) -> Piece:
        """Describe the only element of a whole of shape ``[1]`` as a whole without axes; the memory is the same."""
        return Piece(self.key, (), self.dtype, tuple(((), block.view(())) for _, block in self.blocks))

    def size(self) -> torch.Size:
        """Shape of the whole, as torch's planners ask for it."""
        return torch.Size(self.shape)

    def __create_write_items__(self, fqn: str, _: object) -> list[WriteItem]:
        """Say what this rank writes; torch's planner leaves out what another writes too."""
        properties = TensorProperties(dtype=self.dtype)
        return [
            WriteItem(
                index=MetadataIndex(fqn, chunk.offsets),
                type=WriteItemType.SHARD,
                tensor_data=TensorWriteData(chunk=chunk, properties=properties, size=self.size()),
            )
            for chunk in self.__create_chunk_list__()
        ]

    def __create_chunk_list__(self) -> list[ChunkStorageMetadata]:
        """Say which blocks of the whole this rank has."""
        return [ChunkStorageMetadata(torch.Size(offset), block.shape) for offset, block in self.blocks]

    def __get_tensor_shard__(self, index: MetadataIndex) -> Tensor:
        """Give a block's memory, to be read or filled."""
        return next(block for offset, block in self.blocks if torch.Size(offset) == index.offset)


Pieces = dict[str, Piece]
"""Pieces by their keys."""


def model_pieces(model: nn.Module, *, tensor_parallel_rank: int = 0, apart: bool = True) -> Pieces:
    """Describe a model's parameters and persistent buffers, as its ``sharded_state_dict`` does.

    Args:
        model: any module, split over tensor-parallel or data-parallel ranks or not.
        tensor_parallel_rank: of this process.
        apart: gate and up of fused projections are wholes of their own.

    Returns:
        the pieces by key; a tensor with several names is there once.
    """
    found: Pieces = {}
    for entry in _entries(model, tensor_parallel_rank, apart).values():
        for piece in _pieces(entry, entry.data.detach(), entry.key):
            found.setdefault(piece.key, piece)
    return found


def optimizer_pieces(
    model: nn.Module, optimizer: Optimizer, *, tensor_parallel_rank: int = 0, apart: bool = True
) -> Pieces:
    """Describe an optimizer's state, under the names ``KEY.ENTRY`` of the parameters that it belongs to.

    Args:
        model: whose parameters it trains.
        optimizer: of which each parameter's state consists of tensors: shaped like the parameter, or scalars.
        tensor_parallel_rank: as for `model_pieces`.
        apart: likewise.

    Returns:
        the pieces by key; scalars are wholes of shape ``[1]``.
    """
    found: Pieces = {}
    entries = _entries(model, tensor_parallel_rank, apart)
    described = {id(entry.data) for entry in entries.values()}
    assert all(id(parameter) in described for parameter in optimizer.state), "its parameters are the model's"
    for entry in entries.values():
        for name, value in optimizer.state.get(entry.data, {}).items():
            for piece in _state_pieces(entry, name, value):
                found.setdefault(piece.key, piece)
    return found


def _entries(
    model: nn.Module, tensor_parallel_rank: int, apart: bool
) -> Mapping[str, ShardedTensor | ShardedTensorFactory]:
    metadata = {"tensor_parallel_rank": tensor_parallel_rank, "singleton_local_shards": apart}
    return sharded_state_of(model, metadata=metadata)


def _state_pieces(entry: ShardedTensor | ShardedTensorFactory, name: str, value: Tensor) -> Iterator[Piece]:
    if value.ndim == 0:
        yield Piece(f"{entry.key}.{name}", (1,), value.dtype, (((0,), value.view(1)),))
        return
    for piece in _pieces(entry, value, entry.key):
        piece.key = f"{piece.key}.{name}"
        yield piece


def _pieces(entry: ShardedTensor | ShardedTensorFactory, tensor: Tensor, key: str) -> Iterator[Piece]:
    """Describe a tensor that is split as an entry's."""
    if isinstance(entry, ShardedTensorFactory):
        yield from _joined(_halves(entry, tensor))
        return
    offset, local = _block(tensor)
    if isinstance(tensor, DTensor) and tuple(tensor.shape) == entry.global_shape:
        at = offset
    else:  # a part of the tensor-parallel part
        at = tuple(start + more for start, more in zip(entry.global_offset, offset, strict=True))
    yield Piece(key, entry.global_shape, tensor.dtype, _filled(at, local))


def _halves(entry: ShardedTensorFactory, tensor: Tensor) -> Iterator[tuple[ShardedTensor, tuple[Block, ...]]]:
    """Take gate and up of a fused projection apart: each half's description, and what this rank has of it."""
    offset, local = _block(tensor)
    part = entry.local_shape or tuple(tensor.shape)
    for number, half in enumerate(entry.build_fn(entry.key, torch.empty(part, device="meta"), entry.replica_id)):
        if tensor.ndim > len(part):  # it rests as [2, f, ...]
            own = range(offset[0], offset[0] + len(local))
            at = (half.global_offset[0] - half.global_offset[0] % tensor.shape[1] + offset[1], *offset[2:])
            yield half, _filled(at, local[number - offset[0]]) if number in own else ()
            continue
        rows = half.local_shape[0]
        first, last = (min(max(row - number * rows, 0), rows) for row in (offset[0], offset[0] + len(local)))
        begin = number * rows + first - offset[0]
        at = (half.global_offset[0] + first, *(a + b for a, b in zip(half.global_offset[1:], offset[1:], strict=True)))
        yield half, _filled(at, local[begin : begin + last - first]) if last > first else ()


def _joined(halves: Iterator[tuple[ShardedTensor, tuple[Block, ...]]]) -> Iterator[Piece]:
    """Make a piece of each whole, which both halves may be blocks of."""
    found: Pieces = {}
    for half, blocks in halves:
        piece = found.setdefault(half.key, Piece(half.key, half.global_shape, half.dtype, ()))
        piece.blocks += blocks
        for _, block in blocks:
            piece.dtype = block.dtype
    yield from found.values()


def _block(tensor: Tensor) -> Block:
    """Say where this rank's memory lies in what a tensor stands for."""
    if not isinstance(tensor, DTensor):
        return (0,) * tensor.ndim, tensor
    _, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    return tuple(offset), tensor.to_local()


def _filled(offset: Offset, local: Tensor) -> tuple[Block, ...]:
    return ((offset, local),) if math.prod(local.shape) else ()


class PieceSaver(DefaultSavePlanner):
    """Torch's planner, which looks blocks up in pieces."""

    def lookup_object(self, index: MetadataIndex) -> Any:
        """Give a block's memory."""
        return self.state_dict[index.fqn].__get_tensor_shard__(index)


class PieceLoader(DefaultLoadPlanner):
    """Torch's planner, which looks blocks up in pieces."""

    def set_up_planner(
        self, state_dict: dict[str, Any], metadata: Metadata | None = None, is_coordinator: bool = False
    ) -> None:
        """Take the pieces as they are: torch's own knows tensors alone."""
        self.state_dict = self.original_state_dict = state_dict
        self.metadata, self.is_coordinator = metadata, is_coordinator

    def lookup_tensor(self, index: MetadataIndex) -> Tensor:
        """Give a block's memory, to be filled."""
        block: Tensor = self.state_dict[index.fqn].__get_tensor_shard__(index)
        return block
