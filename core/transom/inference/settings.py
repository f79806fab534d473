"""What a user asks of generation: how long, how tokens are chosen, what ends it, and how it is run."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from torch import Tensor

from transom.errors import InputError
from transom.inference.sampling import Sampling

__all__ = ["BeamSettings", "Compile", "GenerationSettings"]

Compile = bool | Callable[[Callable[..., Tensor]], Callable[..., Tensor]]
"""Whether, or by what, the step of one token is compiled."""


@dataclass(frozen=True, kw_only=True)
class _Settings:
    """What all ways of generating have in common.

    Args:
        max_new_tokens: most tokens of a row; `None` = as many as the model's ``max_sequence_length`` has room for.
        repetition_penalty: makes tokens that were seen less likely, above 1, or likelier, below; see `Sampling`.
        eos_ids: ids that end a row.
        stop: sequences of ids that end a row when its new tokens end with one of them.
        start_id: what an encoder-decoder's sequences begin with.
        use_cache: keep the keys and values of the tokens seen, where the model can; otherwise every token runs the
            whole sequence anew. The tokens are the same but for rounding.
        compile: compile the step of one token into one graph: True = with ``torch.compile``, or a function that
            compiles; needs caches. The first step takes the time to compile; later calls of the same sizes do not.
    """

    max_new_tokens: int | None = None
    repetition_penalty: float = 1.0
    eos_ids: tuple[int, ...] = ()
    stop: tuple[tuple[int, ...], ...] = ()
    start_id: int | None = None
    use_cache: bool = True
    compile: Compile = False

    def __post_init__(self) -> None:
        count = self.max_new_tokens
        if count is not None and count < 0:
            raise InputError(
                f"{count} new tokens are asked for; it must be 0 or more.",
                asked_by="max_new_tokens",
                name="max_new_tokens",
                value=count,
            )
        object.__setattr__(self, "eos_ids", _ids(self.eos_ids))
        object.__setattr__(self, "stop", tuple(tuple(map(int, sequence)) for sequence in self.stop))
        if () in self.stop:
            raise InputError(
                "a stop sequence is empty; it would end every row at once.", asked_by="stop", name="stop", value=()
            )
        if self.compile and not self.use_cache:
            raise InputError(
                "compile needs caches: without them every step has another shape.",
                asked_by="compile",
                hint="use_cache=True",
                name="compile",
                value=self.compile,
            )

    def ending(self, tokens: list[int]) -> Literal["eos", "stop"] | None:
        """Say why a row of new tokens ends with its last one; `None` = it goes on."""
        if tokens[-1] in self.eos_ids:
            return "eos"
        return "stop" if any(tuple(tokens[-len(sequence) :]) == sequence for sequence in self.stop) else None


@dataclass(frozen=True, kw_only=True)
class GenerationSettings(_Settings):
    """How rows are continued token by token.

    Args:
        max_new_tokens: most tokens of a row; `None` = as many as the model's ``max_sequence_length`` has room for.
        temperature: as for `Sampling`, like the following.
        top_k: only the k most probable tokens; `None` = all.
        top_p: only the most probable tokens that together reach p; `None` = all.
        min_p: only tokens at least this share as probable as the most probable; `None` = all.
        repetition_penalty: makes tokens that were seen less likely, above 1, or likelier, below.
        greedy: always the most probable token.
        eos_ids: ids that end a row.
        stop: sequences of ids that end a row when its new tokens end with one of them.
        start_id: what an encoder-decoder's sequences begin with; `None` for other models.
        use_cache: keep the keys and values of the tokens seen, where the model can; otherwise every token runs the
            whole sequence anew. The tokens are the same but for rounding.
        compile: compile the step of one token into one graph: True = with ``torch.compile``, or a function that
            compiles; needs caches. The first step takes the time to compile; later calls of the same sizes do not.

    Raises:
        InputError: a value outside of its range.

    Example:
        >>> GenerationSettings(max_new_tokens=20, top_p=0.9, eos_ids=[2]).eos_ids
        (2,)
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    greedy: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        assert self.sampling is not None  # its values are checked

    @cached_property
    def sampling(self) -> Sampling:
        """How tokens are chosen."""
        return Sampling(
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            greedy=self.greedy,
        )


@dataclass(frozen=True, kw_only=True)
class BeamSettings(_Settings):
    """How the most probable continuations are searched for.

    A continuation of n new tokens has the score ``log probability / n ** length_penalty``.

    Args:
        num_beams: how many continuations of a prompt are followed at once.
        length_penalty: above 0 favours longer ones, below 0 shorter.
        early_stopping: True = stop when as many continuations have ended as there are beams; False = when the best
            beam, ending now, would be no better than the worst of them; "never" = when it could not become better at
            any length.
        num_return_sequences: how many of the best are returned.
        max_new_tokens: most tokens of a continuation; `None` = as many as the model has room for.
        repetition_penalty: as for `Sampling`, on log probabilities.
        eos_ids: ids that end a continuation.
        stop: sequences of ids that end it.
        start_id: what an encoder-decoder's sequences begin with; `None` for other models.
        use_cache: as in `GenerationSettings`.
        compile: as in `GenerationSettings`.

    Raises:
        InputError: a value outside of its range.

    Source: the definitions of Hugging Face transformers, version 5.

    Example:
        >>> BeamSettings(num_beams=4, max_new_tokens=8).length_penalty
        1.0
    """

    num_beams: int = 4
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False
    num_return_sequences: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        Sampling(repetition_penalty=self.repetition_penalty)
        _require(self.num_beams >= 1, "num_beams", self.num_beams, "1 or more")
        known = self.early_stopping in (True, False, "never")
        _require(known, "early_stopping", self.early_stopping, "True, False or 'never'")
        _require(math.isfinite(self.length_penalty), "length_penalty", self.length_penalty, "finite")
        fits = 1 <= self.num_return_sequences <= self.num_beams
        _require(fits, "num_return_sequences", self.num_return_sequences, f"1 to num_beams, {self.num_beams}")


def _ids(ids: int | Iterable[int]) -> tuple[int, ...]:
    return (ids,) if isinstance(ids, int) else tuple(map(int, ids))


def _require(holds: bool, name: str, value: Any, right: str) -> None:
    if not holds:
        raise InputError(f"{name} is {value!r}; it must be {right}.", asked_by=name, name=name, value=value)
