"""What adapters have learned, in the weights or by itself."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from transom.errors import InputError

from transom_lora.linear import LoraLinear

__all__ = ["adapter_state", "merge", "unmerge"]


def adapter_state(model: nn.Module) -> dict[str, Tensor]:
    """Give the adapters' parameters alone, which are few: ``model.load_state_dict(state, strict=False)`` takes them.

    Args:
        model: with adapters.

    Returns:
        detached tensors by the names that they have in ``model.state_dict()``.
    """
    state: dict[str, Tensor] = {}
    for path, adapter in _adapters(model).items():
        prefix = f"{path}." if path else ""
        state |= {f"{prefix}{name}": getattr(adapter, name).detach() for name in ("lora_a", "lora_b")}
    return state


@torch.no_grad()
def merge(model: nn.Module) -> dict[str, LoraLinear]:
    """Add what the adapters have learned to the weights, and take the adapters out of the model.

    The model is then as if there had never been a hook: the same modules and names, and nothing to pay in a forward.

    Args:
        model: with adapters; it is changed.

    Returns:
        the adapters by path, for `unmerge`.

    Raises:
        InputError: the model has no adapters, or is itself one; or weights are kept in fewer bits, and nothing can be
            added to them.

    Example:
        >>> import transom
        >>> hook = {"hook": "lora", "options": {"rank": 2}}
        >>> model = transom.build(transom.load_spec("tiny-llama").to_dict() | {"hooks": [hook]})
        >>> len(merge(model)), sorted(model.state_dict()) == sorted(transom.build("tiny-llama").state_dict())
        (16, True)
    """
    adapters = _adapters(model)
    if not adapters or "" in adapters:
        what = "the model has no adapters to merge." if not adapters else "an adapter by itself cannot be merged."
        raise InputError(what, hint="pass the whole model, with adapters in it")
    if rounded := [path for path, adapter in adapters.items() if not isinstance(adapter.linear.weight, nn.Parameter)]:
        raise InputError(
            f"the weight of {rounded[0]} is kept in fewer bits, and nothing can be added to it.",
            hint="merge into the model as it was before, with adapter_state()",
        )
    for path, adapter in adapters.items():
        adapter.linear.weight += adapter.product()
        model.set_submodule(path, adapter.linear)
    return adapters


@torch.no_grad()
def unmerge(model: nn.Module, adapters: Mapping[str, LoraLinear]) -> None:
    """Undo `merge`, to the rounding of the weights' dtype.

    Args:
        model: whose adapters were merged; it is changed.
        adapters: what `merge` returned.

    Raises:
        InputError: a weight at one of the paths is not the one that was merged.
    """
    for path, adapter in adapters.items():
        if model.get_submodule(path) is not adapter.linear:
            raise InputError(
                f"what is at {path} is not the linear into which an adapter was merged.",
                hint="pass the model and the adapters of one call of merge(), once",
            )
    for path, adapter in adapters.items():
        adapter.linear.weight -= adapter.product()
        model.set_submodule(path, adapter)


def _adapters(model: nn.Module) -> dict[str, LoraLinear]:
    return {path: module for path, module in model.named_modules() if isinstance(module, LoraLinear)}
