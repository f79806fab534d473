"""What is run: one repetition for each contender, which gives what it computed."""

from __future__ import annotations

from collections.abc import Sequence
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.contenders.contender import Contender
from benchmarks.measure import Step
from benchmarks.monolith import Monolith
from benchmarks.monolith_t5 import MonolithT5

__all__ = ["decoding", "inferring", "matrices", "products_of_a_step", "random_ids", "training", "weights_read"]

_optimizers: WeakKeyDictionary[nn.Module, dict[bool, torch.optim.Optimizer]] = WeakKeyDictionary()
"""One of each kind for a model, however it is run: their states are large."""

_AGREED = 8
"""Tokens that must be the same: after more, two nearly equal logits may be rounded apart."""


def random_ids(vocab: int, b: int, s: int, device: str = "cpu") -> Tensor:
    """Draw ids ``[b, s]``, always the same."""
    return torch.randint(0, vocab, (b, s), generator=torch.Generator().manual_seed(0)).to(device)


def inferring(contender: Contender, ids: Tensor) -> Step:
    """Logits (or hidden states) of a batch, without gradients, in evaluation mode."""
    contender.module.eval()

    def step() -> Tensor:
        with torch.inference_mode():
            return contender.logits(ids)

    return step


def training(contender: Contender, ids: Tensor, *, fused: bool = True) -> Step:
    """Loss, gradients and a step of AdamW: torch's fused one, or that which torch takes on a CPU when it is not told.

    The learning rate is 0, which saves no work: weights stay those that were compared.
    """
    loss_of, labels = contender.loss, ids.roll(-1, dims=1)
    assert loss_of is not None
    contender.module.train()
    kinds = _optimizers.setdefault(contender.module, {})
    if fused not in kinds:
        kinds[fused] = torch.optim.AdamW(contender.module.parameters(), lr=0.0, fused=fused or None)
    optimizer = kinds[fused]

    def step() -> Tensor:
        loss = loss_of(ids, labels)
        torch.autograd.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step


def decoding(contender: Contender, prompt: Tensor, count: int) -> Step:
    """Greedy tokens over a cache, the prompt's forward included; compared where rounding decides on few."""
    decode = contender.decoding(prompt, count)
    compares = next(contender.module.parameters()).dtype == torch.float32

    contender.module.eval()

    def step() -> Tensor | None:
        tokens = decode()
        return tokens[:, :_AGREED].double() if compares else None

    return step


def weights_read(contenders: Sequence[Contender], rows: int, times: int = 1) -> Step:
    """Make the bare sequence of matrix products that so many tokens of so many rows cannot do without."""
    weights = matrices(contenders)
    inputs = [(weight.new_ones(rows, weight.shape[1]), weight) for weight in weights]

    def step() -> None:
        with torch.inference_mode():
            for _ in range(times):
                for x, weight in inputs:
                    F.linear(x, weight)

    return step


def products_of_a_step(contenders: Sequence[Contender], rows: int) -> Step:
    """Make the bare sequence of matrix products that a training step of so many tokens cannot do without."""
    weights = matrices(contenders)
    inputs = [
        (weight.new_ones(rows, weight.shape[1]), weight, weight.new_ones(rows, len(weight))) for weight in weights
    ]

    def step() -> None:
        with torch.inference_mode():
            for x, weight, _ in inputs:
                F.linear(x, weight)
            for x, weight, grad in reversed(inputs):
                torch.mm(grad, weight)
                torch.mm(grad.T, x)

    return step


def matrices(contenders: Sequence[Contender]) -> list[Tensor]:
    """Give the weights that each token reads, of the hand-written model."""
    (model,) = (each.module for each in contenders if isinstance(each.module, Monolith | MonolithT5))
    return model.matrices()
