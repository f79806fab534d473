"""Random numbers where tensor-parallel ranks hold different parts of a tensor.

Two rules make dropout over several ranks mean what it means on one:

- where activations are the same on every rank, every rank drops the same: their generators are in the same state;
- where each rank has another part (heads inside attention; tokens under sequence parallelism), each draws its own.

Sequence parallelism seeds each rank apart for the whole run, and nothing is to do in attention. Without it,
`drawn_apart` derives a seed from the shared generator there, so that nothing else has a state: recomputation and
checkpoints need to know of no further generator.

That `torch.compile(fullgraph=True)` cannot trace, and no other way was found that it could. A compiled graph draws the
seeds of all its random operations from the one generator when it starts: a state that is set in between changes nothing
of them, and numbers that are drawn and dropped, so that ranks differ, are removed. And dropout of weights belongs to
the core attention, whose kernels take no generator. Compile without ``fullgraph``, which leaves the graph here and
comes back to it; or use sequence parallelism, or no dropout of attention weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from transom.transformer.collectives import Ranks

__all__ = ["drawn_apart"]


@contextmanager
def drawn_apart(ranks: Ranks, device: torch.device) -> Iterator[None]:
    """Draw other random numbers than the other ranks; afterwards all generators are in the same state again.

    Args:
        ranks: whose CPU generators are in the same state now.
        device: where the numbers are drawn.

    Example:
        >>> ranks = Ranks("", 2, 0), Ranks("", 2, 1)
        >>> drawn, after = [], []
        >>> for one in ranks:
        ...     _ = torch.manual_seed(0)
        ...     with drawn_apart(one, torch.device("cpu")):
        ...         drawn.append(torch.rand(4))
        ...     after.append(torch.rand(4))
        >>> torch.equal(*drawn), torch.equal(*after)
        (False, True)
    """
    seed = int(torch.randint(2**62, ()))
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed + ranks.rank)
        yield
