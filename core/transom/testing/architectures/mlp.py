"""Cases of the mlp slot."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from transom.slots.mlp import MLPRequest
from transom.slots.request import ArchitectureRequest
from transom.testing.agreement import Tensors, shake_parameters
from transom.testing.architectures.properties import expect_depends, expect_gradients, expect_same, expect_shape
from transom.testing.architectures.variants import contract_case, serving, variant
from transom.testing.assembly import assemble
from transom.testing.case import Case, ConformanceError
from transom.testing.exercise import Exercise
from transom.testing.module_cases import module_cases
from transom.testing.subject import Subject

__all__ = ["cases"]

_H = 64


def cases(subject: Subject) -> Iterator[Case]:
    """Make the cases of an MLP."""
    shows = "it gives [b, s, h], and a bias [h] or none"
    yield from contract_case(subject, "shapes", shows, _check_shapes, dtypes=True)
    yield from contract_case(subject, "by_token", "it maps every token by itself", _check_by_token)
    yield from contract_case(subject, "token_scale", "per_token_scale scales every token by itself", _check_scale)
    yield from contract_case(subject, "width", "ffn_hidden_size may be another than the config's", _check_width)
    if subject.declares_training:
        shows = "a gradient reaches every parameter, the input and the scale"
        yield from contract_case(subject, "gradients", shows, subject.in_training(_check_gradients))
    yield from module_cases(subject, _exercise(subject))


def _request(subject: Subject, kind: str, dtype: str, **fields: Any) -> MLPRequest:
    return MLPRequest(context=subject.context(dtype), config=variant(kind, dtype), after_norm=True, **fields)


def _make(subject: Subject, kind: str, dtype: str, **sizes: Any) -> nn.Module:
    module = assemble(subject, _request(subject, kind, dtype, **sizes), **sizes)
    shake_parameters(module)
    return module


def _input(subject: Subject, dtype: str, *shape: int) -> Tensor:
    x = torch.randn(*shape, _H, dtype=torch.float64)
    return x.to(subject.device, getattr(torch, dtype)).requires_grad_(subject.trains)


def _call(module: nn.Module, x: Tensor, scale: Tensor | None = None) -> Tensor:
    output, bias = module(x, scale)
    assert isinstance(output, Tensor)
    return output if bias is None else output + bias


def _check_shapes(subject: Subject, kind: str, dtype: str) -> None:
    module = _make(subject, kind, dtype)
    for b, s in ((2, 5), (1, 1), (3, 0)):
        x = _input(subject, dtype, b, s)
        before = x.detach().clone()
        output, bias = module(x)
        expect_shape(output, (b, s, _H), getattr(torch, dtype))
        if bias is not None:
            expect_shape(bias, (_H,), getattr(torch, dtype), "the bias")
        if not torch.equal(x.detach(), before):
            raise ConformanceError("it wrote to its input")


def _check_by_token(subject: Subject, kind: str, dtype: str) -> None:
    module = _make(subject, kind, dtype).eval()
    x = _input(subject, dtype, 2, 5).detach()
    output = _call(module, x)
    order = torch.randperm(5, device=subject.device)
    expect_same(_call(module, x[:, order]), output[:, order], dtype, "outputs of tokens in another order")
    changed = x.clone()
    changed[0, 2] += 1
    other = _call(module, changed).clone()  # autograd functions of packages may give views, which cannot be written to
    expect_depends(other[0, 2], output[0, 2], "the token itself")
    other[0, 2] = output[0, 2]
    expect_same(other, output, dtype, "outputs beside a token that changed")


def _check_scale(subject: Subject, kind: str, dtype: str) -> None:
    module = _make(subject, kind, dtype).eval()
    x = _input(subject, dtype, 2, 5).detach()
    ones = torch.ones(2, 5, dtype=x.dtype, device=subject.device)
    plain = _call(module, x)
    expect_same(_call(module, x, ones), plain, dtype, "the output with per_token_scale of ones")
    scale = ones.clone()
    scale[0, 2] = 1.5
    output = _call(module, x, scale)
    expect_shape(output, (2, 5, _H), x.dtype)
    expect_depends(output[0, 2], plain[0, 2], "per_token_scale")
    alike = scale == 1
    expect_same(output[alike], plain[alike], dtype, "the output of tokens whose scale is one")


def _check_width(subject: Subject, kind: str, dtype: str) -> None:
    module = _make(subject, kind, dtype, ffn_hidden_size=48)
    expect_shape(_call(module, _input(subject, dtype, 2, 5)), (2, 5, _H), getattr(torch, dtype))


def _check_gradients(subject: Subject, kind: str, dtype: str) -> None:
    module = _make(subject, kind, dtype)
    x = _input(subject, dtype, 4, 32)
    scale = torch.ones(4, 32, dtype=x.dtype, device=subject.device, requires_grad=True)
    output = _call(module, x, scale)
    (output.double() * torch.randn_like(output.double())).sum().backward()  # type: ignore[no-untyped-call]
    expect_gradients(module, {"the input": x, "per_token_scale": scale})


def _exercise(subject: Subject) -> Exercise:
    def make(layer_number: int, device: str | None = None) -> nn.Module:
        def request_of(kind: str) -> ArchitectureRequest:
            return _request(subject, kind, subject.dtype, layer_number=layer_number)

        return assemble(subject, serving(subject, request_of), on=device)

    def run(module: nn.Module, inputs: Tensors) -> Tensors:
        return {"output": _call(module, inputs["x"])}

    return Exercise(make, lambda: {"x": torch.randn(2, 5, _H, dtype=torch.float64)}, run, fill=shake_parameters)
