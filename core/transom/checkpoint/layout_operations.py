"""Steps from one layout of weights to another that can be undone: what a `LayoutMap` is made of.

Each operation maps a list of tensors to a list of tensors, and back. Nothing is computed but where numbers go (and, in
`Add`, by how much they are shifted), so forward followed by backward gives the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, final, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "Add",
    "Concat",
    "Fills",
    "Interleave",
    "Operation",
    "Reverse",
    "RotaryPermute",
    "Split",
    "Stack",
    "Transpose",
]


class Operation(Protocol):
    """A step that can be undone: ``backward(forward(tensors))`` are the same tensors."""

    def forward(self, tensors: Sequence[Tensor], /) -> list[Tensor]:
        """Bring tensors from their layout into the one that the map leads to."""
        ...

    def backward(self, tensors: Sequence[Tensor], /) -> list[Tensor]:
        """Undo `forward`."""
        ...


@runtime_checkable
class Fills(Protocol):
    """An operation that can write the one tensor it makes where that belongs, which takes no memory in between."""

    def fill(self, place: Tensor, tensors: Sequence[Tensor], /) -> list[Tensor]:
        """Do as ``[place.copy_(forward(tensors)[0])]`` does."""
        ...


@final
@dataclass(frozen=True)
class Concat:
    """Puts several tensors one after another into one.

    Args:
        parts: how many there are, all of a size; or the size of each along ``dim``.
        dim: along which they are joined.

    Example:
        >>> import torch
        >>> gate, up = torch.zeros(2, 3), torch.ones(2, 3)
        >>> Concat(2).forward([gate, up])[0].shape
        torch.Size([4, 3])
    """

    parts: int | tuple[int, ...]
    dim: int = 0

    def forward(self, tensors: Sequence[Tensor], /) -> list[Tensor]:
        """Join the parts."""
        import torch

        _expect(len(tensors), self.parts if isinstance(self.parts, int) else len(self.parts))
        return [torch.cat(list(tensors), self.dim)]

    def fill(self, place: Tensor, tensors: Sequence[Tensor], /) -> list[Tensor]:
        """Copy each part into its rows of a place."""
        _copy(self.backward([place]), tensors)
        return [place]

    def backward(self, tensors: Sequence[Tensor], /) -> list[Tensor]:
        """Give views of the parts."""
        import torch

        (whole,) = tensors
        return list(torch.split(whole, _sizes(whole.shape[self.dim], self.parts), self.dim))


@final
@dataclass(frozen=True)
class Stack:
    """Puts several tensors of one shape beside one another, along a new dimension.

    Args:
        count: how many there are.
        dim: the new dimension.
    """

    count: int
    dim: int = 0

    def forward(self, tensors: Sequence[Tensor], /) -> list[Tensor]:
        """Stack them."""
        import torch

        _expect(len(tensors), self.count)
        return [torch.stack(list(tensors), self.dim)]

    def fill(self, place: Tensor, tensors: Sequence[Tensor], /) -> list[Tensor]:
        """Copy each tensor into its slice of a place."""
        _copy(self.backward([place]), tensors)
        return [place]

    def backward(self, tensors: Sequence[Tensor], /) -> list[Tensor]:
        """Give views of each."""
        (whole,) = tensors
        _expect(whole.shape[self.dim], self.count)
        return list(whole.unbind(self.dim))


@final
@dataclass(frozen=True)
class Interleave:
    """Joins several tensors group by group: from ``[q q q q]``, ``[k k]`` and ``[v v]`` to ``[q q k v q q k v]``.

    Args:
        groups: number of groups, which divides the first dimension of every tensor.
        shares: how the rows of a group are divided between the tensors, as a ratio: ``(n // g, 1, 1)`` for the queries,
            keys and values of n query heads and g key/value heads.

    Example:
        >>> import torch
        >>> query, key, value = torch.tensor([1, 2, 3, 4]), torch.tensor([5, 6]), torch.tensor([7, 8])
        >>> Interleave(2, (2, 1, 1)).forward([query, key, value])
        [tensor([1, 2, 5, 7, 3, 4, 6, 8])]
    """

    groups: int
    shares: tuple[int, ...]

    def forward(self, tensors: Sequence[Tensor], /) -> list[Tensor]:
        """Join them."""
        import torch

        _expect(len(tensors), len(self.shares))
        grouped = [tensor.reshape(self.groups, -1, *tensor.shape[1:]) for tensor in tensors]
        return [torch.cat(grouped, dim=1).flatten(0, 1)]

    def backward(self, tensors: Sequence[Tensor], /) -> list[Tensor]:
        """Take them apart."""
        (whole,) = tensors
        return [part.flatten(0, 1) for part in self._parts(whole)]

    def fill(self, place: Tensor, tensors: Sequence[Tensor], /) -> list[Tensor]:
        """Copy the rows of each tensor to where they lie in the groups of a place."""
        parts = self._parts(place)
        _expect(len(tensors), len(parts))
        _copy(parts, [tensor.reshape(part.shape) for tensor, part in zip(tensors, parts, strict=True)])
        return [place]

    def _parts(self, whole: Tensor) -> list[Tensor]:
        """Give views of each tensor's rows: ``[g, rows in a group, ...]``."""
        import torch

        grouped = whole.reshape(self.groups, -1, *whole.shape[1:])
        unit = _divided(grouped.shape[1], sum(self.shares))
        return list(torch.split(grouped, [unit * share for share in self.shares], dim=1))


@final
@dataclass(frozen=True)
class Transpose:
    """Swaps two dimensions of every tensor: weights kept ``[in, out]`` become ``[out, in]``.

    Args:
        dim0: one of them.
        dim1: the other.
    """

    dim0: int = 0
    dim1: int = 1

    def forward(self, tensors: Sequence[Tensor], /) -> list[Tensor]:
        """Give transposed views."""
        return [tensor.transpose(self.dim0, self.dim1) for tensor in tensors]

    def backward(self, tensors: Sequence[Tensor], /) -> list[Tensor]:
        """Give transposed views."""
        return self.forward(tensors)


@final
@dataclass(frozen=True)
class RotaryPermute:
    """Reorders the rows of every head from pairs ``x0 y0 x1 y1 ...`` to halves ``x0 x1 ... y0 y1 ...``.

    A model whose RoPE turns component 2i with 2i + 1 computes the same, with the rows of its query and key projections
    reordered, as one whose RoPE turns i with i + d/2.

    Args:
        head_size: rows of a head, d.
        rotary_dim: the first rows of a head that are rotated; `None` = all.
        count: how many of the tensors, the first ones, are queries' and keys'; the others pass. `None` = all are.

    Example:
        >>> import torch
        >>> RotaryPermute(4).forward([torch.tensor([0, 1, 2, 3])])
        [tensor([0, 2, 1, 3])]
    """

    head_size: int
    rotary_dim: int | None = None
    count: int | None = None

    def forward(self, tensors: Sequence[Tensor], /) -> list[Tensor]:
        """From pairs to halves."""
        return self._all(tensors, (-1, 2))

    def backward(self, tensors: Sequence[Tensor], /) -> list[Tensor]:
        """From halves to pairs."""
        return self._all(tensors, (2, -1))

    def _all(self, tensors: Sequence[Tensor], sizes: tuple[int, int]) -> list[Tensor]:
        count = len(tensors) if self.count is None else self.count
        return [*(self._reordered(tensor, sizes) for tensor in tensors[:count]), *tensors[count:]]

    def _reordered(self, tensor: Tensor, sizes: tuple[int, int]) -> Tensor:
        import torch

        heads = tensor.reshape(-1, self.head_size, *tensor.shape[1:])  # [heads · d, ...] -> [heads, d, ...]
        rotated = self.head_size if self.rotary_dim is None else self.rotary_dim
        turned = heads[:, :rotated].reshape(len(heads), *sizes, *tensor.shape[1:]).transpose(1, 2).flatten(1, 2)
        return torch.cat([turned, heads[:, rotated:]], dim=1).flatten(0, 1)


@final
@dataclass(frozen=True)
class Add:
    """Adds a number to every element, as on the way from a norm that stores its scale minus one to one that does not.

    It is undone bit for bit where the sums can be represented; of other sums the last bits are lost. An optimizer's
    moments pass unchanged, since they do not see a constant.

    Args:
        value: what is added.
    """

    value: float

    def forward(self, tensors: Sequence[Tensor], /) -> list[Tensor]:
        """Add it."""
        return [tensor + self.value for tensor in tensors]

    def backward(self, tensors: Sequence[Tensor], /) -> list[Tensor]:
        """Take it away."""
        return [tensor - self.value for tensor in tensors]


@final
@dataclass(frozen=True)
class Reverse:
    """An operation the other way round.

    Args:
        operation: whose ``backward`` is this one's ``forward``.
    """

    operation: Operation

    def forward(self, tensors: Sequence[Tensor], /) -> list[Tensor]:
        """Undo the operation."""
        return self.operation.backward(tensors)

    def backward(self, tensors: Sequence[Tensor], /) -> list[Tensor]:
        """Do the operation."""
        return self.operation.forward(tensors)


def Split(parts: int | tuple[int, ...], dim: int = 0) -> Reverse:  # noqa: N802 - reads like the operations beside it
    """Take one tensor apart into several: `Concat` the other way round.

    Args:
        parts: how many there are, all of a size; or the size of each along ``dim``.
        dim: along which it is split.

    Returns:
        the operation.
    """
    return Reverse(Concat(parts, dim))


def _copy(places: Sequence[Tensor], tensors: Sequence[Tensor]) -> None:
    _expect(len(tensors), len(places))
    for place, tensor in zip(places, tensors, strict=True):
        if place.shape != tensor.shape:
            raise ValueError(f"{list(tensor.shape)} does not fill a place of {list(place.shape)}")
        place.copy_(tensor)


def _sizes(length: int, parts: int | tuple[int, ...]) -> list[int]:
    return [_divided(length, parts)] * parts if isinstance(parts, int) else list(parts)


def _divided(length: int, parts: int) -> int:
    if length % parts:
        raise ValueError(f"{length} rows cannot be divided into {parts} equal parts")
    return length // parts


def _expect(count: int, wanted: int) -> None:
    if count != wanted:
        raise ValueError(f"{wanted} tensors are needed, and there are {count}")


if TYPE_CHECKING:
    _operations: list[Operation] = [
        Concat(2),
        Stack(2),
        Interleave(1, (1, 1)),
        Transpose(),
        RotaryPermute(2),
        Add(1),
        Split(2),
    ]
    _fillers: list[Fills] = [Concat(2), Stack(2), Interleave(1, (1, 1))]
