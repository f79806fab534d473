"""What is told to a kernel beside queries, keys and values."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

__all__ = ["Call", "Forward"]


class Call(NamedTuple):
    """What is told to a kernel beside queries, keys and values.

    Args:
        starts: int32 ``[m + 1]``: where each of m packed sequences of queries begins; `None` = rows of a batch.
        key_starts: the same for keys.
        longest: no packed sequence has more queries.
        longest_keys: no packed sequence has more keys.
        used: int32 ``[b]``: how many keys of each row are in use, the last query at the last of them.
        table: int32 ``[b, m]``: which pages ``[size, g, d]`` of keys and values hold those of each row; `None` = they
            lie row by row.
        slopes: float32 ``[n]``, of ALiBi.
        scale: multiplies the scores.
        causal: aligned bottom-right.
        left: how many keys before its own a query sees; -1 = all.
        right: how many keys after its own.
        softcap: of the scores; 0 = none.
        dropout: of the weights.
        deterministic: the backward pass gives the same bits for the same inputs.
    """

    starts: Tensor | None
    key_starts: Tensor | None
    longest: int
    longest_keys: int
    used: Tensor | None
    table: Tensor | None
    slopes: Tensor | None
    scale: float
    causal: bool
    left: int
    right: int
    softcap: float
    dropout: float
    deterministic: bool


class Forward(NamedTuple):
    """What a kernel gives.

    Args:
        out: ``[b, s, n, dv]``, or ``[tokens, n, dv]`` of packed sequences.
        lse: float32 ``[b, n, s]`` or ``[n, tokens]``: logarithm of the softmax's denominator.
        random_state: int64 ``[2]``, from which the backward pass drops the same weights.
    """

    out: Tensor
    lse: Tensor
    random_state: Tensor | None = None
