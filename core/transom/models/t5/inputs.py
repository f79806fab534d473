"""What T5 refuses to start from: missing or misshapen ids, hidden states of the wrong stage."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from transom.errors import InputError

__all__ = ["checked_ids", "encoded", "stage_inputs"]


def checked_ids(name: str, ids: Tensor | None, longest: int | None) -> Tensor:
    """Refuse what are no token ids.

    Args:
        name: of the argument.
        ids: integer ids ``[b, s]``.
        longest: most of them; `None` = any number.

    Returns:
        the ids.

    Raises:
        InputError: with what was given.
    """
    if ids is None or ids.dim() != 2 or ids.is_floating_point():
        got = "None" if ids is None else f"{ids.dtype} {list(ids.shape)}"
        raise InputError(f"{name} are {got}; integer ids of shape [b, s] are needed.", asked_by=f"T5Model({name}=...)")
    if longest is not None and ids.shape[1] > longest:
        raise InputError(
            f"{ids.shape[1]} {name} are more than max_sequence_length, {longest}.",
            asked_by=f"T5Model({name}=...)",
            hint="shorten the sequence, or build the model with a larger max_sequence_length",
        )
    return ids


def encoded(hidden: Tensor | None) -> Tensor:
    """Refuse to give the encoder's hidden states where there are none.

    Raises:
        InputError: there are none.
    """
    if hidden is None:
        raise InputError("this stage has no encoder.", hint="pass encoder_hidden_states")
    return hidden


def stage_inputs(given: Tensor | Sequence[Tensor], *, has_encoder: bool) -> tuple[Tensor | None, Tensor]:
    """Tell apart what the pipeline stage before returned.

    Args:
        given: one or two tensors.
        has_encoder: the stage has encoder layers.

    Returns:
        the decoder's hidden states, if they are there, and the encoder's.

    Raises:
        InputError: another number of tensors.
    """
    tensors = [given] if isinstance(given, Tensor) else list(given)
    most = 1 if has_encoder else 2
    if not 1 <= len(tensors) <= most:
        raise InputError(
            f"{len(tensors)} tensors are given to a stage that takes {'1' if has_encoder else '1 or 2'}.",
            asked_by="T5Model.set_input_tensor",
            hint="the encoder's hidden states; on a later decoder stage the decoder's before them",
        )
    return tensors[0] if len(tensors) == 2 else None, tensors[-1]
