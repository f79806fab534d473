"""Cases of the norm_linear slot: a norm, then a column linear, in one module."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from transom.checkpoint.module_layout import from_canonical, own_tensors, to_canonical
from transom.slots.norm_linear import NormLinearRequest
from transom.slots.request import BuildContext, Request
from transom.testing.agreement import Agreement, Tensors, agreement_cases, fill_parameters
from transom.testing.case import Case, CaseSkipped, ConformanceError
from transom.testing.closeness import TOLERANCES, assert_close
from transom.testing.exercise import Exercise
from transom.testing.module_cases import module_cases
from transom.testing.subject import Subject, config_for

__all__ = ["cases"]

_IN, _OUT = 32, 48
_KINDS = {"layernorm": "LayerNorm", "rmsnorm": "RMSNorm"}


@dataclass(frozen=True)
class _Call:
    """How a norm and linear is built and called."""

    name: str
    shows: str
    kind: str = "layernorm"
    zero_centered: bool = False
    shape: tuple[int, ...] = (2, 5)
    bias: bool = True
    skip_bias_add: bool = False
    stride: int = 1
    eps: float = 1e-5
    magnitude: float = 1.0
    is_expert: bool = False
    principal: bool = False

    @property
    def features(self) -> frozenset[str]:
        optional = {"zero_centered_gamma": self.zero_centered, "expert": self.is_expert}
        return frozenset({self.kind, *(name for name, is_asked in optional.items() if is_asked)})


def _calls(kind: str) -> Iterator[_Call]:
    title = _KINDS[kind]
    yield _Call(kind, f"{title}, then a linear whose bias is added once", kind, principal=True)
    yield _Call(f"{kind}_zero_centered", f"{title} whose scale is stored minus one", kind, True, principal=True)
    yield _Call(f"{kind}_no_bias", "without a bias of the linear", kind, bias=False)
    yield _Call(f"{kind}_skip_bias", "with skip_bias_add the bias is returned and not added", kind, skip_bias_add=True)
    yield _Call(
        f"{kind}_skip_no_bias", "with skip_bias_add and no bias, None is returned", kind, bias=False, skip_bias_add=True
    )
    yield _Call(f"{kind}_eps", "eps is the config's", kind, eps=0.5)
    yield _Call(f"{kind}_small", "eps is added to the variance: inputs whose own is smaller", kind, magnitude=1e-3)
    yield _Call(f"{kind}_large", "inputs whose squares float16 cannot hold", kind, magnitude=500.0)
    yield _Call(f"{kind}_tokens", "an input of two dimensions", kind, shape=(7,))
    yield _Call(f"{kind}_stacked", "two logical matrices in one", kind, stride=2)
    yield _Call(f"{kind}_expert", "an expert's linear computes the same", kind, is_expert=True)


def cases(subject: Subject) -> Iterator[Case]:
    """Make the cases of a norm and linear."""
    calls = tuple(call for kind in _KINDS for call in _calls(kind))
    yield from agreement_cases(subject, tuple(_agreement(call) for call in calls))

    def case(name: str, shows: str, check: Callable[[Subject], None]) -> Case:
        return Case("contract", name, shows, partial(check, subject), subject.dtype, subject.device)

    yield case("parameters", "its canonical parameters are those of a norm and of a linear", _check_parameters)
    yield case("layout", "its states become canonical and its own again, bit for bit", _check_layout)
    yield case("initial", "the norm only norms, the init method fills the weight, the bias is zero", _check_initial)
    yield case("norm", "norm() gives what the linear's product is taken of", _check_norm)
    if subject.declares_training:
        shows = "backward_dw() does nothing when nothing was put off"
        yield case("backward_dw", shows, subject.in_training(_check_no_op))
    if "delay_wgrad" in subject.features and subject.declares_training:
        shows = "the weight's gradient, and no other, appears only after backward_dw()"
        yield case("delay_wgrad", shows, subject.in_training(_check_delayed))
    yield from module_cases(subject, _exercise(subject))


def _plain(subject: Subject) -> _Call:
    kind = next((kind for kind in _KINDS if kind in subject.features), None)
    if kind is None:
        raise CaseSkipped("it declares no kind of norm")
    return next(_calls(kind))


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


def _request(call: _Call, context: BuildContext) -> NormLinearRequest:
    return NormLinearRequest(
        context=context,
        features=call.features,
        input_size=_IN,
        output_size=_OUT,
        bias=call.bias,
        stride=call.stride,
        is_expert=call.is_expert,
        eps=call.eps,
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
    fields = {
        "params_dtype": request.context.dtype,
        "normalization": _KINDS[call.kind],
        "layernorm_zero_centered_gamma": call.zero_centered,
        "layernorm_epsilon": call.eps,
    }
    return subject.build(
        request,
        _IN,
        _OUT,
        on=on,
        config=config_for(**fields, **config),
        init_method=init_method,
        gather_output=False,
        bias=call.bias,
        skip_bias_add=call.skip_bias_add,
        is_expert=call.is_expert,
        tp_comm_buffer_name=None,
        tp_group=None,
        stride=call.stride,
    )


def _made(subject: Subject, **changes: Any) -> nn.Module:
    call = _plain(subject)
    return _make(call, subject, _request(call, subject.context()), **changes)


def _inputs(call: _Call) -> Tensors:
    return {"x": call.magnitude * torch.randn(*call.shape, _IN, dtype=torch.float64)}


def _run(call: _Call, module: nn.Module, inputs: Tensors) -> Tensors:
    output, bias = module(inputs["x"])
    if not call.skip_bias_add and bias is not None:
        raise ConformanceError("the bias is returned, and skip_bias_add is False")
    return {"output": output} if bias is None else {"output": output, "bias": bias * 1}


def _normed(call: _Call, state: Tensors, x: Tensor) -> Tensor:
    """Norm by the definition, in float64."""
    scale = state["norm.weight"] + 1 if call.zero_centered else state["norm.weight"]
    centered = x - x.mean(dim=-1, keepdim=True) if call.kind == "layernorm" else x
    spread = (centered.square().sum(dim=-1, keepdim=True) / x.shape[-1] + call.eps).sqrt()
    normed = centered / spread * scale
    return normed + state["norm.bias"] if call.kind == "layernorm" else normed


def _expected(call: _Call, state: Tensors, inputs: Tensors) -> Tensors:
    product = (_normed(call, state, inputs["x"])[..., None, :] * state["weight"]).sum(dim=-1)  # [..., out]
    if not call.bias:
        return {"output": product}
    if call.skip_bias_add:
        return {"output": product, "bias": state["bias"] * 1}
    return {"output": product + state["bias"]}


def _exercise(subject: Subject) -> Exercise:
    def make(layer_number: int, device: str | None = None) -> nn.Module:
        return _made(subject, on=device)

    call = next(_calls("layernorm"))
    return Exercise(make, partial(_inputs, call), partial(_run, call))


def _canonical(module: nn.Module) -> Tensors:
    return {name: tensor.detach() for name, tensor in to_canonical(module, own_tensors(module)).items()}


def _check_parameters(subject: Subject) -> None:
    call = _plain(subject)
    found = {name: list(tensor.shape) for name, tensor in _canonical(_made(subject)).items()}
    wanted = {"weight": [_OUT, _IN], "bias": [_OUT], "norm.weight": [_IN]}
    wanted |= {"norm.bias": [_IN]} if call.kind == "layernorm" else {}
    if found != wanted:
        raise ConformanceError(f"its canonical parameters are {found}, expected {wanted}")


def _check_layout(subject: Subject) -> None:
    module = _made(subject)
    fill_parameters(module)
    own = own_tensors(module)
    back = dict(from_canonical(module, dict(to_canonical(module, own))))
    lost = [name for name in own if name not in back or not torch.equal(back[name], own[name])]
    if lost or back.keys() != own.keys():
        raise ConformanceError(f"its layout map loses or changes {', '.join(lost or back.keys() ^ own.keys())}")


def _check_initial(subject: Subject) -> None:
    def fill(weight: Tensor) -> None:
        with torch.no_grad():
            weight.copy_(torch.arange(weight.numel()).view(weight.shape))

    state = _canonical(_made(subject, init_method=fill))
    wanted = {"weight": torch.arange(_OUT * _IN).view(_OUT, _IN), "bias": torch.zeros(_OUT)}
    wanted |= {"norm.weight": torch.ones(_IN), "norm.bias": torch.zeros(_IN)}
    for name, tensor in state.items():
        if not torch.equal(tensor.cpu(), wanted[name].to(getattr(torch, subject.dtype))):
            raise ConformanceError(f"{name} does not start as that of a norm or of a linear does")


def _check_norm(subject: Subject) -> None:
    call = _plain(subject)
    module: Any = _made(subject)
    fill_parameters(module)
    x = _inputs(call)["x"].to(subject.device, getattr(torch, subject.dtype))
    state = {name: tensor.cpu().double() for name, tensor in _canonical(module).items()}
    with torch.no_grad():
        found = module.norm(x)
    if found.dtype is not x.dtype:
        raise ConformanceError(f"norm() gives {found.dtype} for {x.dtype}")
    assert_close(found, _normed(call, state, x.cpu().double()), TOLERANCES[subject.dtype].outputs, "norm()")


def _check_no_op(subject: Subject) -> None:
    module: Any = _made(subject)
    x = _inputs(_plain(subject))["x"].to(subject.device, getattr(torch, subject.dtype))
    module(x)[0].double().square().sum().backward()
    before = {name: parameter.grad.clone() for name, parameter in module.named_parameters()}
    module.backward_dw()
    changed = [name for name, parameter in module.named_parameters() if not torch.equal(parameter.grad, before[name])]
    if changed:
        raise ConformanceError(f"backward_dw() changes the gradient of {', '.join(changed)}")


def _check_delayed(subject: Subject) -> None:
    call = _plain(subject)
    request = _request(call, subject.context())
    request = replace(request, features=request.features | {"delay_wgrad"})
    module: Any = _make(call, subject, request, delay_wgrad_compute=True)
    fill_parameters(module)
    x = _inputs(call)["x"].to(subject.device, getattr(torch, subject.dtype)).requires_grad_()
    for _ in range(2):  # two micro-batches
        module(x)[0].double().square().sum().backward()
    grads = to_canonical(module, _gradients(module), moments=True)
    if "weight" in grads:
        raise ConformanceError("with delay_wgrad the weight has a gradient before backward_dw()")
    if x.grad is None or not {"bias", "norm.weight"} <= set(grads):
        raise ConformanceError("with delay_wgrad only the weight's gradient is put off, not the input's or the norm's")
    for _ in range(2):  # the second finds nothing left
        module.backward_dw()
    found = to_canonical(module, _gradients(module), moments=True)
    if "weight" not in found:
        raise ConformanceError("backward_dw() leaves the weight without a gradient")
    state = {name: tensor.cpu().double().requires_grad_() for name, tensor in _canonical(module).items()}
    out = _expected(call, state, {"x": x.detach().cpu().double()})["output"]
    torch.autograd.backward(2 * out.square().sum())
    wanted = state["weight"].grad
    assert wanted is not None
    assert_close(found["weight"], wanted, TOLERANCES[subject.dtype].gradients, "the weight's gradient")


def _gradients(module: nn.Module) -> Tensors:
    return {name: parameter.grad for name, parameter in module.named_parameters() if parameter.grad is not None}
