"""Compare implementations of a slot in place: in a model of one's own, with the inputs that reach it there."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from transom.comparison.place import Call, captured, tensors_in
from transom.comparison.timing import Times, interleaved
from transom.composition import build
from transom.errors import InputError, ResolutionError, SpecError
from transom.registry.registry import default_registry, list_implementations
from transom.slots import SLOT_ALIASES
from transom.specs.load import load_spec
from transom.specs.plan import Plan, plan
from transom.specs.spec import ModelSpec

__all__ = ["Comparison", "Outcome", "Shape", "compare"]

Shape = tuple[int, int]
"""Rows and tokens of a batch."""

_TOKENS = 128  # of a batch whose shape nobody chose


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What one implementation did at one shape.

    Args:
        name: its qualified name.
        forward: times of the forward pass.
        both: times of forward and backward pass; `None` in mode ``"infer"``.
        output_error: largest difference from the first implementation's outputs, relative to their largest element.
        gradient_error: likewise of all gradients, of inputs and parameters; `None` in mode ``"infer"``.
    """

    name: str
    forward: Times
    both: Times | None
    output_error: float
    gradient_error: float | None

    @property
    def counted(self) -> Times:
        """The times that decide who is faster."""
        return self.forward if self.both is None else self.both


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Implementations of a slot side by side.

    Args:
        slot: as it was asked for.
        path: of the place in the model.
        mode: ``"train"`` or ``"infer"``.
        device: type of the device.
        dtype: of the parameters.
        outcomes: by shape, the reference first.
        refused: who cannot serve, and why.
    """

    slot: str
    path: str
    mode: Literal["train", "infer"]
    device: str
    dtype: str
    outcomes: Mapping[Shape, tuple[Outcome, ...]]
    refused: Mapping[str, str]

    def order(self) -> tuple[str, ...]:
        """Name the implementations, the fastest first: by the geometric mean over the shapes of their ratios."""
        logs: dict[str, list[float]] = {}
        for outcomes in self.outcomes.values():
            for outcome in outcomes:
                logs.setdefault(outcome.name, []).append(math.log(outcome.counted.ratio(outcomes[0].counted)))
        return tuple(sorted(logs, key=lambda name: sum(logs[name])))


def compare(
    spec: str | Path | Mapping[str, Any] | ModelSpec,
    slot: str = "core_attention",
    *,
    implementations: Sequence[str] = (),
    shapes: Sequence[Shape] | None = None,
    mode: Literal["train", "infer"] = "train",
    device: str = "cpu",
    dtype: str | None = None,
    use: Mapping[str, str] | None = None,
    rounds: int = 7,
) -> Comparison:
    """Time implementations of a slot in a model, on random tokens, and compare what they compute.

    A model is built with each, all with the same weights. The first place of the slot is called with the inputs that
    reached it in the first model, so that only its own time counts. All take turns.

    Args:
        spec: as for `transom.load_spec`.
        slot: whose implementations are compared; ``linear`` = both linears.
        implementations: their names, the reference first; empty = core's own and every other that is installed.
        shapes: batches, as (rows, tokens); `None` = 1 x 128 and 8 x 128, with fewer tokens where the model takes fewer.
        mode: ``"train"`` compares gradients and times the backward pass too.
        device: type of the device.
        dtype: of the parameters; `None` = the spec's.
        use: other entries over the spec's ``use``.
        rounds: how often each is timed.

    Returns:
        the comparison; who cannot serve the model is in ``refused``, with the reason.

    Raises:
        InputError: nobody can serve, or a shape does not fit the model.
        SpecError: the spec is wrong, or its model has no place of this slot.
        UnknownImplementationError: a name that nothing installed has.

    Example:
        >>> found = compare("tiny-llama", "norm", implementations=["torch_norm"], shapes=[(1, 8)], rounds=2)
        >>> found.order(), found.outcomes[1, 8][0].output_error
        (('torch_norm',), 0.0)
    """
    given = load_spec(spec)
    if shapes is None:
        shapes = [(rows, min(_TOKENS, given.max_sequence_length)) for rows in (1, 8)]
    _check(given, shapes, rounds)
    plans, refused = _plans(given, slot, implementations, {"mode": mode, "device": device, "dtype": dtype}, use or {})
    if not plans:
        raise InputError(
            f"no implementation of {slot} can serve {given.name} here.",
            failed=[f"{name}: {why}" for name, why in refused.items()],
            hint="another --device, --dtype or --mode, or install what is missing",
            slot=slot,
        )
    paths = {name: _path_of(each, slot) for name, each in plans.items()}
    models = _models(plans, device)
    first = next(iter(plans.values()))
    return Comparison(
        slot=slot,
        path=next(iter(paths.values())),
        mode=mode,
        device=device,
        dtype=first.context.dtype,
        outcomes={shape: _outcomes(models, paths, given, shape, mode, device, rounds) for shape in shapes},
        refused=refused,
    )


def _check(spec: ModelSpec, shapes: Sequence[Shape], rounds: int) -> None:
    longest = spec.max_sequence_length
    for rows, tokens in shapes:
        if not (rows >= 1 and 1 <= tokens <= longest):
            raise InputError(
                f"a batch of {rows} x {tokens} tokens does not fit {spec.name}.",
                hint=f"--shapes {max(rows, 1)}x{min(max(tokens, 1), longest)}: at least 1 row, and 1 to {longest} "
                "tokens (its max_sequence_length)",
                shape=(rows, tokens),
            )
    if rounds < 1:
        raise InputError(f"{rounds} rounds measure nothing.", hint="at least 1, better 7", rounds=rounds)


def _plans(
    spec: ModelSpec, slot: str, asked: Sequence[str], settings: Mapping[str, Any], use: Mapping[str, str]
) -> tuple[dict[str, Plan], dict[str, str]]:
    """Plan the model with each implementation: the plans, and who cannot serve."""
    plans: dict[str, Plan] = {}
    refused: dict[str, str] = {}
    for name in asked or _installed(slot):
        try:
            plans[name] = plan(spec, use={**use, slot: name}, **settings)
        except ResolutionError as error:
            refused[name] = "; ".join(line.partition(": ")[2] for line in error.failed) or error.what
    return plans, refused


def _installed(slot: str) -> list[str]:
    """Name everybody who fills the slot, core's own first."""
    slots = SLOT_ALIASES.get(slot, (slot,))
    default = default_registry().slot(slots[0]).default
    refs = dict.fromkeys(each.ref for each in list_implementations(slots[0]))
    return sorted(refs, key=lambda ref: ref != f"transom/{default}")


def _path_of(made: Plan, slot: str) -> str:
    slots = SLOT_ALIASES.get(slot, (slot,))
    for node in made.nodes():
        if node.slot in slots:
            return node.path
    raise SpecError(
        f"{made.spec.name} has no place of the slot {slot}.",
        available=sorted({node.slot for node in made.nodes()}),
        path=slot,
        file=None,
        line=None,
    )


def _models(plans: Mapping[str, Plan], device: str) -> dict[str, nn.Module]:
    """Build a model from each plan, all with the weights of the first."""
    models = {name: build(made, seed=0, device=device) for name, made in plans.items()}
    first, *others = models.values()
    for model in others:
        model.load_state_dict(first.state_dict())
    return models


def _outcomes(
    models: Mapping[str, nn.Module],
    paths: Mapping[str, str],
    spec: ModelSpec,
    shape: Shape,
    mode: Literal["train", "infer"],
    device: str,
    rounds: int,
) -> tuple[Outcome, ...]:
    modules = {name: model.get_submodule(paths[name]) for name, model in models.items()}
    reference, trains = next(iter(models)), mode == "train"
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(spec.vocab_size, shape, generator=generator).to(device)
    call = captured(modules[reference], lambda: models[reference](tokens), trains=trains)
    forward = {name: _forward(module, call) for name, module in modules.items()}
    both = {name: _forward_and_backward(module, call) for name, module in modules.items()} if trains else {}
    for module in modules.values():
        module.eval()  # what is dropped differs, and is no mistake
    results = {name: run() for name, run in forward.items()}
    gradients = {name: run() for name, run in both.items()}
    for module in modules.values():
        module.train(trains)
    forward_times = interleaved(forward, rounds=rounds, device=device)
    both_times = interleaved(both, rounds=rounds, device=device) if both else {}
    return tuple(
        Outcome(
            name=name,
            forward=forward_times[name],
            both=both_times.get(name),
            output_error=_difference(results[name], results[reference]),
            gradient_error=_difference(gradients[name], gradients[reference]) if trains else None,
        )
        for name in modules
    )


def _forward(module: nn.Module, call: Call) -> Callable[[], list[Tensor]]:
    def run() -> list[Tensor]:
        with torch.no_grad():
            return list(tensors_in(call.on(module)))

    return run


def _forward_and_backward(module: nn.Module, call: Call) -> Callable[[], list[Tensor]]:
    """Give the gradients of inputs and parameters, when a fixed gradient reaches each output."""
    targets = [*call.inputs(), *(p for p in module.parameters() if p.requires_grad)]

    def run() -> list[Tensor]:
        outputs = [each for each in tensors_in(call.on(module)) if each.requires_grad]
        found = torch.autograd.grad(
            outputs, targets, [_ramp(each) for each in outputs], allow_unused=True, materialize_grads=True
        )
        return list(found)

    return run


def _ramp(like: Tensor) -> Tensor:
    return torch.linspace(-1.0, 1.0, like.numel(), device=like.device).view_as(like).to(like.dtype)


def _difference(found: Sequence[Tensor], reference: Sequence[Tensor]) -> float:
    """Give the largest difference, relative to the largest element of the reference."""
    errors = [0.0]
    for one, other in zip(found, reference, strict=True):
        largest = float(other.double().abs().max()) if other.numel() else 0.0
        error = float((one.double() - other.double()).abs().max()) if other.numel() else 0.0
        errors.append(error / largest if largest else error)
    return max(errors)
