"""The yardstick: what a model loses that knows only the previous token."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from transom.training.sampler import Batch
from transom.training.token_sequence import TokenSequence

__all__ = ["MAX_TOKENS", "bigram_loss"]

MAX_TOKENS = 20_000_000
"""Most training tokens that are counted; counting more would take longer than it tells."""


def bigram_loss(train: TokenSequence, scored: Iterable[Batch], vocab_size: int) -> float | None:
    """Measure the loss of a bigram model with add-one smoothing.

    It predicts token b after token a with probability (count(a b) + 1) / (count(a) + vocab_size).

    Args:
        train: the tokens that are counted.
        scored: the batches on which the loss is measured.
        vocab_size: v, number of token ids.

    Returns:
        the mean loss of a label, in nats; `None` when there are more than `MAX_TOKENS` to count.

    Example:
        >>> import torch
        >>> train = TokenSequence([np.array([0, 1, 0, 1, 0])])
        >>> loss = bigram_loss(train, [(torch.tensor([[0]]), torch.tensor([[1]]))], vocab_size=2)
        >>> round(float(np.exp(-loss)), 3)  # (2 + 1) / (2 + 2)
        0.75
    """
    if len(train) > MAX_TOKENS:
        return None
    tokens = train.read(0, len(train))
    pairs, pair_counts = np.unique(tokens[:-1] * vocab_size + tokens[1:], return_counts=True)
    counts = np.bincount(tokens[:-1], minlength=vocab_size)
    losses = []
    for inputs, labels in scored:
        before, after = inputs.numpy().ravel(), labels.numpy().ravel()
        place = np.minimum(np.searchsorted(pairs, before * vocab_size + after), len(pairs) - 1)
        seen = np.where(pairs[place] == before * vocab_size + after, pair_counts[place], 0)
        losses.append(np.log(counts[before] + vocab_size) - np.log(seen + 1))
    return float(np.concatenate(losses).mean())
