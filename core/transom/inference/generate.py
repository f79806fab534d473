"""Tokens one by one, each from all before it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn

from transom.errors import InputError
from transom.inference.sampling import Sampling

__all__ = ["CachingModel", "generate"]


@runtime_checkable
class CachingModel(Protocol):
    """A model that can keep the keys and values of the tokens it has seen."""

    def setup_caches(self, batch_size: int, dtype: torch.dtype | None = None) -> None:
        """Make room for the sequences of a batch."""
        ...

    def caches_are_enabled(self) -> bool:
        """Whether there is room."""
        ...

    def reset_caches(self) -> None:
        """Forget what is kept."""
        ...

    def delete_caches(self) -> None:
        """Give the room back."""
        ...


def generate(
    model: nn.Module,
    tokens: Sequence[int] | Tensor,
    *,
    max_new_tokens: int | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    greedy: bool = False,
    seed: int | None = None,
    use_cache: bool = True,
) -> Iterator[int]:
    """Continue a sequence of tokens.

    Args:
        model: token ids ``[b, s]`` to logits ``[b, s, v]``. Until the last token it is in evaluation mode, and its
            caches are taken.
        tokens: ids of the prompt, at least one.
        max_new_tokens: how many to generate; `None` = as many as the model's ``max_sequence_length`` has room for.
        temperature: as for `Sampling`, like the following.
        top_k: only the k most probable tokens.
        top_p: only the most probable tokens that together reach p.
        greedy: always the most probable token.
        seed: of the choices; `None` = another one each time.
        use_cache: keep the keys and values of the tokens seen, where the model can; otherwise every token runs the
            whole sequence anew. The tokens are the same but for rounding.

    Returns:
        an iterator of ids: each is generated when it is asked for.

    Raises:
        InputError: the prompt is empty, too long or holds ids that the model does not have, or a setting is out of
            range.
        CacheError: the model has caches and was not built for them (``mode="infer"``).

    Example:
        >>> import transom
        >>> model = transom.build("tiny-llama", mode="infer", seed=0)
        >>> ids = list(generate(model, [72, 105], max_new_tokens=5, seed=1))
        >>> len(ids), ids == list(generate(model, [72, 105], max_new_tokens=5, seed=1))
        (5, True)
    """
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, greedy=greedy)
    prompt = [int(token) for token in tokens]
    count = _checked_count(model, prompt, max_new_tokens)
    generator = torch.Generator()
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed)
    return _generate(model, prompt, count, lambda logits: sampling.pick(logits, generator), use_cache)


def _generate(
    model: nn.Module, tokens: list[int], count: int | None, pick: Callable[[Tensor], int], use_cache: bool
) -> Iterator[int]:
    seen = 0
    produced = 0
    with _evaluating(model), _caches(model, use_cache) as cached:
        while count is None or produced < count:
            token = pick(_next_logits(model, tokens, seen if cached else None))
            seen = len(tokens)
            tokens.append(token)
            produced += 1
            yield token


@torch.no_grad()
def _next_logits(model: nn.Module, tokens: list[int], seen: int | None) -> Tensor:
    device = next(model.parameters()).device
    if seen is None:
        logits: Tensor = model(torch.tensor([tokens], device=device))  # [1, s] -> [1, s, v]
    else:
        positions = torch.arange(seen, len(tokens), device=device)
        logits = model(torch.tensor([tokens[seen:]], device=device), input_pos=positions)
    return logits[0, -1]


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


@contextmanager
def _caches(model: nn.Module, wanted: bool) -> Iterator[bool]:
    if not (wanted and isinstance(model, CachingModel)):
        yield False
        return
    caching = cast("CachingModel", model)
    borrowed = caching.caches_are_enabled()
    if borrowed:
        caching.reset_caches()
    else:
        caching.setup_caches(1)
    try:
        yield True
    finally:
        caching.reset_caches() if borrowed else caching.delete_caches()


def _checked_count(model: nn.Module, prompt: list[int], asked: int | None) -> int | None:
    if not prompt:
        raise InputError("the prompt is empty; there must be a token to go on from.", hint="a prompt of one character")
    if asked is not None and asked < 0:
        raise InputError(f"{asked} new tokens are asked for; it must be 0 or more.", asked_by="max_new_tokens")
    spec = getattr(getattr(model, "plan", None), "spec", None)
    if spec is None:
        return asked
    unknown = [token for token in prompt if not 0 <= token < spec.vocab_size]
    if unknown:
        raise InputError(f"the prompt holds the id {unknown[0]}; the model's are 0 to {spec.vocab_size - 1}.")
    room = spec.max_sequence_length - len(prompt)
    if room < (1 if asked is None else asked):
        raise InputError(
            f"the prompt has {len(prompt)} tokens and {asked or 'some'} more are asked for; "
            f"the model's sequences have at most {spec.max_sequence_length}.",
            hint="a shorter prompt" if room < 1 else f"a shorter prompt, or at most {room} new tokens",
            room=room,
        )
    return room if asked is None else asked
