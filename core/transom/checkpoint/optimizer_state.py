"""An optimizer's state under the names of the parameters it belongs to."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torch.optim import Optimizer

from transom.checkpoint.model_state import mismatch

__all__ = ["optimizer_tensors", "state_to_put"]


def optimizer_tensors(model: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """Collect an optimizer's state.

    Args:
        model: whose parameters it trains.
        optimizer: of which each parameter's state consists of tensors, as AdamW's does.

    Returns:
        the tensors, as ``PARAMETER.ENTRY``: ``layers.0.mlp.linear_fc1.weight.exp_avg``.
    """
    return {
        f"{name}.{entry}": value
        for name, parameter in model.named_parameters()
        for entry, value in optimizer.state.get(parameter, {}).items()
    }


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
    for key, value in stored.items():
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
