"""The loss slot: hidden states, output weight and labels to token losses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from transom.slots.request import Request
from transom.slots.slot import Slot

if TYPE_CHECKING:
    from torch import Tensor

    from transom.transformer.transformer_config import TransformerConfig

__all__ = ["LOSS", "Loss", "LossBuilder", "LossRequest"]


@dataclass(frozen=True, kw_only=True)
class LossRequest(Request):
    """What a loss must serve.

    Args:
        vocab_size: v, over all ranks.
        ignore_index: labels with this value cost nothing.
        z_loss: adds ``z_loss * logsumexp(logits)²`` to each token's loss (0 = off).
        softcap: logits become ``softcap * tanh(logits / softcap)`` first; `None` = they stay as they are.
    """

    vocab_size: int
    ignore_index: int = -100
    z_loss: float = 0.0
    softcap: float | None = None


class Loss(Protocol):
    """Token cross-entropy in nats; the logits need not be materialised."""

    def forward(self, hidden: Tensor, weight: Tensor, labels: Tensor, bias: Tensor | None = None, /) -> Tensor:
        """Map hidden ``[b, s, h]``, weight ``[v, h]``, labels ``[b, s]`` and bias ``[v]`` to losses ``[b, s]``.

        Losses are at least float32: of bfloat16 and float16 hidden states too, and float64 of float64 ones.

        Where the vocabulary is split over processes, weight and bias are DTensors of which each has its rows, and
        losses are those of all tokens on every process. So are hidden states, unless the sequence is split.
        """
        ...

    def __call__(self, hidden: Tensor, weight: Tensor, labels: Tensor, bias: Tensor | None = None, /) -> Tensor:
        """Run `forward`."""
        ...


class LossBuilder(Protocol):
    """Makes a loss."""

    def __call__(self, config: TransformerConfig, *, request: LossRequest) -> Loss:
        """Make the module."""
        ...


LOSS = Slot(
    name="loss",
    kind="kernel",
    api=(1, 0),
    summary="token cross-entropy from hidden states and the output weight",
    request=LossRequest,
    builder=LossBuilder,
    interface=Loss,
    features={
        "z_loss": "penalises the squared log-partition",
        "softcap": "caps the logits smoothly",
        "tensor_parallel": "the vocabulary is split over several processes",
        "sequence_parallel": "the hidden states are split along the sequence",
    },
    settings={"z_loss": "z_loss: 0.0", "softcap": "final_logit_softcapping"},
    default="cross_entropy",
)
