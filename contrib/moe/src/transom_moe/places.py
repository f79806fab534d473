"""Where the experts are, and how tokens come to them and back.

The ranks are those that share a layer's weights. Which place is right follows from two things: whether each rank has
some of the experts whole or a part of each, and whether the ranks see the same tokens or, under sequence parallelism,
each its part of the sequence.

===================== ================================ =====================================
experts               the same tokens on every rank    each rank its part of the sequence
===================== ================================ =====================================
all here, or split    `AllHere`                        `WholeSequence`: put together before
some on each rank     `OwnShare`: sums are exchanged   `Exchanged`: tokens are
===================== ================================ =====================================
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, cast, final

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed._functional_collectives import all_to_all_single, all_to_all_single_autograd
from transom.transformer.collectives import Ranks, copy_to_ranks, gather_features, scatter_features, sum_over_ranks

from transom_moe.order import Order

if TYPE_CHECKING:
    from transom_moe.experts import Experts

__all__ = ["AllHere", "Exchanged", "OwnShare", "Place", "WholeSequence", "place_of"]


class Place(Protocol):
    """What a mixture leaves to where its experts are."""

    def enter(self, x: Tensor) -> Tensor:
        """Give the tokens that this rank routes, ``[b, s, h]``, of those that it has."""
        ...

    def lend(self, x: Tensor) -> Tensor:
        """Hand tokens, or their weights, to the experts."""
        ...

    def compute(self, experts: Experts, rows: Tensor, counts: Tensor) -> Tensor:
        """Compute rows ``[n, h]``, sorted by expert, ``counts [E]`` of each; what others compute is 0."""
        ...

    def leave(self, x: Tensor) -> Tensor:
        """Give the outputs of the tokens that this rank has."""
        ...


@final
class AllHere:
    """Every expert is here, or a part of it that exchanges what it must by itself."""

    def enter(self, x: Tensor) -> Tensor:
        """Route what is here."""
        return x

    def lend(self, x: Tensor) -> Tensor:
        """Hand it on."""
        return x

    def compute(self, experts: Experts, rows: Tensor, counts: Tensor) -> Tensor:
        """Compute all."""
        computed: Tensor = experts(rows, counts)
        return computed

    def leave(self, x: Tensor) -> Tensor:
        """Give it back."""
        return x


@final
@dataclass(frozen=True)
class WholeSequence:
    """Each expert is split over ranks that have parts of the sequence: every rank routes the whole of it.

    Args:
        ranks: among whom.
    """

    ranks: Ranks

    def enter(self, x: Tensor) -> Tensor:
        """Put the sequence together; backward keeps this rank's part, since every rank computes all gradients."""
        return gather_features(x.transpose(-1, -2), self.ranks).transpose(-1, -2)

    def lend(self, x: Tensor) -> Tensor:
        """Hand it on."""
        return x

    def compute(self, experts: Experts, rows: Tensor, counts: Tensor) -> Tensor:
        """Compute all."""
        return AllHere().compute(experts, rows, counts)

    def leave(self, x: Tensor) -> Tensor:
        """Keep this rank's part of the sequence."""
        return scatter_features(x.transpose(-1, -2), self.ranks).transpose(-1, -2)


@final
@dataclass(frozen=True)
class OwnShare:
    """Each rank has some of the experts and all of the tokens: it computes its experts', and the ranks' sums add up.

    Args:
        ranks: among whom.
    """

    ranks: Ranks

    def enter(self, x: Tensor) -> Tensor:
        """Route what is here, as every rank does."""
        return x

    def lend(self, x: Tensor) -> Tensor:
        """Hand it to all ranks' experts, whose gradients add up."""
        return copy_to_ranks(x, self.ranks)

    def compute(self, experts: Experts, rows: Tensor, counts: Tensor) -> Tensor:
        """Compute the rows of this rank's experts."""
        own = self.ranks.part(counts, 0)
        before = int(counts[: self.ranks.rank * len(own)].sum())
        count = int(own.sum())
        computed = experts(rows.narrow(0, before, count), own)
        return F.pad(computed, (0, 0, before, len(rows) - before - count))

    def leave(self, x: Tensor) -> Tensor:
        """Add up."""
        return sum_over_ranks(x, self.ranks)


@final
@dataclass(frozen=True)
class Exchanged:
    """Each rank has some of the experts and some of the tokens: each token is sent to its experts, and comes back.

    Args:
        ranks: among whom.
    """

    ranks: Ranks

    def enter(self, x: Tensor) -> Tensor:
        """Route what is here."""
        return x

    def lend(self, x: Tensor) -> Tensor:
        """Hand it on: what is sent carries its gradient back."""
        return x

    def compute(self, experts: Experts, rows: Tensor, counts: Tensor) -> Tensor:
        """Send rows away, compute those that come, and send them back."""
        size = self.ranks.size
        to = counts.view(size, -1)  # [p, E / p]: of each rank's experts
        come = _waited(all_to_all_single(to, None, None, self._group)).view(size, -1)  # from each rank
        sent, received = to.sum(1).tolist(), come.sum(1).tolist()
        here = self._exchange(rows, received, sent)
        # They come by rank and, within one, by expert.
        number = torch.arange(come.shape[1], device=rows.device).repeat(size).repeat_interleave(come.flatten())
        order = Order.of(number, come.shape[1])
        computed = order.unsorted(experts(order.sorted(here), order.counts))
        return self._exchange(computed, sent, received)

    @property
    def _group(self) -> Any:
        """The group by its name, which torch takes for it without saying so in all of its versions."""
        return self.ranks.name

    def _exchange(self, rows: Tensor, received: list[int], sent: list[int]) -> Tensor:
        return _waited(all_to_all_single_autograd(rows.contiguous(), received, sent, self._group))

    def leave(self, x: Tensor) -> Tensor:
        """Give it back."""
        return x


def place_of(ranks: Ranks, *, expert_parallel: bool, sequence_parallel: bool) -> Place:
    """Choose.

    Args:
        ranks: that share the layer.
        expert_parallel: each has some of the experts.
        sequence_parallel: each has its part of the sequence.

    Example:
        >>> place_of(Ranks("tp", 2, 0), expert_parallel=True, sequence_parallel=False)
        OwnShare(ranks=Ranks(name='tp', size=2, rank=0))
    """
    if ranks.size == 1:
        return AllHere()
    if expert_parallel:
        return Exchanged(ranks) if sequence_parallel else OwnShare(ranks)
    return WholeSequence(ranks) if sequence_parallel else AllHere()


def _waited(x: Tensor) -> Tensor:
    """Give what a collective gave, once it is there."""
    wait = getattr(x, "wait", None)
    return x if wait is None else cast(Tensor, wait())
