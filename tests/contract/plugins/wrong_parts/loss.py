"""Losses."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from transom.transformer.collectives import Ranks, copy_to_ranks, gather_sequence, max_over_ranks, sum_over_ranks


class Right(nn.Module):
    def __init__(self, config, *, request):
        super().__init__()
        self.ignore_index, self.z_loss = request.ignore_index, request.z_loss

    def forward(self, hidden, weight, labels, bias=None, /):
        logits = self.logits(hidden, weight, bias)
        losses = F.cross_entropy(
            logits.flatten(0, 1), labels.flatten(), ignore_index=self.ignore_index, reduction="none"
        )
        return losses.view(labels.shape) + self.penalty(logits, labels != self.ignore_index)

    def logits(self, hidden, weight, bias):
        logits = F.linear(hidden, weight, bias)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def penalty(self, logits, counted):
        return self.z_loss * logits.logsumexp(dim=-1).square() * counted


class BiasForgotten(Right):
    def logits(self, hidden, weight, bias):
        return super().logits(hidden, weight, None)


class PenaltyForgotten(Right):
    def penalty(self, logits, counted):
        return 0.0


class PenaltyOnIgnored(Right):
    def penalty(self, logits, counted):
        return super().penalty(logits, torch.ones_like(counted))


class AlwaysMinus100(Right):
    def __init__(self, config, *, request):
        super().__init__(config, request=request)
        self.ignore_index = -100


class Averaged(Right):
    def forward(self, hidden, weight, labels, bias=None, /):
        return super().forward(hidden, weight, labels, bias).mean()


class Overflows(Right):
    def forward(self, hidden, weight, labels, bias=None, /):
        logits = self.logits(hidden, weight, bias)
        chosen = logits.gather(-1, labels.clamp(min=0)[..., None]).squeeze(-1)
        return logits.exp().sum(dim=-1).log() - chosen


class NarrowResult(Right):
    def forward(self, hidden, weight, labels, bias=None, /):
        return super().forward(hidden, weight, labels, bias).to(hidden.dtype)


class NarrowsFloat64(Right):
    def forward(self, hidden, weight, labels, bias=None, /):
        return super().forward(hidden, weight, labels, bias).float()


class WeightDetached(Right):
    def logits(self, hidden, weight, bias):
        return super().logits(hidden, weight.detach(), bias)


class ParallelRight(Right):
    def __init__(self, config, *, request):
        super().__init__(config, request=request)
        self.sequence = config.sequence_parallel

    def forward(self, hidden, weight, labels, bias=None, /):
        if not hasattr(weight, "to_local"):
            return super().forward(hidden, weight, labels, bias)
        ranks = Ranks.of(weight.device_mesh.get_group())
        logits = F.linear(self.enter(hidden, ranks), weight.to_local(), bias.to_local()).float()
        peak = max_over_ranks(logits.detach().amax(-1), ranks)
        log_z = peak + self.total((logits - peak[..., None]).exp().sum(-1), ranks).log()
        places = labels - ranks.rank * logits.shape[-1]
        elsewhere = (places < 0) | (places >= logits.shape[-1])
        chosen = logits.gather(-1, places.masked_fill(elsewhere, 0)[..., None])[..., 0].masked_fill(elsewhere, 0.0)
        return (log_z - sum_over_ranks(chosen, ranks)).masked_fill(labels == self.ignore_index, 0.0)

    def enter(self, hidden, ranks):
        return gather_sequence(hidden, ranks) if self.sequence else copy_to_ranks(hidden, ranks)

    def total(self, part, ranks):
        return sum_over_ranks(part, ranks)


class ParallelPartitionOfItsPart(ParallelRight):
    def total(self, part, ranks):
        return part


class ParallelGradientNotSummed(ParallelRight):
    def enter(self, hidden, ranks):
        return hidden


class ParallelSequenceForgotten(ParallelRight):
    def enter(self, hidden, ranks):
        return copy_to_ranks(hidden, ranks)


class ParallelWeightDetached(ParallelRight):
    def forward(self, hidden, weight, labels, bias=None, /):
        return super().forward(hidden, weight.detach(), labels, bias)
