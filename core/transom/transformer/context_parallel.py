"""Context parallelism: ranks that share every sequence of a batch, each with some of its tokens.

Everything in a layer but attention acts on tokens one by one. In attention each rank gathers the keys and values of all
tokens, and attends with its own queries; the gradients of keys and values are summed over the ranks and split again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor, nn

from transom.errors import ParallelError
from transom.transformer._mask_chunks import mask_of_chunk
from transom.transformer.attention_mask import AttentionMask
from transom.transformer.collectives import Ranks, gather_sequence
from transom.transformer.sharding import Offset, ShardedModule, ShardedStateDict, sharded_state_of

if TYPE_CHECKING:
    from transom.slots.core_attention import CoreAttention

__all__ = ["ContextParallelAttention", "ContextShare", "attend_in_share"]


@dataclass(frozen=True)
class ContextShare:
    """Which tokens of a sequence one of p ranks has: of 2p chunks of one length, the r-th and the (2p-1-r)-th.

    A causal query sees the more keys the later it is. An early chunk with a late one makes as much work on every rank.

    Args:
        ranks: p of them, this one's number r.

    Source: Dubey et al. 2024 (Llama 3), section 3.3.2.

    Example:
        >>> first, second = (ContextShare(Ranks("", 2, rank)) for rank in range(2))
        >>> first.positions(8).tolist(), second.positions(8).tolist()
        ([0, 1, 6, 7], [2, 3, 4, 5])
    """

    ranks: Ranks

    @property
    def chunks(self) -> tuple[int, int]:
        """The numbers of this rank's chunks, from 0."""
        return self.ranks.rank, 2 * self.ranks.size - 1 - self.ranks.rank

    def of(self, x: Tensor, dim: int = 1) -> Tensor:
        """Take this rank's share of a sequence along ``dim``, of s tokens: s/p of them, in order.

        Raises:
            ParallelError: s is not a multiple of 2p.
        """
        s, pieces = x.shape[dim], 2 * self.ranks.size
        if s % pieces:
            raise ParallelError(
                f"a sequence of {s} tokens cannot be split into {pieces} chunks, two for each of "
                f"{self.ranks.size} context-parallel ranks.",
                hint=f"a length that is a multiple of {pieces}",
                sequence_length=s,
                ranks=self.ranks.size,
            )
        width = s // pieces
        return torch.cat([x.narrow(dim, chunk * width, width) for chunk in self.chunks], dim=dim)

    def positions(self, length: int, device: torch.device | str = "cpu") -> Tensor:
        """Give the positions of this rank's tokens in a sequence of ``length``, integers ``[length / p]``."""
        return self.of(torch.arange(length, device=device), 0)

    def whole(self, own: Tensor) -> Tensor:
        """Put the ranks' shares together in the order of the sequence, ``[b, s/p, f] -> [b, s, f]``, on every rank.

        In the backward pass the ranks' gradients are summed, and each gets its share of the sum.
        """
        size = self.ranks.size
        ranked = gather_sequence(own, self.ranks).chunk(2 * size, dim=1)  # chunks 0, 2p-1, 1, 2p-2 ...
        early, late = ranked[::2], ranked[1::2]
        return torch.cat([*early, *reversed(late)], dim=1)


def attend_in_share(
    core: CoreAttention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: AttentionMask | None,
    share: ContextShare,
    *,
    windowed: bool = False,
) -> Tensor:
    """Attend with a share's queries to the keys of the whole sequence, a chunk at a time.

    A causal chunk reads the keys up to its own last token: with causality aligned bottom-right, it needs no other mask.

    Args:
        core: attends.
        query: ``[b, s/p, n, d]``, of the share.
        key: ``[b, s, g, d]``, of the whole sequence.
        value: ``[b, s, g, dv]``.
        mask: over the whole sequence: of s queries and s keys.
        share: which queries these are.
        windowed: ``core`` has a window of its own.

    Returns:
        ``[b, s/p, n, dv]``.

    Raises:
        ParallelError: queries and keys are not those of a share and its whole.
        MaskError: a field of the mask is for another number of tokens than s.
    """
    t, width = key.shape[1], query.shape[1] // 2
    if t != query.shape[1] * share.ranks.size or query.shape[1] % 2:
        raise ParallelError(
            f"{query.shape[1]} queries are no share of {t} keys over {share.ranks.size} context-parallel ranks.",
            hint=f"two chunks a rank: a sequence of a multiple of {2 * share.ranks.size} tokens",
            queries=query.shape[1],
            keys=t,
            ranks=share.ranks.size,
        )
    whole = AttentionMask() if mask is None else mask
    attended = []
    for chunk, queries in zip(share.chunks, query.chunk(2, dim=1), strict=True):
        seen, end = mask_of_chunk(whole, chunk, width, t, device=key.device, windowed=windowed)
        attended.append(core(queries, key[:, :end], value[:, :end], mask=seen))
    return torch.cat(attended, dim=1)


@final
class ContextParallelAttention(ShardedModule):
    """A core attention whose queries are a rank's share of the sequence, and whose keys and values are gathered.

    It takes the place of the core attention that it is given, under the same names in states.

    Args:
        core: attends; a module that satisfies `transom.slots.core_attention.CoreAttention`.
        ranks: context-parallel ranks, all of which run it together.
        windowed: the core attention has a window of its own.

    Source: Dubey et al. 2024 (Llama 3), section 3.3.2: all-gather of keys and values. They are fewer than the queries
    where heads share them, any mask and any kernel will do, and what is gathered is not kept beyond the layer; a ring
    (Liu et al. 2023) would overlap it with the attention of parts, which not every kernel can put together.
    """

    def __init__(self, core: nn.Module, ranks: Ranks, *, windowed: bool = False) -> None:
        super().__init__()
        self.core = core
        self.share = ContextShare(ranks)
        self.windowed = windowed
        self.register_load_state_dict_pre_hook(_below_core)  # type: ignore[no-untyped-call]

    def forward(self, query: Tensor, key: Tensor, value: Tensor, *, mask: AttentionMask | None = None) -> Tensor:
        """Attend.

        Args:
            query: ``[b, s/p, n, d]``, of this rank's share of the sequence.
            key: ``[b, s/p, g, d]``.
            value: ``[b, s/p, g, dv]``.
            mask: over the whole sequence: of s queries and s keys; `None` = everyone to everyone.

        Returns:
            ``[b, s/p, n, dv]``.
        """
        key, value = self._gathered(key, value)
        return attend_in_share(self.core, query, key, value, mask, self.share, windowed=self.windowed)

    def _gathered(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Put keys and values of all ranks together, in one exchange: ``[b, s/p, g, ...] -> [b, s, g, ...]``."""
        groups, sizes = key.shape[2], [key.shape[3], value.shape[3]]
        whole = self.share.whole(torch.cat([key, value], dim=-1).flatten(2))  # [b, s, g·(d + dv)]
        whole_key, whole_value = torch.unflatten(whole, 2, (groups, -1)).split_with_sizes(sizes, dim=-1)
        return whole_key, whole_value

    def state_dict(self, *args: Any, **options: Any) -> Any:
        """Return the core attention's state, under its own names; arguments as of `torch.nn.Module.state_dict`."""
        return self.core.state_dict(*args, **options)

    def sharded_state_dict(
        self,
        prefix: str = "",
        sharded_offsets: tuple[Offset, ...] = (),
        metadata: Mapping[str, Any] | None = None,
    ) -> ShardedStateDict:
        """Describe the core attention's state, under its own names."""
        return sharded_state_of(self.core, prefix, sharded_offsets, metadata)


def _below_core(module: nn.Module, state: dict[str, Any], prefix: str, *rest: Any) -> None:
    """Let a state of the core attention be loaded into the module below."""
    for name in [name for name in state if name.startswith(prefix)]:
        state[f"{prefix}core.{name.removeprefix(prefix)}"] = state.pop(name)


if TYPE_CHECKING:

    def _is_a_core_attention(module: ContextParallelAttention) -> CoreAttention:
        return module
