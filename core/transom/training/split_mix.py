"""Random numbers that are the same with every version of every library."""

from __future__ import annotations

import numpy as np

__all__ = ["Hashes", "hashed"]

Hashes = np.ndarray[tuple[int], np.dtype[np.uint64]]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def hashed(values: Hashes) -> Hashes:
    """Scatter integers over all of 64 bits, by SplitMix64.

    Args:
        values: uint64, one dimension.

    Returns:
        uint64, as many.

    Source: Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014.

    Example:
        >>> hashed(np.array([0], dtype=np.uint64))
        array([16294208416658607535], dtype=uint64)
    """
    values = values + _GOLDEN
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
