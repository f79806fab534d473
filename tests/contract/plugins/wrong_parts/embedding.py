"""Embeddings."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from transom.transformer.collectives import (
    Ranks,
    copy_to_ranks,
    gather_features,
    gather_sequence,
    scatter_sequence,
    sum_over_ranks,
)


class Right(nn.Module):
    def __init__(self, num_embeddings, embedding_dim, /, *, config, init_method, tp_group):
        super().__init__()
        self.weight = nn.Parameter(
            torch.empty(num_embeddings, embedding_dim, dtype=getattr(torch, config.params_dtype))
        )
        self.init_method = init_method
        self.reset_parameters()

    def reset_parameters(self):
        if not self.weight.is_meta:
            self.init_method(self.weight)

    def forward(self, ids, /):
        return F.embedding(ids, self.weight)


class PaddingRow(Right):
    """Takes id 0 for padding, whose row gets no gradient."""

    def forward(self, ids, /):
        return F.embedding(ids, self.weight, padding_idx=0)


class ScaledByFrequency(Right):
    def forward(self, ids, /):
        return F.embedding(ids, self.weight, scale_grad_by_freq=True)


class ScaledByWidth(Right):
    def forward(self, ids, /):
        return super().forward(ids) * self.weight.shape[1] ** 0.5


class RowsOnly(Right):
    def forward(self, ids, /):
        b, s = ids.shape
        return super().forward(ids).view(b, s, -1)


class InitIgnored(Right):
    def reset_parameters(self):
        nn.init.normal_(self.weight)


class ParallelRight(nn.Module):
    def __init__(self, num_embeddings, embedding_dim, /, *, config, init_method, tp_group):
        super().__init__()
        self.ranks = Ranks.of(tp_group)
        self.sequence = config.sequence_parallel
        whole = torch.empty(num_embeddings, embedding_dim, dtype=getattr(torch, config.params_dtype))
        self.weight = nn.Parameter(self.first_values(whole, init_method))

    def first_values(self, whole, init_method):
        init_method(whole)
        return self.ranks.part(whole, 0).clone()

    def forward(self, ids, /):
        if self.ranks.size == 1:
            return F.embedding(ids, self.weight)
        rows = ids - self.ranks.rank * len(self.weight)
        elsewhere = (rows < 0) | (rows >= len(self.weight))
        found = F.embedding(rows.masked_fill(elsewhere, 0), self.weight)
        return self.leave(found.masked_fill(elsewhere[..., None], 0.0))

    def leave(self, found):
        return scatter_sequence(found, self.ranks) if self.sequence else sum_over_ranks(found, self.ranks)

    def project(self, hidden, /):
        enter = gather_sequence if self.sequence else copy_to_ranks
        return gather_features(F.linear(enter(hidden, self.ranks), self.weight), self.ranks)


class ParallelUnsummed(ParallelRight):
    def leave(self, found):
        return found


class ParallelSequenceForgotten(ParallelRight):
    def leave(self, found):
        return sum_over_ranks(found, self.ranks)


class ParallelPartsAlike(ParallelRight):
    def first_values(self, whole, init_method):
        part = self.ranks.part(whole, 0).clone()
        init_method(part)
        return part


class ParallelLogitsOfItsPart(ParallelRight):
    def project(self, hidden, /):
        return F.linear(copy_to_ranks(hidden, self.ranks), self.weight)


class ParallelCannotProject(ParallelRight):
    project = None


class ParallelGradientNotSummed(ParallelRight):
    def project(self, hidden, /):
        return gather_features(F.linear(hidden, self.weight), self.ranks)
