"""A model's weights under their canonical names; parameters that are one are stored once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from transom.checkpoint.layout_map import LayoutMap, fill
from transom.checkpoint.module_layout import from_canonical, own_tensors, to_canonical
from transom.checkpoint.weight_files import NamedWeights
from transom.errors import CheckpointError

__all__ = [
    "Placement",
    "differences",
    "fitted",
    "mismatch",
    "model_outlines",
    "model_tensors",
    "put_tensors",
    "tensors_to_put",
    "weights_to_put",
]


@dataclass(frozen=True)
class Placement:
    """One of a model's tensors, and what belongs there.

    Args:
        place: the model's tensor.
        tensors: where its contents are looked up when it is its turn.
        name: under which they are found there.
    """

    place: Tensor
    tensors: Mapping[str, Tensor]
    name: str


def model_tensors(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Collect the weights and persistent buffers of a model.

    Args:
        model: any module.

    Returns:
        the tensors by canonical name, each stored once; and for every further name of one of them, the name that it
        stands under.
    """
    tensors: dict[str, Tensor] = {}
    tied: dict[str, str] = {}
    owners: dict[tuple[object, ...], str] = {}
    for name, tensor in to_canonical(model, own_tensors(model)).items():
        owner = owners.setdefault(_identity(name, tensor), name)
        if owner == name:
            tensors[name] = tensor
        else:
            tied[name] = owner
    return tensors, tied


def weights_to_put(
    model: nn.Module, stored: Mapping[str, Tensor], tied: Mapping[str, str], *, source: str
) -> Iterable[Placement]:
    """Match stored tensors with those of a model, completely or not at all.

    Args:
        model: the model they are for.
        stored: tensors by canonical name.
        tied: further names of stored tensors.
        source: where they come from, for the error.

    Returns:
        each of the model's tensors with what belongs there, for `put_tensors`.

    Raises:
        CheckpointError: tensors are missing, left over or of another shape or kind; it lists them all.
    """
    given = dict(stored) | {name: stored[owner] for name, owner in tied.items() if owner in stored}
    problems = differences(model_outlines(model), given)
    _, same = model_tensors(model)
    problems += [
        f"{name} and {owner} are one parameter of the model, and two in the checkpoint"
        for name, owner in same.items()
        if name in given and owner in given and not _equal(given[name], given[owner])
    ]
    if problems:
        raise mismatch(source, "the weights are not this model's", problems)
    return tensors_to_put(model, given)


def model_outlines(model: nn.Module) -> dict[str, Tensor]:
    """Give shape and dtype of a model's weights and persistent buffers: meta tensors by canonical name."""
    return dict(to_canonical(model, {name: tensor.to("meta") for name, tensor in own_tensors(model).items()}))


def differences(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> list[str]:
    """Say which tensors are missing, left over, or of another shape or kind.

    Args:
        wanted: by name; their numbers are not looked at, so they may be outlines.
        given: likewise.

    Returns:
        a line each.
    """
    problems = [f"{name} is missing" for name in wanted if name not in given]
    problems += [f"{name} has no place in the model" for name in given if name not in wanted]
    for name in wanted.keys() & given.keys():
        problems += _misfits(name, wanted[name], given[name])
    return problems


def fitted(
    weights: NamedWeights,
    layout: LayoutMap,
    outlines: Mapping[str, Tensor],
    *,
    problems: Sequence[str] = (),
    source: str,
    what: str,
) -> Mapping[str, Tensor]:
    """Bring weights of another layout into the canonical one, completely or not at all.

    Args:
        weights: by their names there.
        layout: from there.
        outlines: what the model needs, by canonical name: tensors on the meta device.
        problems: what is known to be wrong already.
        source: where the weights come from, for the error.
        what: the error's sentence.

    Returns:
        a tensor for each canonical name, made when it is looked up.

    Raises:
        CheckpointError: weights are missing, left over or of another shape or kind; it tells them all, by their names
            there.
    """
    found = [*problems, *differences(layout.backward(outlines), weights.outlines())]
    if found:
        raise mismatch(source, what, found, hint="the whole checkpoint, of the model that is described")
    return layout.forward(weights)


def tensors_to_put(model: nn.Module, canonical: Mapping[str, Tensor]) -> Iterator[Placement]:
    """Give each of a model's tensors, once, and what belongs there, which is looked up when it is its turn.

    Args:
        model: the model they are for.
        canonical: a tensor that fits for every canonical name of the model.

    Returns:
        them, for `put_tensors`.
    """
    fitting = from_canonical(model, canonical)
    once: dict[tuple[object, ...], tuple[str, Tensor]] = {}
    for name, tensor in own_tensors(model).items():
        once.setdefault(_identity(name, tensor), (name, tensor))
    return (Placement(tensor, fitting, name) for name, tensor in once.values())


def put_tensors(placements: Iterable[Placement]) -> None:
    """Copy what belongs to each of a model's tensors into it, without memory in between where layouts allow it."""
    with torch.no_grad():
        for each in placements:
            fill(each.place, each.tensors, each.name)


def mismatch(
    source: str, what: str, problems: list[str], *, hint: str = "build the model from the checkpoint's own spec"
) -> CheckpointError:
    """Make the one error that lists everything that does not fit."""
    shown = sorted(problems)[:20] + ([f"... and {len(problems) - 20} more"] if len(problems) > 20 else [])
    return CheckpointError(
        f"{what}: {len(problems)} difference{'s' if len(problems) > 1 else ''}; nothing was loaded.",
        asked_by=source,
        failed=shown,
        hint=hint,
        problems=tuple(sorted(problems)),
    )


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
