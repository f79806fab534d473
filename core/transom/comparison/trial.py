"""One implementation at work: what it computes, and what is timed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from transom.comparison.place import Call, tensors_in

__all__ = ["Results", "Trial"]


@dataclass(frozen=True)
class Results:
    """What a module computed.

    Args:
        outputs: of the forward pass.
        gradients: of floating inputs and parameters; `None` in mode ``"infer"``.
        changed_inputs: whether it wrote into what it was given.
    """

    outputs: list[Tensor]
    gradients: list[Tensor] | None
    changed_inputs: bool


class Trial:
    """A module and how it is called.

    Args:
        module: of one implementation.
        call: what reaches it; it is called with copies.
        trains: gradients are computed too.
        compiles: the module is compiled.
    """

    def __init__(self, module: nn.Module, call: Call, *, trains: bool, compiles: bool) -> None:
        self._module = module
        self._given, self._call = call, call.copied()
        self._trains = trains
        self._run = torch.compile(module, dynamic=False) if compiles else module

    def results(self) -> Results:
        """Run without dropout, for what is dropped differs, and is no mistake; then once as it will be timed."""
        self._module.eval()
        outputs = [each.clone() for each in self.forward()]
        changed = not self._call.is_like(self._given)
        self._call = self._given.copied()
        gradients = self.forward_and_backward() if self._trains else None
        changed = changed or not self._call.is_like(self._given)
        self._call = self._given.copied()
        self._module.train(self._trains)
        if self._trains:
            self.forward_and_backward()
        return Results(outputs, gradients, changed)

    def forward(self) -> list[Tensor]:
        """Run the forward pass, without gradients."""
        with torch.no_grad():
            return list(tensors_in(self._call.on(self._run)))

    def forward_and_backward(self) -> list[Tensor]:
        """Give the gradients of inputs and parameters, when a fixed gradient reaches each output."""
        targets = [*self._call.inputs(), *(p for p in self._module.parameters() if p.requires_grad)]
        outputs = [each for each in tensors_in(self._call.on(self._run)) if each.requires_grad]
        if not outputs or not targets:
            return [torch.zeros_like(each) for each in targets]
        found = torch.autograd.grad(
            outputs, targets, [_ramp(each) for each in outputs], allow_unused=True, materialize_grads=True
        )
        return list(found)


def _ramp(like: Tensor) -> Tensor:
    return torch.linspace(-1.0, 1.0, like.numel(), device=like.device).view_as(like).to(like.dtype)
