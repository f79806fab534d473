"""Who is compared: the implementations of a slot that can serve a model, each at the same place of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from transom.composition import build
from transom.errors import InputError, ResolutionError, TransomError, UserConfigError
from transom.registry.names import is_name, split_reference
from transom.registry.registry import default_registry, list_implementations
from transom.slots import SLOT_ALIASES
from transom.specs.plan import Plan, plan
from transom.specs.spec import ModelSpec

__all__ = ["Entrants", "entrants", "reason"]


@dataclass(frozen=True, kw_only=True)
class Entrants:
    """Implementations of a slot at one place of a model, all with the same weights.

    Args:
        model: built with the first of them, the reference.
        path: of the place.
        modules: what fills it, by name, the reference first.
        strangers: those whose weights are others than the reference's, and how.
        refused: who cannot serve, and why.
        dtype: of the parameters.
    """

    model: nn.Module
    path: str
    modules: Mapping[str, nn.Module]
    strangers: Mapping[str, str]
    refused: dict[str, str]
    dtype: str


def entrants(
    spec: ModelSpec, slot: str, asked: Sequence[str], settings: Mapping[str, Any], use: Mapping[str, str]
) -> Entrants:
    """Plan and build a model with each implementation.

    Args:
        spec: of the model.
        slot: whose implementations are meant; an alias stands for several.
        asked: their names, the reference first; empty = everybody's, core's own first.
        settings: of `transom.plan`: ``mode``, ``device`` and ``dtype``.
        use: entries over the spec's ``use``.

    Raises:
        InputError: nobody can serve, a name is none, or the slot's modules are made when a model is used.
        UnknownImplementationError: a name that nothing installed has.
        SpecError: the spec is wrong, or its model has no place of this slot.
    """
    refs = _references(slot, asked)
    plans, errors = _plans(spec, slot, refs, settings, use)
    refused = {name: reason(error) for name, error in errors.items()}
    if not plans and errors and not any(isinstance(each, ResolutionError) for each in errors.values()):
        raise next(iter(errors.values()))
    path = _common_path(plans, refs, SLOT_ALIASES.get(slot, (slot,)), refused)
    found = _built(plans, path, settings["device"], refused)
    if found is None:
        raise InputError(
            f"no implementation of {slot} can serve {spec.name} here.",
            failed=[f"{name}: {why}" for name, why in refused.items()],
            hint="another --device, --dtype or --mode, or install what is missing",
            slot=slot,
        )
    return found


def reason(error: BaseException) -> str:
    """Say in one line why something could not be done."""
    if isinstance(error, ResolutionError):
        return "; ".join(line.partition(": ")[2] for line in error.failed) or error.what
    if isinstance(error, TransomError):
        return error.what.rstrip(".")
    return f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}".rstrip(": ")


def _references(slot: str, asked: Sequence[str]) -> dict[str, str]:
    """Give each implementation's qualified name by the name that it goes by, each implementation once."""
    listed, registry = SLOT_ALIASES.get(slot, (slot,))[0], default_registry()
    installed = {each.ref: each for each in list_implementations(listed)}
    if registry.slot(listed).late:
        raise InputError(
            f"a {slot} is made when a model is used: none of its modules has a place that could be timed.",
            available=[name for name in registry.slots if not registry.slot(name).late],
            slot=slot,
        )
    default = f"transom/{registry.slot(listed).default}"
    refs: dict[str, str] = {}
    for name in asked or sorted(installed, key=lambda ref: ref != default):
        if not is_name(split_reference(name)[1]):
            raise InputError(
                f"{name!r} is not one implementation's name.",
                available=list(installed),
                hint="--impl A,B names each by itself",
                name=name,
            )
        ref = registry.get(listed, name, asked_by="implementations (--impl)").ref
        if ref not in refs.values():
            refs[name] = ref
    return refs


def _plans(
    spec: ModelSpec, slot: str, refs: Mapping[str, str], settings: Mapping[str, Any], use: Mapping[str, str]
) -> tuple[dict[str, Plan], dict[str, TransomError]]:
    """Plan the model with each implementation: the plans, and why others cannot serve."""
    plans: dict[str, Plan] = {}
    errors: dict[str, TransomError] = {}
    for name in refs:
        try:
            plans[name] = plan(spec, use={**use, slot: name}, **settings)
        except UserConfigError:
            raise
        except TransomError as error:
            errors[name] = error
    return plans, errors


def _common_path(
    plans: dict[str, Plan], refs: Mapping[str, str], slots: Sequence[str], refused: dict[str, str]
) -> str | None:
    """Give the first place that each fills in its plan; who fills none is taken out, and so is who fills another."""
    common: list[str] | None = None
    for name, made in list(plans.items()):
        filled = [
            node.path
            for node in made.nodes()
            if node.slot in slots and node.within is None and node.resolution.chosen.ref == refs[name]
        ]
        shared = filled if common is None else [path for path in common if path in filled]
        if shared:
            common = shared
        else:
            del plans[name]
            refused[name] = "other entries of the spec fill the places that are compared"
    return None if common is None else common[0]


def _built(plans: Mapping[str, Plan], path: str | None, device: str, refused: dict[str, str]) -> Entrants | None:
    """Build a model of each plan, one after another: of all but the first, only the place is kept."""
    reference: nn.Module | None = None
    modules: dict[str, nn.Module] = {}
    strangers: dict[str, str] = {}
    for name, made in plans.items():
        try:
            model = build(made, seed=0, device=device)
        except Exception as error:  # a plugin may raise whatever it likes
            refused[name] = f"it cannot be built: {reason(error)}"
            continue
        if reference is None:
            reference = model
            _vary(model.get_submodule(path or ""))
        if model is not reference and (others := _other_weights(model, reference)):
            strangers[name] = f"its weights are others than those of {next(iter(modules))}: {others}"
        elif model is not reference:
            model.load_state_dict(reference.state_dict())
        modules[name] = model.get_submodule(path or "")
    if reference is None or path is None:
        return None
    dtype = plans[next(iter(modules))].context.dtype
    return Entrants(model=reference, path=path, modules=modules, strangers=strangers, refused=refused, dtype=dtype)


def _vary(module: nn.Module) -> None:
    """Move parameters that are all alike, biases of 0 and scales of 1: who forgets such a one would not be seen."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for each in module.parameters():
            if bool((each == each.flatten()[:1]).all()):
                each.add_(0.1 * torch.randn(each.shape, generator=generator).to(each))


def _other_weights(model: nn.Module, reference: nn.Module) -> str:
    """Name a weight that is not the same in both; nothing where all are."""
    own, wanted = (
        {name: list(each.shape) if hasattr(each, "shape") else None for name, each in one.state_dict().items()}
        for one in (model, reference)
    )
    for name in [*own, *wanted]:
        if own.get(name, "absent") != wanted.get(name, "absent"):
            return f"{name} is {own.get(name, 'absent')} and not {wanted.get(name, 'absent')}"
    return ""
