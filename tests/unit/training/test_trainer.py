from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transom.specs.train_spec import TrainSpec
from transom.training.corpus import Split
from transom.training.sampler import validation_batches
from transom.training.schedule import learning_rate
from transom.training.token_sequence import TokenSequence
from transom.training.trainer import Trainer
from transom.transformer.auxiliary_loss import AuxiliaryLoss, auxiliary_losses


class Bigram(nn.Module):
    """A table of logits; dropout makes training mode visible."""

    def __init__(self, dropout=0.0):
        super().__init__()
        self.table = nn.Parameter(torch.linspace(-1, 1, 49).reshape(7, 7))
        self.dropout = nn.Dropout(dropout)
        self.dtypes = []

    def forward(self, tokens, *, labels):
        logits = F.one_hot(tokens, 7).float() @ self.dropout(self.table)
        self.dtypes.append(logits.dtype)
        return F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), reduction="none").view_as(labels)


def _split():
    ids = np.random.default_rng(0).integers(0, 7, 200)
    return Split(TokenSequence([ids[:150]]), TokenSequence([ids[150:]]))


def _trainer(model=None, **settings):
    return Trainer(model or Bigram(), TrainSpec(warmup_steps=0, **settings), _split(), sequence_length=5)


def test_train_step_descends_the_mean_loss_of_its_tokens():
    trainer = _trainer(batch_size=3, weight_decay=0.0, grad_clip=0.0, learning_rate=0.1, steps=9)
    tokens, labels = trainer.sampler.batch(0)
    table = trainer.model.table.detach().clone().requires_grad_()
    loss = F.cross_entropy(table[tokens].flatten(0, 1), labels.flatten())
    loss.backward()
    result = trainer.train_step()
    assert float(result.loss) == pytest.approx(loss.item())
    assert float(result.gradient_norm) == pytest.approx(table.grad.norm().item())
    assert result.learning_rate == learning_rate(0, trainer.settings)
    # AdamW's first step is the rate times the gradient's sign, but for eps.
    expected = table - result.learning_rate * table.grad / (table.grad.abs() + 1e-8)
    assert torch.allclose(trainer.model.table, expected, atol=1e-6)
    assert trainer.step == 1


def test_accumulation_is_one_large_batch():
    whole, parts = _trainer(batch_size=6), _trainer(batch_size=2, accumulate=3)
    assert whole.tokens_per_step == parts.tokens_per_step == 30
    for _ in range(3):
        one, other = whole.train_step(), parts.train_step()
        assert float(one.loss) == pytest.approx(float(other.loss))
        assert float(one.gradient_norm) == pytest.approx(float(other.gradient_norm), rel=1e-5)
    assert torch.allclose(whole.model.table, parts.model.table, atol=1e-6)


def test_gradients_are_clipped_and_their_norm_is_that_before():
    loose, tight = _trainer(grad_clip=0.0), _trainer(grad_clip=1e-3)
    norms = [float(t.train_step().gradient_norm) for t in (loose, tight)]
    assert norms[0] == pytest.approx(norms[1])
    assert norms[0] > 1e-3
    first = [t.optimizer.state[t.model.table]["exp_avg"].norm().item() for t in (loose, tight)]
    assert first[0] == pytest.approx(0.1 * norms[0], rel=1e-4)
    assert first[1] == pytest.approx(0.1 * 1e-3, rel=1e-2)


def test_learning_rate_follows_the_schedule():
    trainer = _trainer(steps=4)
    rates = [trainer.train_step().learning_rate for _ in range(4)]
    assert rates == [learning_rate(step, trainer.settings) for step in range(4)]
    assert {group["lr"] for group in trainer.optimizer.param_groups} == {rates[-1]}


def test_each_step_takes_the_next_sequences():
    seen = []
    trainer = _trainer(batch_size=2, accumulate=2)
    forward = trainer.model.forward
    trainer.model.forward = lambda tokens, labels: (seen.append(tokens), forward(tokens, labels=labels))[1]
    trainer.train_step()
    trainer.train_step()
    assert all(torch.equal(tokens, trainer.sampler.batch(i)[0]) for i, tokens in enumerate(seen))
    assert len(seen) == 4


def test_validate_is_the_mean_over_tokens_without_dropout_or_gradients():
    trainer = _trainer(Bigram(dropout=0.5), batch_size=4, eval_batches=2)
    losses = []
    for tokens, labels in validation_batches(trainer.split.validation, 5, 4, 2):
        losses += [
            -math.log(p)
            for p in trainer.model.table[tokens]
            .softmax(-1)
            .flatten(0, 1)[range(labels.numel()), labels.flatten()]
            .tolist()
        ]
    state = torch.get_rng_state()
    assert trainer.validate() == pytest.approx(sum(losses) / len(losses), rel=1e-6)
    assert len(losses) == 40
    assert torch.equal(torch.get_rng_state(), state)
    assert trainer.model.table.grad is None
    trainer.train_step()
    assert trainer.model.training


def test_bfloat16_is_autocast_and_leaves_parameters_alone():
    trainer = _trainer(precision="bfloat16")
    trainer.train_step()
    trainer.validate()
    assert set(trainer.model.dtypes) == {torch.bfloat16}
    assert trainer.model.table.dtype == torch.float32
    assert {v.dtype for v in trainer.optimizer.state[trainer.model.table].values()} == {torch.float32}


def test_bigram_loss_is_measured_where_validate_measures():
    trainer = _trainer(batch_size=4, eval_batches=2)
    pairs = trainer.split.train.read(0, 150)
    counts = np.ones((7, 7))
    np.add.at(counts, (pairs[:-1], pairs[1:]), 1)
    with torch.no_grad():
        # A table of these logits is the bigram model, but that the last training token has no successor.
        trainer.model.table.copy_(
            torch.from_numpy(np.log(counts / (np.bincount(pairs[:-1], minlength=7) + 7)[:, None]))
        )
    assert trainer.bigram_loss(7) == pytest.approx(trainer.validate(), rel=1e-6)


class Drifting(nn.Module):
    """A table of logits that adds their mean square to the loss."""

    def __init__(self, attached):
        super().__init__()
        self.bigram, self.attached = Bigram(), attached
        self.drift = AuxiliaryLoss("drift", 0.5)

    def forward(self, tokens, *, labels):
        losses = self.bigram(tokens, labels=labels)
        drift = self.bigram.table[tokens].square().mean()
        return self.drift(losses, drift) if self.attached else losses + 0.5 * drift


@pytest.mark.parametrize("accumulate", [1, 3])
def test_losses_that_modules_attach_count_as_summands(accumulate):
    norms = []
    for attached in (False, True):
        trainer = _trainer(Drifting(attached), batch_size=2, accumulate=accumulate)
        norms.append(float(trainer.train_step().gradient_norm))
    assert norms[1] == pytest.approx(norms[0])
    assert set(auxiliary_losses(trainer.model)) == {"drift"}
