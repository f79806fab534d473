"""What generation refuses before it begins: prompts that are empty, too long, or not the model's."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from torch import Tensor, nn

from transom.errors import InputError
from transom.inference.decoding import is_encoder_decoder, longest_sequence

if TYPE_CHECKING:
    from transom.inference.settings import BeamSettings, GenerationSettings

__all__ = ["Room", "checked_prompts", "checked_settings", "room_of"]

S = TypeVar("S", "BeamSettings", "GenerationSettings")


@dataclass(frozen=True)
class Room:
    """How far a batch may grow.

    Args:
        new_tokens: of each row; `None` = no end.
        length: most positions of a row that a cache must hold; `None` = as the model has it.
    """

    new_tokens: tuple[int | None, ...]
    length: int | None


def checked_settings(settings: object, kind: type[S], *, asked_by: str) -> S:
    """Refuse settings of another class; return those that are right, and the defaults for `None`.

    Raises:
        InputError: with the class that is needed.
    """
    if settings is None:
        return kind()
    if not isinstance(settings, kind):
        raise InputError(
            f"settings are a {type(settings).__name__}; a {kind.__name__} is needed.",
            asked_by=asked_by,
            hint=f"{kind.__name__}(max_new_tokens=...), from transom.inference",
            name="settings",
            value=settings,
        )
    return settings


def checked_prompts(
    model: nn.Module, prompts: Iterable[Sequence[int] | Tensor], settings: GenerationSettings | BeamSettings
) -> list[list[int]]:
    """Refuse prompts that are not ids of the model, and settings that are not for it; return the ids.

    Raises:
        InputError: with the number of the prompt where there are several.
    """
    _check_start(model, settings.start_id)
    rows = [[int(token) for token in prompt] for prompt in _each(prompts)]
    if not rows:
        raise InputError("there are no prompts.", hint="a list of lists of ids")
    for number, row in enumerate(rows):
        if not row:
            raise InputError(
                f"{_name(number, rows)} is empty; there must be a token to go on from.",
                hint="a prompt of one token",
            )
        _check_ids(model, row, _name(number, rows))
    return rows


def room_of(model: nn.Module, prompts: list[list[int]], settings: GenerationSettings | BeamSettings) -> Room:
    """Say how far each prompt may go on.

    Raises:
        InputError: one is too long, or more tokens are asked for than there is room for; with that room.
    """
    most, asked = longest_sequence(model), settings.max_new_tokens
    if is_encoder_decoder(model):
        _check_read(prompts, most)
        lengths = [1] * len(prompts)
    else:
        lengths = [len(prompt) for prompt in prompts]
    if most is None:
        return Room((asked,) * len(prompts), None if asked is None else max(lengths) + asked)
    for number, length in enumerate(lengths):
        _check_room(_name(number, prompts), length, most, asked)
    new = tuple(most - length if asked is None else asked for length in lengths)
    # The last token of a row is seen by nobody: it needs no room.
    needed = max(length + count - 1 for length, count in zip(lengths, new, strict=True))
    return Room(new, max(needed, *lengths, 1))


def _each(prompts: Iterable[Sequence[int] | Tensor]) -> list[Sequence[int] | Tensor]:
    rows = list(prompts)
    if any(isinstance(row, int) or (isinstance(row, Tensor) and row.dim() == 0) for row in rows):
        raise InputError("prompts are one row of ids, not a batch of them.", hint="[ids], a list of one prompt")
    return rows


def _name(number: int, prompts: Sequence[object]) -> str:
    return "the prompt" if len(prompts) == 1 else f"prompt {number}"


def _check_ids(model: nn.Module, row: list[int], name: str) -> None:
    spec = getattr(getattr(model, "plan", None), "spec", None)
    if spec is None:
        return
    unknown = [token for token in row if not 0 <= token < spec.vocab_size]
    if unknown:
        raise InputError(f"{name} holds the id {unknown[0]}; the model's are 0 to {spec.vocab_size - 1}.")


def _check_room(name: str, length: int, most: int, asked: int | None) -> None:
    room = most - length
    if room < (1 if asked is None else asked):
        raise InputError(
            f"{name} has {length} tokens and {asked or 'some'} more are asked for; "
            f"the model's sequences have at most {most}.",
            hint="a shorter prompt" if room < 1 else f"a shorter prompt, or at most {room} new tokens",
            room=room,
        )


def _check_read(prompts: list[list[int]], most: int | None) -> None:
    for number, prompt in enumerate(prompts):
        if most is not None and len(prompt) > most:
            raise InputError(
                f"{_name(number, prompts)} has {len(prompt)} tokens; the model reads at most {most}.",
                hint="a shorter prompt",
                room=most - len(prompt),
            )


def _check_start(model: nn.Module, start_id: int | None) -> None:
    if is_encoder_decoder(model) == (start_id is not None):
        return
    if start_id is None:
        what, hint = "the model writes a sequence of its own, and what it begins with is not said.", "start_id=0 for T5"
    else:
        what, hint = f"start_id is {start_id}, and the model goes on from the prompt itself.", "leave start_id out"
    raise InputError(what, asked_by="start_id", hint=hint, name="start_id", value=start_id)
