"""Cases of the column_linear and row_linear slots."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from transom.slots.linear import LinearRequest
from transom.slots.request import BuildContext, Request
from transom.testing.agreement import Agreement, Tensors, agreement_cases, fill_parameters
from transom.testing.case import Case, ConformanceError
from transom.testing.closeness import TOLERANCES, assert_close
from transom.testing.exercise import Exercise
from transom.testing.module_cases import module_cases
from transom.testing.subject import Subject, config_for

__all__ = ["cases"]

_IN, _OUT = 24, 40


@dataclass(frozen=True)
class _Call:
    """How a linear is built and called."""

    name: str
    shows: str
    shape: tuple[int, ...] = (2, 5)
    bias: bool = True
    skip_bias_add: bool = False
    stride: int = 1
    is_expert: bool = False
    flag: bool = False
    transposed: bool = False
    principal: bool = False

    @property
    def features(self) -> frozenset[str]:
        return frozenset({"expert"} if self.is_expert else ())


_CALLS = (
    _Call("bias", "the bias is added once", principal=True),
    _Call("no_bias", "without a bias", bias=False),
    _Call("skip_bias", "with skip_bias_add the bias is returned and not added", skip_bias_add=True, principal=True),
    _Call("skip_no_bias", "with skip_bias_add and no bias, None is returned", bias=False, skip_bias_add=True),
    _Call("tokens", "an input of two dimensions", shape=(7,)),
    _Call("vector", "an input of one dimension", shape=()),
    _Call("four_dimensions", "an input of four dimensions", shape=(2, 3, 2)),
    _Call("no_tokens", "an input without a token", shape=(0, 4)),
    _Call("non_contiguous", "an input whose features are not side by side in memory", transposed=True),
    _Call("stacked", "two logical matrices in one", stride=2),
    _Call("whole", "gather_output, or an input that is not parallel, changes nothing on one process", flag=True),
    _Call("expert", "an expert's linear computes the same", is_expert=True),
)


def cases(subject: Subject) -> Iterator[Case]:
    """Make the cases of a linear."""
    calls = tuple(call for call in _CALLS if call.stride == 1 or subject.slot.name == "column_linear")
    yield from agreement_cases(subject, tuple(_agreement(call) for call in calls))

    def case(name: str, shows: str, check: Callable[[Subject], None]) -> Case:
        return Case("contract", name, shows, partial(check, subject), subject.dtype, subject.device)

    yield case("parameters", "weight [out, in] and bias [out] have the config's dtype", _check_parameters)
    yield case("initial", "the init method fills the weight, and the bias is zero", _check_initial)
    if subject.declares_training:
        yield case(
            "accumulates", "gradients of several backward passes add up", subject.in_training(_check_accumulates)
        )
        yield case(
            "backward_dw", "backward_dw() does nothing when nothing was put off", subject.in_training(_check_no_op)
        )
    if "delay_wgrad" in subject.features and subject.declares_training:
        yield case(
            "delay_wgrad", "weight gradients appear only after backward_dw()", subject.in_training(_check_delayed)
        )
    yield from module_cases(subject, _exercise(subject))


def _agreement(call: _Call) -> Agreement:
    return Agreement(
        name=call.name,
        shows=call.shows,
        request=partial(_request, call),
        make=partial(_make, call),
        inputs=partial(_inputs, call),
        run=partial(_run, call),
        expected=partial(_expected, call),
        features=call.features,
        principal=call.principal,
    )


def _request(call: _Call, context: BuildContext) -> LinearRequest:
    return LinearRequest(
        context=context,
        features=call.features,
        input_size=_IN,
        output_size=_OUT,
        bias=call.bias,
        stride=call.stride,
        is_expert=call.is_expert,
    )


def _make(
    call: _Call,
    subject: Subject,
    request: Request,
    *,
    on: str | None = None,
    init_method: Callable[[Tensor], Any] = nn.init.normal_,
    **config: Any,
) -> nn.Module:
    of_slot = {"gather_output": call.flag, "stride": call.stride}
    if subject.slot.name == "row_linear":
        of_slot = {"input_is_parallel": not call.flag}
    return subject.build(
        request,
        _IN,
        _OUT,
        on=on,
        config=config_for(params_dtype=request.context.dtype, **config),
        init_method=init_method,
        bias=call.bias,
        skip_bias_add=call.skip_bias_add,
        is_expert=call.is_expert,
        tp_comm_buffer_name=None,
        tp_group=None,
        **of_slot,
    )


def _inputs(call: _Call) -> Tensors:
    return {"x": torch.randn(*call.shape, _IN, dtype=torch.float64)}


def _run(call: _Call, module: nn.Module, inputs: Tensors) -> Tensors:
    x = inputs["x"]
    if call.transposed:
        x = x.transpose(0, -1).contiguous().transpose(0, -1)
    output, bias = module(x)
    if not call.skip_bias_add and bias is not None:
        raise ConformanceError("the bias is returned, and skip_bias_add is False")
    return {"output": output} if bias is None else {"output": output, "bias": bias * 1}


def _expected(call: _Call, state: Tensors, inputs: Tensors) -> Tensors:
    product = (inputs["x"][..., None, :] * state["weight"]).sum(dim=-1)  # [..., out]
    if not call.bias:
        return {"output": product}
    if call.skip_bias_add:
        return {"output": product, "bias": state["bias"] * 1}
    return {"output": product + state["bias"]}


def _exercise(subject: Subject) -> Exercise:
    call = _CALLS[0]

    def make(layer_number: int, device: str | None = None) -> nn.Module:
        return _make(call, subject, _request(call, subject.context()), on=device)

    return Exercise(make, partial(_inputs, call), partial(_run, call))


def _check_parameters(subject: Subject) -> None:
    call = _CALLS[0]
    module = _make(call, subject, _request(call, subject.context()))
    found = {name: (list(p.shape), p.dtype) for name, p in module.named_parameters()}
    dtype = getattr(torch, subject.dtype)
    wanted = {"weight": ([_OUT, _IN], dtype), "bias": ([_OUT], dtype)}
    if found != wanted:
        raise ConformanceError(f"its parameters are {found}, expected {wanted}")


def _check_initial(subject: Subject) -> None:
    call = _CALLS[0]

    def fill(weight: Tensor) -> None:
        with torch.no_grad():
            weight.copy_(torch.arange(weight.numel()).view(weight.shape))

    module = _make(call, subject, _request(call, subject.context()), init_method=fill)
    wanted = torch.arange(_OUT * _IN).view(_OUT, _IN).to(getattr(torch, subject.dtype))
    if not torch.equal(module.get_parameter("weight").detach().cpu(), wanted):
        raise ConformanceError("the init method did not fill the weight, or not as one matrix [out, in]")
    if bool(module.get_parameter("bias").count_nonzero()):
        raise ConformanceError("the bias does not start at zero")


def _check_accumulates(subject: Subject) -> None:
    call = _CALLS[0]
    module = _make(call, subject, _request(call, subject.context()))
    x = _inputs(call)["x"].to(subject.device, getattr(torch, subject.dtype))
    module(x)[0].double().sum().backward()
    once = module.get_parameter("weight").grad
    if once is None:
        raise ConformanceError("no gradient reaches weight")
    once = once.clone()
    module(x)[0].double().sum().backward()
    twice = module.get_parameter("weight").grad
    assert twice is not None
    tolerance = TOLERANCES[subject.dtype].gradients
    assert_close(twice, 2 * once.cpu().double(), tolerance, "the weight's gradient after two backward passes")


def _check_no_op(subject: Subject) -> None:
    call = _CALLS[0]
    module = _make(call, subject, _request(call, subject.context()))
    x = _inputs(call)["x"].to(subject.device, getattr(torch, subject.dtype))
    module(x)[0].double().sum().backward()
    before = {
        name: parameter.grad.clone() for name, parameter in module.named_parameters() if parameter.grad is not None
    }
    _backward_dw(module)
    for name, parameter in module.named_parameters():
        if name not in before or parameter.grad is None or not torch.equal(parameter.grad, before[name]):
            raise ConformanceError(f"backward_dw() changes the gradient of {name}, or there was none")


def _check_delayed(subject: Subject) -> None:
    call = _CALLS[0]
    request = replace(_request(call, subject.context()), features=frozenset({"delay_wgrad"}))
    module = _make(call, subject, request, delay_wgrad_compute=True)
    fill_parameters(module)
    x = _inputs(call)["x"].to(subject.device, getattr(torch, subject.dtype)).requires_grad_()
    for _ in range(2):  # two micro-batches
        module(x)[0].double().square().sum().backward()
    weight = module.get_parameter("weight")
    if weight.grad is not None:
        raise ConformanceError("with delay_wgrad the weight has a gradient before backward_dw()")
    if x.grad is None or module.get_parameter("bias").grad is None:
        raise ConformanceError("with delay_wgrad only the weight's gradient is put off, not the input's or the bias's")
    for _ in range(2):  # the second finds nothing left
        _backward_dw(module)
    if weight.grad is None:
        raise ConformanceError("backward_dw() leaves the weight without a gradient")
    wide, matrix = x.detach().cpu().double(), weight.detach().cpu().double().requires_grad_()
    bias = module.get_parameter("bias").detach().cpu().double()
    (2 * (wide @ matrix.T + bias).square().sum()).backward()
    assert matrix.grad is not None
    assert_close(weight.grad, matrix.grad, TOLERANCES[subject.dtype].gradients, "the weight's gradient")


def _backward_dw(module: nn.Module) -> None:
    method = getattr(module, "backward_dw", None)
    if not callable(method):
        raise ConformanceError("it has no backward_dw()")
    method()
