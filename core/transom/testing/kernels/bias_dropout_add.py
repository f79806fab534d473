"""Cases of the bias_dropout_add slot."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from transom.slots.bias_dropout_add import BiasDropoutAddRequest
from transom.slots.request import BuildContext, Request
from transom.testing.agreement import Agreement, Tensors, agreement_cases
from transom.testing.case import Case, ConformanceError
from transom.testing.closeness import TOLERANCES, assert_close, assert_same
from transom.testing.exercise import Exercise
from transom.testing.module_cases import module_cases
from transom.testing.subject import Subject, config_for

__all__ = ["cases"]

_P = 0.3
_H = 32


@dataclass(frozen=True)
class _Call:
    """One call, without dropout."""

    name: str
    shows: str
    bias: bool = True
    p: float = 0.0
    training: bool = True
    dtypes: dict[str, str] = field(default_factory=dict)
    principal: bool = False


_CALLS = (
    _Call("bias", "residual + x + bias", principal=True),
    _Call("no_bias", "residual + x", bias=False, principal=True),
    _Call("evaluation", "nothing is dropped in evaluation", p=_P, training=False),
    _Call("wide_residual", "a residual in float32 stays in float32", dtypes={"residual": "float32"}, principal=True),
)


def cases(subject: Subject) -> Iterator[Case]:
    """Make the cases of a bias-dropout-add."""
    yield from agreement_cases(subject, tuple(_agreement(call) for call in _CALLS))

    def case(name: str, shows: str, check: Callable[[Subject], None]) -> Case:
        return Case("agreement", name, shows, partial(check, subject), subject.dtype, subject.device)

    if "dropout" in subject.features and subject.declares_training:
        yield case(
            "dropout_share", "as much is dropped as asked for, the rest scaled", subject.in_training(_check_share)
        )
        yield case(
            "dropout_residual",
            "the residual is never dropped, and the bias is dropped with x",
            subject.in_training(_check_residual),
        )
        yield case(
            "dropout_seeded", "the same random state drops the same elements", subject.in_training(_check_seeded)
        )
        yield case("dropout_backward", "backward drops what forward dropped", subject.in_training(_check_backward))
    yield from module_cases(subject, _exercise(subject))


def _agreement(call: _Call) -> Agreement:
    return Agreement(
        name=call.name,
        shows=call.shows,
        request=_request,
        make=_make,
        inputs=partial(_inputs, call),
        run=partial(_run, call),
        expected=partial(_expected, call),
        principal=call.principal,
        dtypes=call.dtypes,
        result_dtypes={"output": call.dtypes["residual"]} if call.dtypes else {},
    )


def _request(context: BuildContext, dropout: float = 0.0) -> BiasDropoutAddRequest:
    features = frozenset({"dropout"} if dropout else ())
    return BiasDropoutAddRequest(context=context, features=features, dropout=dropout)


def _make(subject: Subject, request: Request, *, on: str | None = None) -> nn.Module:
    return subject.build(request, config_for(hidden_size=_H, params_dtype=request.context.dtype), on=on)


def _inputs(call: _Call) -> Tensors:
    made = {name: torch.randn(2, 5, _H, dtype=torch.float64) for name in ("x", "residual")}
    return made | ({"bias": torch.randn(_H, dtype=torch.float64)} if call.bias else {})


def _run(call: _Call, module: nn.Module, inputs: Tensors) -> Tensors:
    return {"output": module(inputs["x"], inputs.get("bias"), inputs["residual"], call.p, call.training)}


def _expected(call: _Call, state: Tensors, inputs: Tensors) -> Tensors:
    branch = inputs["x"] + inputs["bias"] if call.bias else inputs["x"]
    return {"output": inputs["residual"] + branch}


def _exercise(subject: Subject) -> Exercise:
    def make(layer_number: int, device: str | None = None) -> nn.Module:
        return _make(subject, _request(subject.context()), on=device)

    return Exercise(make, partial(_inputs, _CALLS[0]), partial(_run, _CALLS[0]))


def _dropping(subject: Subject, x: float, bias: float, residual: float) -> Callable[[], Tensor]:
    """Give a call that drops, with all elements of each input alike."""
    module = _make(subject, _request(subject.context(), _P))
    dtype = getattr(torch, subject.dtype)

    def full(value: float, *shape: int) -> Tensor:
        return torch.full(shape, value, dtype=dtype, device=subject.device)

    def call() -> Tensor:
        output: Tensor = module(full(x, 64, 8, _H), full(bias, _H), full(residual, 64, 8, _H), _P, True)
        return output

    return call


def _check_share(subject: Subject) -> None:
    output = _dropping(subject, 1.0, 0.0, 0.0)()
    share = float((output == 0).double().mean())
    allowed = 5 * (_P * (1 - _P) / output.numel()) ** 0.5
    if abs(share - _P) > allowed:
        raise ConformanceError(f"{share:.3f} of the elements are dropped, expected {_P} within {allowed:.3f}")
    kept = output[output != 0].cpu()
    wanted = torch.full(kept.shape, 1 / (1 - _P), dtype=torch.float64)
    assert_close(kept, wanted, TOLERANCES[subject.dtype].outputs, "the elements that are kept, over 1 - p")


def _check_residual(subject: Subject) -> None:
    output = _dropping(subject, 1.0, 1.0, 8.0)().double().cpu()
    dropped = output == 8.0
    wanted = torch.where(dropped, 8.0, 8.0 + 2.0 / (1 - _P)).double()
    assert_close(output, wanted, TOLERANCES[subject.dtype].outputs, "residual + dropout(x + bias)")
    if not 0 < float(dropped.double().mean()) < 1:
        raise ConformanceError("nothing is dropped, or everything")


def _check_seeded(subject: Subject) -> None:
    call = _dropping(subject, 1.0, 0.0, 0.0)
    torch.manual_seed(7)
    first = call()
    torch.manual_seed(7)
    assert_same(call(), first, "the output from the same random state")
    if torch.equal(call(), first):
        raise ConformanceError("two calls drop the same elements")


def _check_backward(subject: Subject) -> None:
    module = _make(subject, _request(subject.context(), _P))
    x = torch.ones(64, 8, _H, dtype=getattr(torch, subject.dtype), device=subject.device, requires_grad=True)
    output = module(x, None, torch.zeros_like(x), _P, True)
    output.double().sum().backward()
    if x.grad is None:
        raise ConformanceError("no gradient reaches x")
    wanted = output.detach().cpu().double()  # each element of the output is x times its own factor
    assert_close(x.grad, wanted, TOLERANCES[subject.dtype].gradients, "the gradient of x")
