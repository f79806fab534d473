"""Biases of attention scores that tell positions: T5's learned buckets and ALiBi's slopes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from transom.errors import ParallelError
from transom.transformer.collectives import Ranks
from transom.transformer.sharding import Offset, ShardedModule, ShardedStateDict, own_sharded_state
from transom.transformer.split_parameter import described, local_tensor, split_parameter

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["RelativePositionBias", "alibi_slopes", "relative_position_buckets"]


@final
class RelativePositionBias(ShardedModule):
    """T5's bias: one learned number for each head and bucket of distances, added to the scores.

    Args:
        num_attention_heads: n, over all ranks; each rank has the numbers of its own heads, n/p of them.
        num_buckets: of distances; half of them for each direction when bidirectional.
        max_distance: in tokens; all that is further away shares the last bucket.
        bidirectional: tell later keys from earlier ones (an encoder); else later keys share the bucket of distance 0.
        init_std: standard deviation of the initial numbers.
        device: of the parameter.
        dtype: of the parameter.
        tp_group: the p tensor-parallel ranks, over which the heads are split; `None` = one process.

    Raises:
        ParallelError: the heads cannot be split over the ranks.

    Source: Raffel et al. 2020.

    Example:
        >>> bias = RelativePositionBias(4, bidirectional=False)
        >>> bias(3, 5).shape
        torch.Size([1, 4, 3, 5])
    """

    def __init__(
        self,
        num_attention_heads: int,
        *,
        num_buckets: int = 32,
        max_distance: int = 128,
        bidirectional: bool = True,
        init_std: float = 0.02,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        tp_group: ProcessGroup | None = None,
    ) -> None:
        super().__init__()
        self.ranks = Ranks.of(tp_group)
        self.num_attention_heads = num_attention_heads
        self.num_buckets = num_buckets
        self.max_distance = max_distance
        self.bidirectional = bidirectional
        self.init_std = init_std
        own = _heads_of_rank(num_attention_heads, self.ranks)
        numbers = torch.empty(num_buckets, own, device=device, dtype=dtype)
        self.relative_attention_bias = nn.Embedding(num_buckets, own, _weight=numbers)
        self.relative_attention_bias.weight = split_parameter(numbers, 1, tp_group)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the initial numbers of all heads, and keep this rank's: those that one process would have."""
        own = local_tensor(self.relative_attention_bias.weight, self.ranks)
        if not own.is_meta:
            whole = own.new_empty(self.num_buckets, self.num_attention_heads)
            with torch.no_grad():
                own.copy_(self.ranks.part(nn.init.normal_(whole, std=self.init_std), 1))

    def forward(
        self, s: int, t: int, *, query_positions: Tensor | None = None, key_positions: Tensor | None = None
    ) -> Tensor:
        """Make the bias of s queries and t keys, aligned bottom-right.

        Args:
            s: number of queries.
            t: number of keys.
            query_positions: integers ``[s]`` or ``[b, s]``, where they are not t-s ... t-1.
            key_positions: integers ``[t]`` or ``[b, t]``, where they are not 0 ... t-1.

        Returns:
            ``[b or 1, n/p, s, t]``, for `AttentionMask.bias`.
        """
        numbers = local_tensor(self.relative_attention_bias.weight, self.ranks)
        queries = torch.arange(t - s, t, device=numbers.device) if query_positions is None else query_positions
        keys = torch.arange(t, device=numbers.device) if key_positions is None else key_positions
        distance = keys[..., None, :] - queries[..., None]  # [(b,) s, t]
        buckets = relative_position_buckets(
            distance, num_buckets=self.num_buckets, max_distance=self.max_distance, bidirectional=self.bidirectional
        )
        return F.embedding(buckets.view(-1, s, t), numbers).permute(0, 3, 1, 2)  # [b, s, t, n] -> [b, n, s, t]

    def sharded_state_dict(
        self,
        prefix: str = "",
        sharded_offsets: tuple[Offset, ...] = (),
        metadata: Mapping[str, Any] | None = None,
    ) -> ShardedStateDict:
        """Describe the numbers of this rank's heads, as `transom.transformer.sharding` does."""
        if self.ranks.size == 1:
            return own_sharded_state(self, prefix, sharded_offsets, metadata)
        key, weight = f"{prefix}relative_attention_bias.weight", self.relative_attention_bias.weight
        return {key: described(key, weight, 1, self.ranks, sharded_offsets, metadata)}


def _heads_of_rank(heads: int, ranks: Ranks) -> int:
    if heads % ranks.size:
        raise ParallelError(
            f"position biases of {heads} heads cannot be split over {ranks.size} tensor-parallel ranks.",
            hint="choose a tensor_model_parallel_size that divides num_attention_heads",
            heads=heads,
            ranks=ranks.size,
        )
    return heads // ranks.size


def relative_position_buckets(distance: Tensor, *, num_buckets: int, max_distance: int, bidirectional: bool) -> Tensor:
    """Sort distances into buckets: small ones each into their own, larger ones logarithmically up to `max_distance`.

    Args:
        distance: integers, key position - query position.
        num_buckets: in all.
        max_distance: from which on all share the last bucket.
        bidirectional: half of the buckets are for keys after the query.

    Returns:
        integers from 0 to num_buckets - 1, of the same shape.

    Source: Raffel et al. 2020, section 2.1, and the published T5 models, whose logarithm is rounded down in float32.

    Example:
        >>> distance = torch.tensor([-200, -3, 0, 3])
        >>> relative_position_buckets(distance, num_buckets=32, max_distance=128, bidirectional=True)
        tensor([15,  3,  0, 19])
    """
    if bidirectional:
        num_buckets //= 2
        first, away = (distance > 0) * num_buckets, distance.abs()
    else:
        first, away = torch.zeros_like(distance), (-distance).clamp(min=0)
    exact = num_buckets // 2
    share = (away.clamp(min=1).float() / exact).log() / math.log(max_distance / exact)
    coarse = (exact + (share * (num_buckets - exact)).long()).clamp(max=num_buckets - 1)
    return first + torch.where(away < exact, away, coarse)


def alibi_slopes(num_attention_heads: int, *, device: torch.device | None = None) -> Tensor:
    """Compute ALiBi's slopes: a geometric series over the heads, from which the bias falls with distance.

    Args:
        num_attention_heads: n; where it is no power of two, the rest is filled from the series of twice as many.
        device: of the result.

    Returns:
        float32 ``[n]``, for `AttentionMask.alibi_slopes`.

    Source: Press et al. 2022, section 3, and the published code for other numbers of heads.

    Example:
        >>> alibi_slopes(4)
        tensor([0.2500, 0.0625, 0.0156, 0.0039])
    """
    power = 2 ** math.floor(math.log2(num_attention_heads))
    slopes = [2 ** (-8 * (i + 1) / power) for i in range(power)]
    between = [2 ** (-4 * (2 * i + 1) / power) for i in range(num_attention_heads - power)]
    return torch.tensor(slopes + between, dtype=torch.float32, device=device)
