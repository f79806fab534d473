"""Span corruption: spans of a sequence are cut out, and are to be written by a model that reads the rest."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import final

import numpy as np
import torch
from torch import Tensor

from transom.errors import SpecError
from transom.specs.train_spec import START
from transom.training.split_mix import Hashes, hashed

__all__ = ["SpanCorruption"]

Ids = np.ndarray[tuple[int], np.dtype[np.int64]]


@final
@dataclass(frozen=True, kw_only=True)
class SpanCorruption:
    """Cuts spans out of sequences, in places that follow from the seed, the batch's number and the sequence alone.

    Each span leaves a sentinel behind: an id of its own, counted down from the vocabulary's end. What is to be written
    is every sentinel followed by what it stands for, and one sentinel more to end with. All sequences of a length have
    as many tokens cut out, in as many spans, so that shapes do not change.

    Args:
        length: s, tokens of a sequence.
        vocab_size: v.
        noise_density: share of the tokens that is cut out.
        mean_span_length: tokens of a span, on average.
        seed: another seed cuts elsewhere.

    Raises:
        SpecError: nothing could be cut out, or the vocabulary has no room for the sentinels.

    Source: Raffel et al. 2020, section 3.1.4. It ends what is written with a sentinel, as the paper's figure 2 does.

    Example:
        >>> cut = SpanCorruption(length=12, vocab_size=100, noise_density=0.25, mean_span_length=1.5, seed=0)
        >>> read, written, labels = cut(torch.arange(1, 13)[None], number=0)
        >>> read.tolist()
        [[1, 2, 3, 99, 5, 6, 7, 8, 9, 10, 98]]
        >>> labels.tolist(), written.tolist()
        ([[99, 4, 98, 11, 12, 97]], [[0, 99, 4, 98, 11, 12]])
    """

    length: int
    vocab_size: int
    noise_density: float = 0.15
    mean_span_length: float = 3.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.length < 2:
            raise _refusal(f"nothing can be cut out of sequences of {self.length} token.", "sequence_length", "2")
        if self.sentinels >= self.vocab_size:
            what = f"{self.sentinels} sentinels are needed, and the vocabulary has {self.vocab_size} ids."
            raise _refusal(what, "vocab_size", "a larger vocab_size, longer spans, or shorter sequences")

    @cached_property
    def noise(self) -> int:
        """Tokens that are cut out of a sequence."""
        return min(max(round(self.length * self.noise_density), 1), self.length - 1)

    @cached_property
    def spans(self) -> int:
        """Spans that are cut out of a sequence."""
        return min(max(round(self.noise / self.mean_span_length), 1), self.length - self.noise)

    @property
    def sentinels(self) -> int:
        """Ids that stand for spans, and the one that ends."""
        return self.spans + 1

    @property
    def lengths(self) -> tuple[int, int]:
        """How many tokens of a sequence are read, and how many are written."""
        return self.length - self.noise + self.spans, self.noise + self.sentinels

    def __call__(self, tokens: Tensor, number: int) -> tuple[Tensor, Tensor, Tensor]:
        """Corrupt a batch.

        Args:
            tokens: int64 ids ``[b, s]``.
            number: of the batch.

        Returns:
            what is read ``[b, s - noise + spans]``, what the decoder sees ``[b, noise + spans + 1]``, and what it is to
            write, of the same shape.
        """
        key = hashed(hashed(_integers(self.seed)) + _integers(number))
        rows = [self._row(row, key) for row in tokens.numpy()]
        read, labels = (torch.from_numpy(np.stack(part)) for part in zip(*rows, strict=True))
        return read, torch.cat([torch.full_like(labels[:, :1], START), labels[:, :-1]], dim=1), labels

    def _row(self, row: Ids, key: Hashes) -> tuple[Ids, Ids]:
        # Not by its place in the batch: ranks that share a batch cut as one process would.
        places = np.arange(self.length, dtype=np.uint64) << np.uint64(32)
        key = key + hashed(row.astype(np.uint64) + places).sum()
        kept = _parts(self.length - self.noise, self.spans, hashed(key))
        cut = _parts(self.noise, self.spans, hashed(key + np.uint64(1)))
        ends = np.cumsum(np.stack([kept, cut], axis=1).ravel())
        pieces = np.split(row, ends[:-1])  # kept, cut, kept, cut ...
        marks = self.vocab_size - 1 - np.arange(self.sentinels)
        read = [piece for i in range(self.spans) for piece in (pieces[2 * i], marks[i : i + 1])]
        labels = [piece for i in range(self.spans) for piece in (marks[i : i + 1], pieces[2 * i + 1])]
        return np.concatenate(read), np.concatenate([*labels, marks[-1:]])


def _integers(value: int) -> Hashes:
    return np.array([value % 2**64], dtype=np.uint64)


def _parts(total: int, parts: int, key: Hashes) -> Ids:
    """Cut a number into so many numbers of at least one, all ways being equally probable."""
    candidates: Hashes = np.arange(total - 1).astype(np.uint64)
    order = np.argsort(hashed(key + candidates), kind="stable")
    ends = np.sort(order[: parts - 1]) + 1
    return np.diff(ends, prepend=0, append=total)


def _refusal(what: str, path: str, hint: str) -> SpecError:
    return SpecError(what, asked_by="train.objective: span_corruption", hint=hint, path=path, file=None, line=None)
