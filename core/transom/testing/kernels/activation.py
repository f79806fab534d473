"""Cases of the activation slot."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from transom.slots.activation import ActivationRequest
from transom.slots.request import BuildContext, Request
from transom.testing.agreement import Agreement, Tensors, agreement_cases
from transom.testing.case import Case
from transom.testing.exercise import Exercise
from transom.testing.module_cases import module_cases
from transom.testing.subject import Subject, config_for

__all__ = ["cases"]

_ROOT = math.sqrt(2 / math.pi)


def _sigmoid(x: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-x))


_FORMULAS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "gelu": lambda x: x * (1 + torch.erf(x / math.sqrt(2))) / 2,
    "gelu_tanh": lambda x: x / 2 * (1 + torch.tanh(_ROOT * (x + 0.044715 * x**3))),
    "silu": lambda x: x * _sigmoid(x),
    "relu": lambda x: torch.where(x > 0, x, 0),
    "squared_relu": lambda x: torch.where(x > 0, x, 0) ** 2,
    "quick_gelu": lambda x: x * _sigmoid(1.702 * x),
    "sigmoid": _sigmoid,
}


@dataclass(frozen=True)
class _Call:
    """One activation: ``act(min(gate, clamp)) * (clamp(up) + offset)`` where it is gated."""

    name: str
    shows: str
    function: str
    gated: bool = False
    clamp: float | None = None
    offset: float = 0.0
    fused: bool = False
    transposed: bool = False
    principal: bool = False

    @property
    def features(self) -> frozenset[str]:
        asked = {"gated": self.gated, "clamp": self.clamp is not None, "glu_offset": self.offset != 0}
        return frozenset({self.function, *(name for name, is_asked in asked.items() if is_asked)})


def _calls(function: str) -> Iterator[_Call]:
    yield _Call(function, f"{function} agrees", function, principal=True)
    yield _Call(f"{function}_gated", f"{function} of the first half, times the second", function, True, principal=True)
    yield _Call(f"{function}_clamped", "gate is clamped from above, up from both sides", function, True, clamp=0.7)
    yield _Call(f"{function}_offset", "a constant is added to up", function, True, offset=1.0)
    yield _Call(f"{function}_both", "the offset is added after clamping", function, True, clamp=0.7, offset=1.0)
    yield _Call(f"{function}_fusion", "bias_activation_fusion changes no result", function, fused=True)
    yield _Call(f"{function}_strided", "an input with other strides", function, transposed=True)


def cases(subject: Subject) -> Iterator[Case]:
    """Make the cases of an activation."""
    calls = tuple(call for function in _FORMULAS for call in _calls(function))
    yield from agreement_cases(subject, tuple(_agreement(call) for call in calls))
    function = next((each for each in _FORMULAS if each in subject.features), "gelu")
    yield from module_cases(subject, _exercise(subject, next(_calls(function))))


def _agreement(call: _Call) -> Agreement:
    return Agreement(
        name=call.name,
        shows=call.shows,
        request=partial(_request, call),
        make=partial(_make, call),
        inputs=_inputs,
        run=partial(_run, call),
        expected=partial(_expected, call),
        features=call.features,
        principal=call.principal,
    )


def _request(call: _Call, context: BuildContext) -> ActivationRequest:
    return ActivationRequest(context=context, features=call.features, function=call.function, gated=call.gated)


def _make(call: _Call, subject: Subject, request: Request, *, on: str | None = None) -> nn.Module:
    config = config_for(
        activation_func=call.function,
        gated_linear_unit=call.gated,
        activation_func_clamp_value=call.clamp,
        glu_linear_offset=call.offset,
        bias_activation_fusion=call.fused,
        use_te_activation_func=True,
        params_dtype=request.context.dtype,
    )
    return subject.build(request, on=on, config=config)


def _inputs() -> Tensors:
    return {"x": 2 * torch.randn(2, 5, 32, dtype=torch.float64)}


def _run(call: _Call, module: nn.Module, inputs: Tensors) -> Tensors:
    x = inputs["x"]
    return {"output": module(x.transpose(0, -1).contiguous().transpose(0, -1) if call.transposed else x)}


def _expected(call: _Call, state: Tensors, inputs: Tensors) -> Tensors:
    act, x = _FORMULAS[call.function], inputs["x"]
    if not call.gated:
        return {"output": act(x)}
    gate, up = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
    if call.clamp is not None:
        gate, up = gate.clamp(max=call.clamp), up.clamp(min=-call.clamp, max=call.clamp)
    return {"output": act(gate) * (up + call.offset)}


def _exercise(subject: Subject, call: _Call) -> Exercise:
    def make(layer_number: int, device: str | None = None) -> nn.Module:
        return _make(call, subject, _request(call, subject.context()), on=device)

    return Exercise(make, _inputs, partial(_run, call))
