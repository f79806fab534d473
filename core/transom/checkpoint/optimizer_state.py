"""An optimizer's state under the names of the parameters it belongs to."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torch.optim import Optimizer

from transom.checkpoint.model_state import mismatch
from transom.checkpoint.module_layout import from_canonical, to_canonical
from transom.errors import CheckpointError

__all__ = ["optimizer_tensors", "state_to_put"]


def optimizer_tensors(model: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """Collect an optimizer's state.

    Args:
        model: whose parameters it trains.
        optimizer: of which each parameter's state consists of tensors, as AdamW's does.

    Returns:
        the tensors, as ``PARAMETER.ENTRY`` with canonical names: ``layers.0.mlp.linear_fc1.weight.exp_avg``.

    Raises:
        CheckpointError: parameters that are one canonical parameter have taken different numbers of steps.
    """
    parameters = dict(model.named_parameters())
    kept = [(name, optimizer.state.get(parameter, {})) for name, parameter in parameters.items()]
    found: dict[str, Tensor] = {}
    for entry in dict.fromkeys(entry for _, state in kept for entry in state):
        values = {name: state[entry] for name, state in kept if entry in state}
        is_number = all(value.ndim == 0 for value in values.values())
        own = {name: _spread(value, parameters[name]) for name, value in values.items()}
        for name, value in to_canonical(model, own, moments=True).items():
            found[f"{name}.{entry}"] = _gathered(f"{name}.{entry}", value) if is_number else value
    return found


def state_to_put(
    model: nn.Module, optimizer: Optimizer, stored: Mapping[str, Tensor], *, source: str
) -> dict[Tensor, dict[str, Tensor]]:
    """Match stored state with the parameters of an optimizer, completely or not at all.

    Args:
        model: whose parameters it trains.
        optimizer: the optimizer, fresh or not; it is not changed.
        stored: as `optimizer_tensors` gives it.
        source: where it comes from, for the error.

    Returns:
        the state of each parameter, for ``optimizer.state.update``.

    Raises:
        CheckpointError: state is missing, left over or of another shape; it lists it all.
    """
    trained = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    names = {name: parameter for name, parameter in model.named_parameters() if id(parameter) in trained}
    found: dict[Tensor, dict[str, Tensor]] = {}
    problems = []
    for key, value in _own_state(model, stored).items():
        name, _, entry = key.rpartition(".")
        if name not in names:
            problems.append(f"{key} belongs to no parameter")
        elif value.ndim and value.shape != names[name].shape:
            problems.append(f"{key} has shape {list(value.shape)}; the parameter's is {list(names[name].shape)}")
        else:
            parameter = names[name]
            # AdamW counts its steps on the CPU, whatever the parameter's device.
            found.setdefault(parameter, {})[entry] = value.to(parameter.device if value.ndim else "cpu", copy=True)
    # A parameter that never had a gradient has no state at all; none has a part of it.
    entries = {entry for state in found.values() for entry in state}
    problems += [
        f"{name}.{entry} is missing" for name, p in names.items() if p in found for entry in entries - found[p].keys()
    ]
    if problems:
        raise mismatch(source, "the optimizer's state is not this model's", problems)
    return found


def _own_state(model: nn.Module, stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Bring stored state under the names of the model's own parameters; what fits none stays as it is."""
    outlines = to_canonical(model, {name: p.to("meta") for name, p in model.named_parameters()})
    entries: dict[str, dict[str, Tensor]] = {}
    for key, value in stored.items():
        name, _, entry = key.rpartition(".")
        entries.setdefault(entry, {})[name] = value
    found: dict[str, Tensor] = {}
    for entry, values in entries.items():
        is_number = all(value.ndim == 0 for value in values.values())
        canonical = {name: _spread(value, outlines.get(name, value)) for name, value in values.items()}
        for name, value in from_canonical(model, canonical, moments=True).items():
            found[f"{name}.{entry}"] = _gathered(f"{name}.{entry}", value) if is_number else value
    return found


def _spread(value: Tensor, parameter: Tensor) -> Tensor:
    """Give a number, such as a count of steps, to every element of its parameter, so that layouts turn it with them."""
    return value if value.ndim else value.expand(parameter.shape)


def _gathered(key: str, value: Tensor) -> Tensor:
    """Take the one number back that every element has."""
    number = value[(0,) * value.ndim]
    if any(value.stride()) and not bool((value == number).all()):
        raise CheckpointError(
            f"{key} is {float(value.min())} and {float(value.max())} in parts of one parameter.",
            hint="train all of them in every step",
            key=key,
        )
    return number
