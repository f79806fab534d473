"""Sequences that go on token by token, one by one or in batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, final

import torch
from torch import Tensor, nn

from transom.errors import InputError
from transom.inference.decoding import Run, decoding
from transom.inference.prompts import Room, checked_prompts, checked_settings, room_of
from transom.inference.settings import GenerationSettings

__all__ = ["Generated", "generate", "generate_steps", "stream"]

Ending = Literal["eos", "stop", "length"]


@dataclass(frozen=True)
class Generated:
    """What came after a prompt.

    Args:
        tokens: new ids, with those that ended the row.
        ending: ``"eos"``, ``"stop"``, or ``"length"`` when there was room for no more.
        seed: of the row's choices.
    """

    tokens: list[int]
    ending: Ending
    seed: int


def generate(
    model: nn.Module,
    prompts: Iterable[Sequence[int] | Tensor],
    settings: GenerationSettings | None = None,
    *,
    seed: int | Sequence[int] | None = None,
    on_step: Callable[[list[int | None]], object] | None = None,
    is_done: Callable[[int, list[int]], bool] | None = None,
) -> list[Generated]:
    """Continue a batch of sequences.

    Rows are independent: each has random numbers of its own, and becomes what it would become alone, but for rounding.

    Args:
        model: token ids ``[b, s]`` to logits ``[b, s, v]``, or an encoder-decoder. It is run in evaluation mode
            and under `torch.inference_mode`; its caches are taken, and given back empty.
        prompts: ids of each row, at least one; they may have different lengths. Of an encoder-decoder, what it reads.
        settings: how long, how tokens are chosen, what ends a row, how it is run; `None` = the defaults.
        seed: of the choices: one for each row, or that of the first, from which the others count up; `None` = other
            ones each time.
        on_step: called after each step with the new token of each row, `None` for those that have ended.
        is_done: called with a row's number and its new ids after each step; True ends the row.

    Returns:
        what came after each prompt.

    Raises:
        InputError: a prompt is empty, too long or holds ids that the model does not have, or a setting cannot be.
        CacheError: the model has caches and was not built for them (``mode="infer"``), or they cannot hold the batch.

    Example:
        >>> import transom
        >>> model = transom.build("tiny-llama", mode="infer", seed=0)
        >>> settings = GenerationSettings(max_new_tokens=5, top_k=20)
        >>> rows = generate(model, [[72, 105], [72, 101, 121]], settings, seed=[1, 2])
        >>> [len(row.tokens) for row in rows], rows[1] == generate(model, [[72, 101, 121]], settings, seed=2)[0]
        ([5, 5], True)
    """
    settings = checked_settings(settings, GenerationSettings, asked_by="generate")
    rows = _Rows.make(model, prompts, settings, seed, is_done)
    if any(row.room is None for row in rows.rows):
        raise InputError(
            "the model does not say how long its sequences may be, so max_new_tokens must.",
            asked_by="max_new_tokens",
            name="max_new_tokens",
            value=None,
        )
    for tokens in _steps(model, rows, settings):
        if on_step is not None:
            on_step(tokens)
    return [Generated(row.tokens, row.ending or "length", row.seed) for row in rows.rows]


def generate_steps(
    model: nn.Module,
    prompts: Iterable[Sequence[int] | Tensor],
    settings: GenerationSettings | None = None,
    *,
    seed: int | Sequence[int] | None = None,
    is_done: Callable[[int, list[int]], bool] | None = None,
) -> Iterator[list[int | None]]:
    """Continue a batch of sequences, step by step.

    Args:
        model: as in `generate`, like the following.
        prompts: ids of each row.
        settings: how.
        seed: of the choices.
        is_done: called with a row's number and its new ids after each step; True ends the row.

    Returns:
        an iterator: for each step the new token of each row, `None` for those that have ended. Each step is made when
        it is asked for; prompts and settings are checked at once.

    Raises:
        InputError: as in `generate`.
        CacheError: as in `generate`, when the first step is asked for.

    Example:
        >>> import transom
        >>> model = transom.build("tiny-llama", mode="infer", seed=0)
        >>> settings = GenerationSettings(max_new_tokens=3, greedy=True)
        >>> [len(tokens) for tokens in generate_steps(model, [[72], [72, 105]], settings)]
        [2, 2, 2]
    """
    settings = checked_settings(settings, GenerationSettings, asked_by="generate_steps")
    return _steps(model, _Rows.make(model, prompts, settings, seed, is_done), settings)


def stream(
    model: nn.Module,
    prompt: Sequence[int] | Tensor,
    settings: GenerationSettings | None = None,
    *,
    seed: int | None = None,
) -> Iterator[int]:
    """Continue one sequence, token by token.

    Args:
        model: as in `generate`, like the following. Until the last token it is in evaluation mode.
        prompt: ids.
        settings: how.
        seed: of the choices.

    Returns:
        an iterator of ids: each is generated when it is asked for; the prompt and settings are checked at once.

    Raises:
        InputError: as in `generate`.
        CacheError: as in `generate`, when the first token is asked for.

    Example:
        >>> import transom
        >>> model = transom.build("tiny-llama", mode="infer", seed=0)
        >>> settings = GenerationSettings(max_new_tokens=5)
        >>> ids = list(stream(model, [72, 105], settings, seed=1))
        >>> len(ids), ids == list(stream(model, [72, 105], settings, seed=1))
        (5, True)
    """
    steps = generate_steps(model, [prompt], settings, seed=seed)
    return (token for tokens in steps for token in tokens if token is not None)


@final
@dataclass
class _Row:
    """One sequence that grows.

    Args:
        prompt: ids.
        room: most new tokens; `None` = no end.
        seed: of its choices.
        generator: that makes them.
        tokens: new ids.
        ending: why it grows no more.
    """

    prompt: list[int]
    room: int | None
    seed: int
    generator: torch.Generator
    tokens: list[int] = field(default_factory=list)
    ending: Ending | None = None


@final
@dataclass
class _Rows:
    """A batch that grows.

    Args:
        rows: its rows.
        room: the longest of them.
        is_done: ends a row.
        seen: bool ``[b, v]``, tokens that each row has; `None` = nobody asks.
    """

    rows: list[_Row]
    room: Room
    is_done: Callable[[int, list[int]], bool] | None
    seen: Tensor | None = None

    @classmethod
    def make(
        cls,
        model: nn.Module,
        prompts: Iterable[Sequence[int] | Tensor],
        settings: GenerationSettings,
        seed: int | Sequence[int] | None,
        is_done: Callable[[int, list[int]], bool] | None = None,
    ) -> _Rows:
        checked = checked_prompts(model, prompts, settings)
        room = room_of(model, checked, settings)
        seeds = _seeds(seed, len(checked))
        generators = [torch.Generator().manual_seed(each) for each in seeds]
        rows = [_Row(*each) for each in zip(checked, room.new_tokens, seeds, generators, strict=True)]
        for row in rows:
            row.ending = "length" if row.room == 0 else None
        return cls(rows, room, is_done)

    @property
    def is_ended(self) -> bool:
        return all(row.ending is not None for row in self.rows)

    def take(self, logits: Tensor, settings: GenerationSettings) -> list[int | None]:
        """Choose a token for each row that goes on, and note those that end with it."""
        if settings.repetition_penalty != 1:
            self._note_seen(logits, settings)
        picked = settings.sampling.pick_rows(logits, [row.generator for row in self.rows], self.seen)
        chosen = [token if row.ending is None else None for token, row in zip(picked, self.rows, strict=True)]
        for number, token in enumerate(chosen):
            if token is not None:
                self._append(number, token, settings)
        return chosen

    def _append(self, number: int, token: int, settings: GenerationSettings) -> None:
        row = self.rows[number]
        row.tokens.append(token)
        row.ending = settings.ending(row.tokens)
        if row.ending is None and self.is_done is not None and self.is_done(number, row.tokens):
            row.ending = "stop"
        if row.ending is None and len(row.tokens) == row.room:
            row.ending = "length"

    def _note_seen(self, logits: Tensor, settings: GenerationSettings) -> None:
        if self.seen is None:
            self.seen = torch.zeros_like(logits, dtype=torch.bool)
            # What an encoder-decoder reads is not what it has written.
            starts = [row.prompt if settings.start_id is None else [settings.start_id] for row in self.rows]
            for number, ids in enumerate(starts):
                self.seen[number, ids] = True
        for number, row in enumerate(self.rows):
            self.seen[number, row.tokens[-1:]] = True


def _steps(model: nn.Module, rows: _Rows, settings: GenerationSettings) -> Iterator[list[int | None]]:
    if rows.is_ended:
        return
    run = Run(
        length=rows.room.length,
        start_id=settings.start_id,
        use_cache=settings.use_cache,
        compile=settings.compile,
    )
    with decoding(model, [row.prompt for row in rows.rows], run) as batch:
        logits = batch.start()
        while True:
            tokens = rows.take(logits, settings)
            yield tokens
            if rows.is_ended:
                return
            # A token that ended its row is followed by none.
            going_on = [token if row.ending is None else None for token, row in zip(tokens, rows.rows, strict=True)]
            logits = batch.step(going_on)


def _seeds(seed: int | Sequence[int] | None, count: int) -> list[int]:
    if seed is None:
        return [torch.Generator().seed() & (2**63 - 1) for _ in range(count)]
    if isinstance(seed, int):
        return [seed + i for i in range(count)]
    seeds = [int(each) for each in seed]
    if len(seeds) != count:
        raise InputError(
            f"{len(seeds)} seeds are given for {count} prompts.",
            asked_by="seed",
            hint="one for each, or one number from which they count up",
            name="seed",
            value=seeds,
        )
    return seeds
