"""Beam search: the most probable continuations, as far as a few beams can see."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor, nn

from transom.errors import InputError
from transom.inference.decoding import Run, decoding
from transom.inference.prompts import checked_prompts, checked_settings, room_of
from transom.inference.sampling import penalise_repetition
from transom.inference.settings import BeamSettings

__all__ = ["Beam", "beam_search"]

_NEVER = -1e9  # what is no candidate; beside log probabilities, as good as minus infinity


@dataclass(frozen=True)
class Beam:
    """A continuation.

    Args:
        tokens: new ids, with those that ended it.
        score: its log probability over a power of its length.
    """

    tokens: list[int]
    score: float


def beam_search(
    model: nn.Module, prompts: Iterable[Sequence[int] | Tensor], settings: BeamSettings | None = None
) -> list[list[Beam]]:
    """Search for the most probable continuations of a batch of sequences.

    Prompts are independent of each other: each has beams of its own.

    Args:
        model: token ids ``[b, s]`` to logits ``[b, s, v]``, or an encoder-decoder. It is run in evaluation mode; its
            caches are taken, and given back empty.
        prompts: ids of each row, at least one. Of an encoder-decoder, what it reads.
        settings: beams, length penalty, what ends a continuation; `None` = the defaults.

    Returns:
        for each prompt its best continuations, the best first.

    Raises:
        InputError: a prompt is empty, too long or holds ids that the model does not have, or a setting cannot be.
        CacheError: the model has caches and was not built for them (``mode="infer"``), or they cannot hold the batch.

    Source: Graves 2012 for the search; length penalty and stopping as Hugging Face transformers 5 defines them.

    Example:
        >>> import transom
        >>> model = transom.build("tiny-llama", mode="infer", seed=0)
        >>> settings = BeamSettings(num_beams=3, max_new_tokens=4, num_return_sequences=2)
        >>> (best, second), = beam_search(model, [[72, 105]], settings)
        >>> len(best.tokens), best.score >= second.score
        (4, True)
    """
    settings = checked_settings(settings, BeamSettings, asked_by="beam_search")
    rows = checked_prompts(model, prompts, settings)
    room = room_of(model, rows, settings)
    if None in room.new_tokens:
        raise InputError(
            "the model does not say how long its sequences may be, so max_new_tokens must.",
            asked_by="max_new_tokens",
            name="max_new_tokens",
            value=None,
        )
    searches = [_Search.make(row, count or 0, settings) for row, count in zip(rows, room.new_tokens, strict=True)]
    if not all(search.is_done for search in searches):
        run = Run(
            length=room.length,
            copies=settings.num_beams,
            start_id=settings.start_id,
            use_cache=settings.use_cache,
            compile=settings.compile,
        )
        _search(model, rows, run, searches)
    return [search.best() for search in searches]


def _search(model: nn.Module, rows: list[list[int]], run: Run, searches: list[_Search]) -> None:
    k = run.copies
    with decoding(model, rows, run) as batch:
        logits = batch.start()
        while True:
            steps = [search.advance(each) for search, each in zip(searches, torch.split(logits, k), strict=True)]
            if all(search.is_done for search in searches):
                return
            batch.reorder([i * k + source for i, (sources, _) in enumerate(steps) for source in sources])
            logits = batch.step([token for _, tokens in steps for token in tokens])


@final
@dataclass
class _Search:
    """The beams of one prompt.

    Args:
        seen: ids that the repetition penalty counts from the start.
        room: most new tokens.
        settings: of the search.
        running: new ids of the beams that go on, the best first.
        scores: their log probabilities ``[num_beams]``.
        finished: continuations that have ended, the best first; at most ``num_beams``.
        is_done: nothing better can come.
    """

    seen: list[int]
    room: int
    settings: BeamSettings
    running: list[list[int]]
    scores: Tensor
    finished: list[Beam] = field(default_factory=list)
    is_done: bool = False

    @classmethod
    def make(cls, prompt: list[int], room: int, settings: BeamSettings) -> _Search:
        k = settings.num_beams
        # All beams begin alike: the first alone counts, or all would stay alike.
        scores = torch.tensor([0.0] + [_NEVER] * (k - 1))
        seen = prompt if settings.start_id is None else [settings.start_id]
        made = cls(seen, room, settings, [[] for _ in range(k)], scores)
        if room == 0:
            made.finished, made.is_done = [Beam([], 0.0)] * k, True
        return made

    def best(self) -> list[Beam]:
        """Return what was asked for."""
        return self.finished[: self.settings.num_return_sequences]

    def advance(self, logits: Tensor) -> tuple[list[int], Sequence[int | None]]:
        """Add a token to each beam.

        Args:
            logits: ``[num_beams, v]``.

        Returns:
            for each new beam, which one it goes on from, and its token; `None` when all is done.
        """
        k = self.settings.num_beams
        if self.is_done:
            return list(range(k)), [None] * k
        candidates = self._candidates(logits)
        ended = [self._is_ended(tokens) for _, tokens, _ in candidates]
        self._finish([c for c, is_ended in zip(candidates[:k], ended[:k], strict=True) if is_ended])
        # At its full length every candidate has ended, and the search with them.
        going_on = [c for c, is_ended in zip(candidates, ended, strict=True) if not is_ended]
        going_on = (going_on or candidates)[:k]
        going_on += [going_on[-1]] * (k - len(going_on))
        self.running = [tokens for _, tokens, _ in going_on]
        self.scores = torch.tensor([score for _, _, score in going_on])
        self.is_done = all(ended) or self._cannot_improve()
        tokens = [None if self.is_done else tokens[-1] for tokens in self.running]
        return [source for source, _, _ in going_on], tokens

    def _candidates(self, logits: Tensor) -> list[tuple[int, list[int], float]]:
        """Give the most probable continuations: beam, new ids, log probability; enough for all beams to go on."""
        k, settings = self.settings.num_beams, self.settings
        log_probabilities = logits.float().log_softmax(dim=-1).cpu()
        if settings.repetition_penalty != 1:
            log_probabilities = penalise_repetition(log_probabilities, self._seen(logits), settings.repetition_penalty)
        totals = (log_probabilities + self.scores[:, None]).flatten()  # [k · v]
        endings = len({*settings.eos_ids, *(sequence[-1] for sequence in settings.stop)})
        best = totals.topk(min(max(2, 1 + endings) * k, len(totals)))
        found = []
        for score, index in zip(best.values.tolist(), best.indices.tolist(), strict=True):
            source, token = divmod(index, logits.shape[-1])
            found.append((source, [*self.running[source], token], score))
        return found

    def _seen(self, logits: Tensor) -> Tensor:
        seen = torch.zeros(logits.shape, dtype=torch.bool)
        for row, tokens in enumerate(self.running):
            seen[row, self.seen + tokens] = True
        return seen

    def _is_ended(self, tokens: list[int]) -> bool:
        return len(tokens) == self.room or self.settings.ending(tokens) is not None

    def _finish(self, ended: list[tuple[int, list[int], float]]) -> None:
        k, penalty = self.settings.num_beams, self.settings.length_penalty
        if self.settings.early_stopping is True and len(self.finished) == k:
            return
        beams = [Beam(tokens, score / len(tokens) ** penalty) for _, tokens, score in ended]
        # Sorting keeps the order of equals: what was there first stays first.
        self.finished = sorted([*self.finished, *beams], key=lambda beam: -beam.score)[:k]

    def _cannot_improve(self) -> bool:
        """Whether the best beam, at the length that suits it best, is no better than the worst that is kept."""
        settings = self.settings
        if len(self.finished) < settings.num_beams:
            return False
        if settings.early_stopping is True:
            return True
        favours_length = settings.early_stopping == "never" and settings.length_penalty > 0
        length = self.room if favours_length else len(self.running[0])
        best: float = float(self.scores[0]) / length**settings.length_penalty
        return best <= self.finished[-1].score
