"""What a model learns from a sequence of tokens: the next one, or what was cut out of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, final

import torch
from torch import Tensor, nn

from transom.errors import SpecError
from transom.training.sampler import Batch
from transom.training.span_corruption import SpanCorruption

if TYPE_CHECKING:
    from transom.specs.spec import ModelSpec

__all__ = ["FillSpans", "NextToken", "Objective", "check_objective", "objective_of"]


class Objective(Protocol):
    """Turns a batch into losses."""

    def losses(
        self, model: nn.Module, batch: Batch, number: int, device: torch.device, positions: Tensor | None = None
    ) -> Tensor:
        """Compute each learned token's loss.

        Args:
            model: in training or in evaluation mode.
            batch: on the CPU.
            number: of the batch.
            device: of the model.
            positions: of the batch's tokens in their sequences, ``[s]``; `None` = 0 ... s-1.

        Returns:
            ``[b, s]``, nats.
        """
        ...

    def inputs(
        self, batch: Batch, number: int, device: torch.device, positions: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Give what the stages of a pipeline compute the losses from.

        Args:
            batch: on the CPU.
            number: of the batch.
            device: of the model.
            positions: as in `losses`.

        Returns:
            what the first stage starts from, and what every stage is given by name: ``[b, ...]`` each.
        """
        ...

    @property
    def reserved(self) -> int:
        """How many ids at the vocabulary's end it takes for itself."""
        ...


@final
class NextToken:
    """Each token from those before it: ``model(tokens, labels=labels)``, as the slot ``model`` says."""

    reserved = 0

    def losses(
        self, model: nn.Module, batch: Batch, number: int, device: torch.device, positions: Tensor | None = None
    ) -> Tensor:
        """Compute each token's loss ``[b, s]``."""
        tokens, labels = (part.to(device, non_blocking=True) for part in batch)
        losses: Tensor = model(tokens, labels=labels, **({} if positions is None else {"input_pos": positions}))
        return losses

    def inputs(
        self, batch: Batch, number: int, device: torch.device, positions: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Give the tokens; and ``labels``, and ``input_pos`` where there are positions."""
        tokens, labels = (part.to(device, non_blocking=True) for part in batch)
        placed = {} if positions is None else {"input_pos": positions.expand(len(tokens), -1)}  # [s] -> [b, s]
        return tokens, {"labels": labels, **placed}


@final
class FillSpans:
    """What was cut out of a sequence, from the rest of it: for a `transom.slots.model.EncoderDecoder`.

    Args:
        corruption: cuts.
    """

    def __init__(self, corruption: SpanCorruption) -> None:
        self.corruption = corruption

    @property
    def reserved(self) -> int:
        """The sentinels."""
        return self.corruption.sentinels

    def losses(
        self, model: nn.Module, batch: Batch, number: int, device: torch.device, positions: Tensor | None = None
    ) -> Tensor:
        """Compute the loss of each token that is to be written ``[b, s]``; its sequences are whole."""
        read, written, labels = (part.to(device, non_blocking=True) for part in self.corruption(batch[0], number))
        losses: Tensor = model(read, written, None, None, None, lm_labels=labels)
        return losses

    def inputs(
        self, batch: Batch, number: int, device: torch.device, positions: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Give what is read; and what is written, as ``decoder_input_ids`` and ``lm_labels``."""
        read, written, labels = (part.to(device, non_blocking=True) for part in self.corruption(batch[0], number))
        return read, {"decoder_input_ids": written, "lm_labels": labels}


def objective_of(spec: ModelSpec, length: int) -> Objective:
    """Make the objective that a spec names.

    Args:
        spec: its ``train`` section says what is learned.
        length: s, tokens of a training sequence.

    Raises:
        SpecError: sequences are too short to cut anything out, or the vocabulary has no room for sentinels.
    """
    settings = spec.train
    if settings.objective == "next_token":
        return NextToken()
    corruption = SpanCorruption(
        length=length,
        vocab_size=spec.vocab_size,
        noise_density=settings.noise_density,
        mean_span_length=settings.mean_span_length,
        seed=settings.seed,
    )
    return FillSpans(corruption)


def check_objective(spec: ModelSpec, model: nn.Module) -> None:
    """Refuse to teach a model what it cannot learn.

    Args:
        spec: says what is learned.
        model: whole, or a stage of a pipeline.

    Raises:
        SpecError: an encoder-decoder is to learn the next token, or another model to fill spans.
    """
    reads = hasattr(model, "encode") or "encoder_decoder" in _features(model)
    if reads == (spec.train.objective == "span_corruption"):
        return
    kind, right = ("an encoder-decoder", "span_corruption") if reads else ("no encoder-decoder", "next_token")
    raise SpecError(
        f"the model {spec.model!r} is {kind}, and train.objective is {spec.train.objective}.",
        asked_by=f"train.objective in {spec.source}",
        hint=f"train: {{objective: {right}}}",
        path="train.objective",
        file=spec.source,
        line=spec.lines().get(("train", "objective")),
    )


def _features(model: nn.Module) -> frozenset[str]:
    """Give what the card of a planned model declares; of one that was not planned, nothing."""
    planned: Any = getattr(model, "plan", None)
    card = None if planned is None else planned.root.resolution.chosen.card
    return frozenset() if card is None else frozenset(map(str, card.features))
