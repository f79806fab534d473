"""Cases of the norm slot."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from transom.slots.norm import NormRequest
from transom.slots.request import BuildContext, Request
from transom.testing.agreement import Agreement, Tensors, agreement_cases
from transom.testing.case import Case, CaseSkipped, ConformanceError
from transom.testing.exercise import Exercise
from transom.testing.module_cases import module_cases
from transom.testing.subject import Subject, config_for

__all__ = ["cases"]

_WIDE = (2, 1024)
_KINDS = {"layernorm": "LayerNorm", "rmsnorm": "RMSNorm"}


@dataclass(frozen=True)
class _Call:
    """How a norm is built and called: inputs are ``offset + magnitude * N(0, 1)``."""

    name: str
    shows: str
    kind: str
    zero_centered: bool = False
    shape: tuple[int, ...] = (2, 5, 64)
    eps: float = 1e-5
    magnitude: float = 1.0
    offset: float = 0.0
    transposed: bool = False
    principal: bool = False

    @property
    def features(self) -> frozenset[str]:
        return frozenset({self.kind, *(["zero_centered_gamma"] if self.zero_centered else [])})


def _calls(kind: str) -> Iterator[_Call]:
    title = _KINDS[kind]
    yield _Call(kind, f"{title} agrees", kind, principal=True)
    yield _Call(f"{kind}_zero_centered", f"{title} whose scale is stored minus one", kind, True, principal=True)
    yield _Call(f"{kind}_small", "eps is added to the variance: inputs whose own is smaller", kind, magnitude=1e-3)
    yield _Call(f"{kind}_eps", "the eps that is given counts, not the config's", kind, eps=0.5)
    yield _Call(f"{kind}_zeros", "an input of zeros gives no nan", kind, magnitude=0.0, eps=1e-3)
    yield _Call(f"{kind}_large", "squares that float16 cannot hold", kind, magnitude=500.0, principal=True)
    yield _Call(f"{kind}_offset", "a mean far from zero", kind, offset=20.0)
    yield _Call(f"{kind}_odd", "a width that is no multiple of anything", kind, shape=(3, 37))
    yield _Call(f"{kind}_wide", "a width that kernels are made for", kind, shape=_WIDE, principal=True)
    yield _Call(f"{kind}_wide_zero_centered", "such a width, its scale stored minus one", kind, True, shape=_WIDE)
    yield _Call(f"{kind}_heads", "an input of four dimensions", kind, shape=(2, 3, 4, 16))
    yield _Call(f"{kind}_vector", "an input of one dimension", kind, shape=(64,))
    yield _Call(f"{kind}_strided", "an input whose features are not side by side in memory", kind, transposed=True)


def cases(subject: Subject) -> Iterator[Case]:
    """Make the cases of a norm."""
    calls = tuple(call for kind in _KINDS for call in _calls(kind))
    yield from agreement_cases(subject, tuple(_agreement(call) for call in calls))
    shows = "it starts with a scale of one and a shift of zero"
    yield Case("contract", "initial", shows, partial(_check_initial, subject), subject.dtype, subject.device)
    kind = next((each for each in _KINDS if each in subject.features), "layernorm")
    yield from module_cases(subject, _exercise(subject, kind))


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


def _request(call: _Call, context: BuildContext) -> NormRequest:
    return NormRequest(context=context, features=call.features, hidden_size=call.shape[-1], eps=call.eps)


def _make(call: _Call, subject: Subject, request: Request, *, on: str | None = None) -> nn.Module:
    config = config_for(
        normalization=_KINDS[call.kind],
        layernorm_zero_centered_gamma=call.zero_centered,
        params_dtype=request.context.dtype,
    )
    return subject.build(request, config, on=on, hidden_size=call.shape[-1], eps=call.eps)


def _inputs(call: _Call) -> Tensors:
    return {"x": call.offset + call.magnitude * torch.randn(call.shape, dtype=torch.float64)}


def _run(call: _Call, module: nn.Module, inputs: Tensors) -> Tensors:
    x = inputs["x"]
    return {"output": module(x.transpose(0, -1).contiguous().transpose(0, -1) if call.transposed else x)}


def _expected(call: _Call, state: Tensors, inputs: Tensors) -> Tensors:
    x = inputs["x"]
    scale = state["weight"] + 1 if call.zero_centered else state["weight"]
    centered = x - x.mean(dim=-1, keepdim=True) if call.kind == "layernorm" else x
    spread = (centered.square().sum(dim=-1, keepdim=True) / x.shape[-1] + call.eps).sqrt()
    output = centered / spread * scale
    return {"output": output + state["bias"] if call.kind == "layernorm" else output}


def _check_initial(subject: Subject) -> None:
    wanted_calls = [(kind, zero) for kind in _KINDS for zero in (False, True)]
    tried = [_served(subject, kind, zero) for kind, zero in wanted_calls]
    tried = [call for call in tried if call.features <= subject.features]
    if not tried:
        raise CaseSkipped("it declares no kind of norm")
    for call in tried:
        module = _make(call, subject, _request(call, subject.context()))
        wanted = {"weight": 0.0 if call.zero_centered else 1.0} | ({"bias": 0.0} if call.kind == "layernorm" else {})
        found = dict(module.named_parameters())
        if found.keys() != wanted.keys():
            raise ConformanceError(f"{call.kind}: its parameters are {', '.join(found)}, expected {', '.join(wanted)}")
        wrong = [name for name, value in wanted.items() if bool((found[name] != value).any())]
        if wrong:
            raise ConformanceError(f"{call.name}: {', '.join(wrong)} does not start at {wanted[wrong[0]]}")


def _served(subject: Subject, kind: str, zero_centered: bool = False) -> _Call:
    """Give the plainest call, or that of a width that kernels are made for where only such are served."""
    plain, wide = (
        next(call for call in _calls(kind) if call.zero_centered is zero_centered and call.shape[-1] == width)
        for width in (64, _WIDE[-1])
    )
    return wide if _is_ok(subject, wide) and not _is_ok(subject, plain) else plain


def _is_ok(subject: Subject, call: _Call) -> bool:
    return subject.verdict(_request(call, subject.context())).ok


def _exercise(subject: Subject, kind: str) -> Exercise:
    def make(layer_number: int, device: str | None = None) -> nn.Module:
        call = _served(subject, kind)
        return _make(call, subject, _request(call, subject.context()), on=device)

    def inputs() -> Tensors:
        return _inputs(_served(subject, kind))

    return Exercise(make, inputs, partial(_run, next(_calls(kind))))
