"""Many token ids as one sequence, in memory or mapped from files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, final

import numpy as np

if TYPE_CHECKING:
    from transom.text.tokenizer import TokenArray

__all__ = ["TokenSequence"]

_SAMPLES = 256
_SAMPLE_LENGTH = 4096


@final
class TokenSequence:
    """Token ids of several arrays, one after the other, without copying them.

    Args:
        arrays: one dimension each, any integer dtype; memory-mapped ones stay on the disk.

    Example:
        >>> tokens = TokenSequence([np.array([1, 2, 3]), np.array([4, 5])])
        >>> len(tokens), tokens.read(1, 3).tolist()
        (5, [2, 3, 4])
    """

    def __init__(self, arrays: Sequence[TokenArray]) -> None:
        self._arrays = [array for array in arrays if len(array)]
        self._starts = [0, *accumulate(len(array) for array in self._arrays)]

    def __len__(self) -> int:
        return self._starts[-1]

    def read(self, start: int, length: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """Copy ids ``start`` ... ``start + length - 1``, as int64; fewer at the end of the sequence."""
        pieces = [np.asarray(piece, dtype=np.int64) for piece in self._overlapping(start, start + length)]
        return np.concatenate(pieces) if pieces else np.empty(0, dtype=np.int64)

    def part(self, start: int, stop: int) -> TokenSequence:
        """Give ids ``start`` ... ``stop - 1`` as a sequence that shares their memory."""
        return TokenSequence(list(self._overlapping(start, stop)))

    def fingerprint(self) -> str:
        """Give a hash of the length and of up to a million ids spread over the sequence, whatever their dtype."""
        digest = hashlib.sha256(str(len(self)).encode())
        if len(self) <= _SAMPLES * _SAMPLE_LENGTH:
            digest.update(self.read(0, len(self)).tobytes())
        else:
            for start in np.linspace(0, len(self) - _SAMPLE_LENGTH, _SAMPLES, dtype=np.int64).tolist():
                digest.update(self.read(start, _SAMPLE_LENGTH).tobytes())
        return digest.hexdigest()

    def _overlapping(self, start: int, stop: int) -> Iterator[TokenArray]:
        for array, offset in zip(self._arrays, self._starts, strict=False):
            if offset < stop and start < offset + len(array):
                yield array[max(0, start - offset) : stop - offset]
