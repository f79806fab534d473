"""One ordinary way to build and call an implementation: what the cases that hold for every slot are made from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor, nn

from transom.testing.agreement import Tensors, cast, fill_parameters
from transom.testing.subject import Subject

__all__ = ["Exercise", "Maker", "inputs_of", "total"]


class Maker(Protocol):
    """Makes the module of a layer, counted from 1, from the current random state."""

    def __call__(self, layer_number: int, device: str | None = None) -> nn.Module:
        """Make it; ``device`` `None` = the subject's."""
        ...


@dataclass(frozen=True)
class Exercise:
    """One ordinary way to build and call an implementation.

    Args:
        make: makes the module.
        inputs: makes named tensors on the CPU, floating ones in float64.
        run: calls the module with the inputs.
        constant: inputs that need no gradient.
        dtypes: of inputs that have another dtype than the module.
        fill: fills the parameters of a module that was made.
    """

    make: Maker
    inputs: Callable[[], Tensors]
    run: Callable[[nn.Module, Tensors], Tensors]
    constant: frozenset[str] = frozenset()
    dtypes: Mapping[str, str] = field(default_factory=dict)
    fill: Callable[[nn.Module], None] = fill_parameters

    def filled(self, layer_number: int = 1) -> nn.Module:
        """Make a module with random numbers in all parameters."""
        module = self.make(layer_number)
        self.fill(module)
        return module


def inputs_of(exercise: Exercise, subject: Subject) -> Tensors:
    """Make the inputs in the subject's dtype on its device, with gradients where they are wanted."""
    inputs = cast(exercise.inputs(), subject.dtype, subject.device, exercise.dtypes)
    for name, tensor in inputs.items():
        if subject.trains and tensor.is_floating_point() and name not in exercise.constant:
            tensor.requires_grad_()
    return inputs


def total(outputs: Tensors) -> Tensor:
    """Reduce outputs to one number that depends on each of them otherwise than linearly."""
    terms = [output.double().square().mean() + output.double().mean() for output in outputs.values()]
    return sum(terms[1:], terms[0])
