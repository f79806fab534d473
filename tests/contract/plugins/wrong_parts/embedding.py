"""Embeddings."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


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
