"""From logits to a token: pure functions over the last dimension."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from transom.errors import InputError

__all__ = ["Sampling", "keep_top_k", "keep_top_p"]


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """Keep the k largest logits and set the others to minus infinity.

    Args:
        logits: ``[..., v]``; of equal ones those with lower ids come first.
        k: how many to keep; from v on, all.

    Returns:
        logits of the same shape.

    Example:
        >>> keep_top_k(torch.tensor([1.0, 3.0, 2.0]), 2)
        tensor([-inf, 3., 2.])
    """
    order = logits.argsort(dim=-1, descending=True, stable=True)
    return logits.scatter(-1, order[..., k:], -math.inf)


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """Keep the most probable tokens whose probabilities together reach p, and as few of them as do.

    Args:
        logits: ``[..., v]``; of equally probable tokens those with lower ids come first.
        p: above 0, up to 1. At least one token is kept.

    Returns:
        logits of the same shape; those of the other tokens are minus infinity.

    Source:
        Holtzman et al., "The curious case of neural text degeneration", 2020, equation 2.

    Example:
        >>> keep_top_p(torch.tensor([0.5, 0.2, 0.3]).log(), 0.7).exp()
        tensor([0.5000, 0.0000, 0.3000])
    """
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    probabilities = ordered.double().softmax(dim=-1)
    before = probabilities.cumsum(dim=-1) - probabilities
    dropped = (before >= p).scatter(-1, order, before >= p)
    return logits.masked_fill(dropped, -math.inf)


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is chosen: temperature first, then the k largest, then the nucleus p.

    Args:
        temperature: logits are divided by it; 0 = greedy.
        top_k: only the k most probable tokens; `None` = all.
        top_p: only the most probable tokens that together reach p; `None` = all.
        greedy: always the most probable token, whatever the others say.

    Raises:
        InputError: a value outside of its range.

    Example:
        >>> Sampling(greedy=True).pick(torch.tensor([1.0, 3.0, 2.0]), torch.Generator())
        1
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    greedy: bool = False

    def __post_init__(self) -> None:
        _require(0 <= self.temperature < math.inf, "temperature", self.temperature, "0 or more, and finite")
        _require(self.top_k is None or self.top_k >= 1, "top_k", self.top_k, "1 or more")
        _require(self.top_p is None or 0 < self.top_p <= 1, "top_p", self.top_p, "above 0, up to 1")

    def pick(self, logits: Tensor, generator: torch.Generator) -> int:
        """Choose a token.

        Args:
            logits: ``[v]``, on any device.
            generator: of the CPU; greedy choices draw nothing from it.

        Returns:
            its id.
        """
        if self.greedy or self.temperature == 0:
            return int(logits.argmax())
        logits = logits.cpu().double() / self.temperature
        if self.top_k is not None:
            logits = keep_top_k(logits, self.top_k)
        if self.top_p is not None:
            logits = keep_top_p(logits, self.top_p)
        return int(torch.multinomial(logits.softmax(dim=-1), 1, generator=generator))


def _require(holds: bool, name: str, value: object, right: str) -> None:
    if not holds:
        raise InputError(f"{name} is {value}; it must be {right}.", asked_by=name, name=name, value=value)
