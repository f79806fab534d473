"""The steps of training: forward, backward, clip, update; and the validation loss."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

import torch
from torch import Tensor, nn

from transom.training.bigram import bigram_loss
from transom.training.objective import NextToken, Objective
from transom.training.optimizer import make_optimizer
from transom.training.sampler import Batch, SequenceSampler, validation_batches
from transom.training.schedule import learning_rate
from transom.training.team import Alone

if TYPE_CHECKING:
    from transom.specs.train_spec import TrainSpec
    from transom.training.corpus import Split
    from transom.training.team import Team

__all__ = ["StepResult", "Trainer"]

_VALIDATION = -1
"""The number of every validation batch: looks are alike."""


@dataclass(frozen=True)
class StepResult:
    """What one step of the optimizer was like, before its update.

    Args:
        loss: mean over the step's tokens, nats; a scalar on the model's device.
        gradient_norm: of all gradients together, before clipping; a scalar on the model's device.
        learning_rate: of the step.
    """

    loss: Tensor
    gradient_norm: Tensor
    learning_rate: float


@final
class Trainer:
    """Trains a model on a corpus. Its whole state is the model's, the optimizer's, the random generators' and `step`.

    Args:
        model: learns what the objective says.
        settings: the spec's ``train`` section.
        split: training and validation tokens.
        sequence_length: s, tokens of a sequence.
        device: where the model is.
        team: who trains it, and how they share the work.
        objective: what it learns; `None` = the next token.
    """

    def __init__(
        self,
        model: nn.Module,
        settings: TrainSpec,
        split: Split,
        *,
        sequence_length: int,
        device: torch.device | str = "cpu",
        team: Team | None = None,
        objective: Objective | None = None,
    ) -> None:
        self.model, self.settings, self.split = model, settings, split
        self.objective: Objective = objective or NextToken()
        self.team: Team = team or Alone()
        self.team.take_over(model, settings)
        self.device = torch.device(device)
        self.passes = self.team.passes(model, self.objective, settings, sequence_length, self.device)
        self.optimizer = make_optimizer(model, settings)
        self.sampler = SequenceSampler(split.train, sequence_length, settings.batch_size, settings.seed)
        self.step = 0

    @property
    def tokens_per_step(self) -> int:
        """Tokens that one step of the optimizer sees."""
        return self.sequences_per_step * self.sampler.length

    @property
    def sequences_per_step(self) -> int:
        """Sequences that one step of the optimizer sees."""
        return self.settings.batch_size * self.settings.accumulate

    def train_step(self) -> StepResult:
        """Do one step of the optimizer."""
        self.model.train()
        rate = learning_rate(self.step, self.settings)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss = self._accumulate_gradients()
        norm = self.team.clip(self.model, self.settings.grad_clip or math.inf)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        return StepResult(loss, norm, rate)

    def validate(self) -> float:
        """Measure the mean loss of the validation sequences, in nats, without dropout."""
        self.model.eval()
        with torch.no_grad():
            losses = torch.cat([self._own_losses(batch) for batch in self._validation_batches()]).double()
        total, count = self.team.total(torch.stack([losses.sum(), losses.new_tensor(len(losses))]))
        return float(total / count)

    def bigram_loss(self, vocab_size: int) -> float | None:
        """Measure what a bigram model loses on the sequences of `validate`.

        Returns:
            nats; `None` when the corpus is too large, or the model learns something else than the next token.
        """
        if not isinstance(self.objective, NextToken):
            return None
        return bigram_loss(self.split.train, self._validation_batches(), vocab_size)

    def _accumulate_gradients(self) -> Tensor:
        total = torch.zeros((), device=self.device)
        for i in range(self.settings.accumulate):
            number = self.step * self.settings.accumulate + i
            batch = self.team.share(self.sampler.batch(number))
            total += self.passes.train(batch, number, self.settings.accumulate)
        return self.team.mean(total)

    def _own_losses(self, batch: Batch) -> Tensor:
        """Give the losses of this one's share of a batch, ``[tokens]``."""
        tokens, labels = batch
        # Others wait for those who have none: the first sequence fills the batch up, and is not counted again.
        missing = self.team.rows(len(tokens), self.settings.batch_size) - len(tokens)
        filled = _filled_up(tokens, missing), _filled_up(labels, missing)
        counted = torch.arange(len(tokens) + missing) < len(tokens)
        losses = self.passes.losses(self.team.share(filled), _VALIDATION)
        if losses is None:
            return torch.empty(0, device=self.device)
        kept, _ = self.team.share((counted[:, None].expand(-1, self.sampler.length),) * 2)
        return losses[kept[:, 0].to(losses.device)].flatten()

    def _validation_batches(self) -> list[Batch]:
        settings = self.settings
        batches = validation_batches(
            self.split.validation, self.sampler.length, settings.batch_size, settings.eval_batches
        )
        return list(batches)


def _filled_up(part: Tensor, missing: int) -> Tensor:
    return torch.cat([part, part[:1].expand(missing, -1)]) if missing else part
