"""Row linears over several processes."""

from __future__ import annotations

import torch.nn.functional as F
from transom_parallel_linear.linear import RowParallelLinear


class ParallelRight(RowParallelLinear):
    pass


class ParallelUnsummed(RowParallelLinear):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._leave = lambda x, ranks: x


class ParallelBiasOnEveryRank(RowParallelLinear):
    def forward(self, x, /):
        ranks = self.shard.ranks
        product = F.linear(self._enter(x, ranks), self.shard.local(self.weight), self.bias)
        return self._leave(product, ranks), None


class ParallelRaises(RowParallelLinear):
    def forward(self, x, /):
        if self.shard.ranks.size > 1:
            raise RuntimeError("the ranks have drifted apart")
        return super().forward(x)
