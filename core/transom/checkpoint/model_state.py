"""A model's weights under their canonical names; parameters that are one are stored once."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from transom.errors import CheckpointError

__all__ = ["model_tensors", "put_tensors", "weights_to_put"]


def model_tensors(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Collect the weights and persistent buffers of a model.

    Args:
        model: any module.

    Returns:
        the tensors by name, each stored once; and for every further name of one of them, the name that it stands under.
    """
    tensors: dict[str, Tensor] = {}
    tied: dict[str, str] = {}
    owners: dict[tuple[object, ...], str] = {}
    for name, tensor in _named(model).items():
        owner = owners.setdefault(_identity(name, tensor), name)
        if owner == name:
            tensors[name] = tensor
        else:
            tied[name] = owner
    return tensors, tied


def weights_to_put(
    model: nn.Module, stored: Mapping[str, Tensor], tied: Mapping[str, str], *, source: str
) -> list[tuple[Tensor, Tensor]]:
    """Match stored tensors with those of a model, completely or not at all.

    Args:
        model: the model they are for.
        stored: tensors by name.
        tied: further names of stored tensors.
        source: where they come from, for the error.

    Returns:
        pairs of the model's tensor and what belongs there, for `put_tensors`.

    Raises:
        CheckpointError: tensors are missing, left over or of another shape or kind; it lists them all.
    """
    given = dict(stored) | {name: stored[owner] for name, owner in tied.items() if owner in stored}
    wanted = _named(model)
    problems = [f"{name} is missing" for name in wanted if name not in given]
    problems += [f"{name} has no place in the model" for name in given if name not in wanted]
    for name in wanted.keys() & given.keys():
        problems += _misfits(name, wanted[name], given[name])
    owned, same = model_tensors(model)
    problems += [
        f"{name} and {owner} are one parameter of the model, and two in the checkpoint"
        for name, owner in same.items()
        if name in given and owner in given and not _equal(given[name], given[owner])
    ]
    if problems:
        raise mismatch(source, "the weights are not this model's", problems)
    return [(tensor, given[name]) for name, tensor in owned.items()]


def put_tensors(pairs: list[tuple[Tensor, Tensor]]) -> None:
    """Copy each pair's second tensor into its first."""
    with torch.no_grad():
        for place, value in pairs:
            place.copy_(value)


def mismatch(source: str, what: str, problems: list[str]) -> CheckpointError:
    """Make the one error that lists everything that does not fit."""
    shown = sorted(problems)[:20] + ([f"... and {len(problems) - 20} more"] if len(problems) > 20 else [])
    return CheckpointError(
        f"{what}: {len(problems)} difference{'s' if len(problems) > 1 else ''}; nothing was loaded.",
        asked_by=source,
        failed=shown,
        hint="build the model from the checkpoint's own spec",
        problems=tuple(sorted(problems)),
    )


def _named(model: nn.Module) -> dict[str, Tensor]:
    # Extra state is an implementation's own business and never needed to load.
    state: dict[str, Tensor] = model.state_dict(keep_vars=True)
    return {name: tensor for name, tensor in state.items() if not name.endswith("_extra_state")}


def _identity(name: str, tensor: Tensor) -> tuple[object, ...]:
    if tensor.numel() == 0 or tensor.is_meta:
        return (name,)
    return tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()


def _misfits(name: str, wanted: Tensor, given: Tensor) -> list[str]:
    if wanted.shape != given.shape:
        return [f"{name} has shape {list(given.shape)}; the model's is {list(wanted.shape)}"]
    if wanted.is_floating_point() != given.is_floating_point():
        return [f"{name} is {given.dtype}; the model's is {wanted.dtype}".replace("torch.", "")]
    return []


def _equal(one: Tensor, other: Tensor) -> bool:
    return one is other or torch.equal(one, other)
