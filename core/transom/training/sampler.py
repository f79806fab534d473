"""Which tokens each batch holds: a function of the seed and the batch's number, and of nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from typing import final

import numpy as np
import torch
from torch import Tensor

from transom.training.split_mix import hashed
from transom.training.token_sequence import TokenSequence

__all__ = ["Batch", "SequenceSampler", "validation_batches"]

Batch = tuple[Tensor, Tensor]
"""Tokens and labels, ``[b, s]`` int64 each; a label is the token that follows."""


@final
class SequenceSampler:
    """Training batches: each epoch takes every sequence once, in an order and from a first token of its own.

    The order is a sort by SplitMix64 hashes (Steele, Lea and Flood, "Fast splittable pseudorandom number generators",
    2014) and not a library's shuffle, so that it is the same with every version of every library.

    Args:
        tokens: the training tokens, at least ``length + 1``.
        length: s, tokens of a sequence.
        batch_size: b, sequences of a batch.
        seed: another seed gives another order.

    Example:
        >>> sampler = SequenceSampler(TokenSequence([np.arange(100)]), length=4, batch_size=2, seed=0)
        >>> tokens, labels = sampler.batch(7)
        >>> tokens.shape, bool((labels == tokens + 1).all())
        (torch.Size([2, 4]), True)
    """

    def __init__(self, tokens: TokenSequence, length: int, batch_size: int, seed: int) -> None:
        self.tokens, self.length, self.batch_size, self.seed = tokens, length, batch_size, seed
        # One sequence fewer than would fit, where there are several, leaves each epoch room to start elsewhere.
        self.per_epoch = max(1, (len(tokens) - 1) // length - 1)
        self._epoch: tuple[int, np.ndarray[tuple[int], np.dtype[np.int64]]] | None = None

    def batch(self, number: int) -> Batch:
        """Give batch `number`, from 0."""
        first = number * self.batch_size
        starts = [self._start(index) for index in range(first, first + self.batch_size)]
        return _stack([self.tokens.read(start, self.length + 1) for start in starts])

    def _start(self, index: int) -> int:
        epoch, place = divmod(index, self.per_epoch)
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = (epoch, self._starts(epoch))
        return int(self._epoch[1][place])

    def _starts(self, epoch: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        seed, number = np.array([[self.seed], [epoch]], dtype=np.uint64)
        key = hashed(hashed(seed) + number)
        order = np.argsort(hashed(key + np.arange(self.per_epoch).astype(np.uint64)), kind="stable")
        room = len(self.tokens) - 1 - self.per_epoch * self.length
        return order * self.length + int(hashed(key)[0] % np.uint64(room + 1))


def validation_batches(tokens: TokenSequence, length: int, batch_size: int, batches: int) -> Iterator[Batch]:
    """Give the sequences on which the validation loss is measured: the same ones each time, spread over the tokens.

    Args:
        tokens: the validation tokens, at least ``length + 1``.
        length: s, tokens of a sequence; sequences do not overlap.
        batch_size: b, sequences of a batch; the last one may be smaller.
        batches: how many at most.

    Yields:
        the batches.
    """
    available = (len(tokens) - 1) // length
    count = min(available, batches * batch_size)
    rows = [tokens.read(i * available // count * length, length + 1) for i in range(count)]
    for first in range(0, count, batch_size):
        yield _stack(rows[first : first + batch_size])


def _stack(rows: list[np.ndarray[tuple[int], np.dtype[np.int64]]]) -> Batch:
    sequences = torch.from_numpy(np.stack(rows))
    return sequences[:, :-1], sequences[:, 1:]
