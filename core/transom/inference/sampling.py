"""From logits to a token: pure functions over the last dimension."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from transom.errors import InputError

__all__ = ["Sampling", "keep_min_p", "keep_top_k", "keep_top_p", "penalise_repetition"]


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


def keep_min_p(logits: Tensor, p: float) -> Tensor:
    """Keep the tokens that are at least p times as probable as the most probable one.

    Args:
        logits: ``[..., v]``.
        p: from 0 to 1.

    Returns:
        logits of the same shape; those of the other tokens are minus infinity.

    Source:
        Nguyen et al., "Turning up the heat: min-p sampling", 2024.

    Example:
        >>> keep_min_p(torch.tensor([0.5, 0.2, 0.3]).log(), 0.5).exp()
        tensor([0.5000, 0.0000, 0.3000])
    """
    probabilities = logits.double().softmax(dim=-1)
    return logits.masked_fill(probabilities < p * probabilities.amax(dim=-1, keepdim=True), -math.inf)


def penalise_repetition(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Divide the logits of tokens that were seen by a penalty where they are positive, and multiply where not.

    Args:
        logits: ``[..., v]``.
        seen: bool ``[..., v]``.
        penalty: above 1 makes them less likely.

    Returns:
        logits of the same shape.

    Source:
        Keskar et al., "CTRL", 2019, section 4.1, with the sign seen to, as Hugging Face transformers does.

    Example:
        >>> penalise_repetition(torch.tensor([2.0, -2.0, 1.0]), torch.tensor([True, True, False]), 2.0)
        tensor([ 1., -4.,  1.])
    """
    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is chosen: penalty and temperature first, then the k largest, the nucleus p, and min-p.

    Args:
        temperature: logits are divided by it; 0 = greedy.
        top_k: only the k most probable tokens; `None` = all.
        top_p: only the most probable tokens that together reach p; `None` = all.
        min_p: only tokens at least this share as probable as the most probable; `None` = all.
        repetition_penalty: divides the positive logits of tokens that were seen, and multiplies the others; 1 = none.
        greedy: always the most probable token, whatever the others but the penalty say.

    Raises:
        InputError: a value outside of its range.

    Example:
        >>> Sampling(greedy=True).pick(torch.tensor([1.0, 3.0, 2.0]), torch.Generator())
        1
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0
    greedy: bool = False

    def __post_init__(self) -> None:
        _require(0 <= self.temperature < math.inf, "temperature", self.temperature, "0 or more, and finite")
        _require(self.top_k is None or self.top_k >= 1, "top_k", self.top_k, "1 or more")
        _require(self.top_p is None or 0 < self.top_p <= 1, "top_p", self.top_p, "above 0, up to 1")
        _require(self.min_p is None or 0 <= self.min_p <= 1, "min_p", self.min_p, "from 0 to 1")
        penalty = self.repetition_penalty
        _require(0 < penalty < math.inf, "repetition_penalty", penalty, "above 0, and finite")

    @property
    def is_greedy(self) -> bool:
        """Whether no random number is drawn."""
        return self.greedy or self.temperature == 0

    def filtered(self, logits: Tensor, seen: Tensor | None = None) -> Tensor:
        """Apply everything but the choice.

        Args:
            logits: ``[..., v]``.
            seen: bool ``[..., v]``, tokens that the penalty is for; `None` = none.

        Returns:
            logits of the same shape; what cannot be chosen is at minus infinity. Greedy ones have the penalty alone.
        """
        if seen is not None and self.repetition_penalty != 1:
            logits = penalise_repetition(logits, seen, self.repetition_penalty)
        if self.is_greedy:
            return logits
        logits = logits / self.temperature
        if self.top_k is not None:
            logits = keep_top_k(logits, self.top_k)
        if self.top_p is not None:
            logits = keep_top_p(logits, self.top_p)
        return logits if self.min_p is None else keep_min_p(logits, self.min_p)

    def pick(self, logits: Tensor, generator: torch.Generator, seen: Tensor | None = None) -> int:
        """Choose a token.

        Args:
            logits: ``[v]``, on any device.
            generator: of the CPU; greedy choices draw nothing from it.
            seen: bool ``[v]``, tokens that the penalty is for; `None` = none.

        Returns:
            its id.
        """
        return self.pick_rows(logits[None], [generator], None if seen is None else seen[None])[0]

    def pick_rows(self, logits: Tensor, generators: Sequence[torch.Generator], seen: Tensor | None = None) -> list[int]:
        """Choose a token for each row, with each row's own random numbers.

        Args:
            logits: ``[b, v]``, on any device.
            generators: b of the CPU; each draws one number, greedy choices none.
            seen: bool ``[b, v]``, tokens that the penalty is for; `None` = none.

        Returns:
            b ids.
        """
        if self.is_greedy:
            return self.filtered(logits, seen).argmax(dim=-1).tolist()
        logits = self.filtered(logits.double(), seen)
        shares = logits.softmax(dim=-1).cumsum(dim=-1)
        drawn = torch.stack([torch.rand(1, generator=each, dtype=torch.float64) for each in generators])
        # The first token whose share reaches beyond the drawn number; one of no share never is.
        found = torch.searchsorted(shares, drawn.to(shares.device) * shares[:, -1:], right=True)
        last = (logits > -math.inf).long().cumsum(dim=-1).argmax(dim=-1, keepdim=True)
        return torch.minimum(found, last)[:, 0].tolist()


def _require(holds: bool, name: str, value: object, right: str) -> None:
    if not holds:
        raise InputError(f"{name} is {value}; it must be {right}.", asked_by=name, name=name, value=value)
