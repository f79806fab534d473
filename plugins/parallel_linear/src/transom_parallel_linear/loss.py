"""Token cross-entropy over a vocabulary that is split over tensor-parallel processes."""

from __future__ import annotations

from typing import TYPE_CHECKING, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transom.transformer.collectives import Ranks, copy_to_ranks, gather_sequence, max_over_ranks, sum_over_ranks

if TYPE_CHECKING:
    from transom import TransformerConfig
    from transom.slots.loss import Loss, LossBuilder, LossRequest

__all__ = ["VocabParallelCrossEntropy"]


@final
class VocabParallelCrossEntropy(nn.Module):
    """``logsumexp(logits) - logits[label]`` of every token, of which each rank makes its own part of the logits.

    The ranks exchange three numbers a token, never the logits: the largest logit, the sum of exponentials, and the
    label's logit. Logits are made in the hidden states' dtype and everything after them in float32 (float64 for
    float64). The ranks are those that the output weight is split over, so that a plain weight is one process's.

    Args:
        config: ``sequence_parallel``.
        request: ``ignore_index``, ``z_loss`` and ``softcap``.

    Source: Shoeybi et al. 2019, Megatron-LM, section 3; z-loss: Chowdhery et al. 2022 (PaLM), section 5.

    Example:
        >>> from transom import BuildContext, TransformerConfig
        >>> from transom.slots.loss import LossRequest
        >>> config = TransformerConfig(num_layers=1, hidden_size=2, num_attention_heads=1)
        >>> loss = VocabParallelCrossEntropy(config, request=LossRequest(context=BuildContext(), vocab_size=8))
        >>> loss(torch.zeros(1, 2, 2), torch.randn(8, 2), torch.tensor([[3, -100]]))
        tensor([[2.0794, 0.0000]])
    """

    def __init__(self, config: TransformerConfig, *, request: LossRequest) -> None:
        super().__init__()
        self.ignore_index, self.z_loss, self.softcap = request.ignore_index, request.z_loss, request.softcap
        self.sequence_parallel = config.sequence_parallel

    def forward(self, hidden: Tensor, weight: Tensor, labels: Tensor, bias: Tensor | None = None, /) -> Tensor:
        """Compute each token's loss.

        Args:
            hidden: ``[b, s, h]``, the same on every rank; with sequence parallelism this rank's ``[b, s/p, h]``.
            weight: ``[v, h]``, as a DTensor whose rows are split over the ranks.
            labels: integer ids ``[b, s]``, the same on every rank; those that are ``ignore_index`` cost nothing.
            bias: ``[v]``, split as the weight is, or `None`.

        Returns:
            ``[b, s]`` in nats, the same on every rank; float32 (float64 for float64 hidden states).
        """
        ranks = Ranks.of(weight.device_mesh.get_group() if isinstance(weight, DTensor) else None)
        logits = self._logits(hidden, _local(weight), None if bias is None else _local(bias), ranks)  # [b, s, v/p]
        ignored = labels == self.ignore_index
        log_partition = _log_sum_exp(logits, ranks)
        losses = log_partition - _label_logits(logits, labels.masked_fill(ignored, 0), ranks)
        if self.z_loss:
            losses = losses + self.z_loss * log_partition.square()
        return losses.masked_fill(ignored, 0.0)

    def _logits(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, ranks: Ranks) -> Tensor:
        if ranks.size > 1:
            hidden = gather_sequence(hidden, ranks) if self.sequence_parallel else copy_to_ranks(hidden, ranks)
        logits = F.linear(hidden, weight, bias)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _log_sum_exp(logits: Tensor, ranks: Ranks) -> Tensor:
    """Map ``[..., v/p]`` to ``[...]``; any peak gives the same result, so that it takes no part in the gradient."""
    if ranks.size == 1:
        return logits.logsumexp(-1)
    peak = max_over_ranks(logits.detach().amax(-1), ranks)
    total = sum_over_ranks((logits - peak.unsqueeze(-1)).exp().sum(-1), ranks)
    return peak + total.log()


def _label_logits(logits: Tensor, labels: Tensor, ranks: Ranks) -> Tensor:
    """Pick the logit of each label: ``[..., v/p]`` to ``[...]``."""
    if ranks.size == 1:
        return logits.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    width = logits.shape[-1]
    places = labels - ranks.rank * width
    elsewhere = (places < 0) | (places >= width)
    found = logits.gather(-1, places.masked_fill(elsewhere, 0).unsqueeze(-1)).squeeze(-1)
    return sum_over_ranks(found.masked_fill(elsewhere, 0.0), ranks)


if TYPE_CHECKING:
    _builder: LossBuilder = VocabParallelCrossEntropy

    def _is_a_loss(module: VocabParallelCrossEntropy) -> Loss:
        return module
