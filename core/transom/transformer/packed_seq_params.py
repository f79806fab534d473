"""Several sequences in one row, as callers of a whole model say it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

__all__ = ["PackedSeqParams", "packed_position_ids"]


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class PackedSeqParams:
    """Where the sequences of a row (b = 1) begin and end: sequence i is at the tokens ``[i] ... [i + 1] - 1``.

    Of an encoder-decoder, sequence i of the decoder (q) reads sequence i of the encoder (kv).

    Args:
        cu_seqlens_q: integers ``[m + 1]``, from 0: cumulative lengths of what asks.
        cu_seqlens_kv: integers ``[m + 1]``: of what is read.
        max_seqlen_q: length of the longest, where known.
        max_seqlen_kv: likewise.
    """

    cu_seqlens_q: Tensor
    cu_seqlens_kv: Tensor
    max_seqlen_q: int | None = None
    max_seqlen_kv: int | None = None


def packed_position_ids(cumulative: Tensor, length: int) -> Tensor:
    """Count positions within each sequence of a packed row.

    Args:
        cumulative: integers ``[m + 1]``, as in `PackedSeqParams`.
        length: s, tokens in the row; those beyond the last sequence count from 0 too.

    Returns:
        integers ``[s]``.

    Example:
        >>> packed_position_ids(torch.tensor([0, 2, 5]), 6)
        tensor([0, 1, 0, 1, 2, 0])
    """
    tokens = torch.arange(length, device=cumulative.device)
    return tokens - cumulative[torch.searchsorted(cumulative.contiguous(), tokens, right=True) - 1]
