"""Cases of the cross_attention slot."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from transom.slots.attention import AttentionRequest
from transom.slots.request import ArchitectureRequest
from transom.testing.agreement import Tensors, shake_parameters
from transom.testing.architectures.properties import (
    expect_depends,
    expect_finite,
    expect_gradients,
    expect_same,
    expect_shape,
)
from transom.testing.architectures.variants import contract_case, serving, variant
from transom.testing.assembly import assemble
from transom.testing.case import Case, CaseSkipped, ConformanceError
from transom.testing.exercise import Exercise
from transom.testing.module_cases import module_cases
from transom.testing.subject import Subject
from transom.transformer.attention_mask import AttentionMask
from transom.transformer.context_cache import ContextEntry

__all__ = ["cases"]

_H = 64


def cases(subject: Subject) -> Iterator[Case]:
    """Make the cases of a cross-attention."""
    shows = "it gives [b, s, h] for t keys, more or fewer than s, and a bias [h] or none"
    yield from contract_case(subject, "shapes", shows, _check_shapes, dtypes=True)
    shows = "each token reads the other sequence, whatever the other tokens of its own"
    yield from contract_case(subject, "by_token", shows, _check_by_token)
    yield from contract_case(subject, "rows", "no row's output depends on another row", _check_rows)
    yield from contract_case(subject, "padding", "no output depends on a key that is padding", _check_padding)
    shows = "a query that sees nothing gives finite numbers and gradients"
    yield from contract_case(subject, "blind", shows, _check_blind)
    shows = "with a cache it reads once, and gives what it gives without"
    yield from contract_case(subject, "cache", shows, _check_cache)
    if subject.declares_training:
        shows = "a gradient reaches every parameter and both sequences"
        yield from contract_case(subject, "gradients", shows, subject.in_training(_check_gradients))
    yield from module_cases(subject, _exercise(subject))


def _request(subject: Subject, kind: str, dtype: str, layer_number: int = 1) -> AttentionRequest:
    config, masks = variant(kind, dtype), frozenset({"padding"})
    return AttentionRequest(context=subject.context(dtype), config=config, masks=masks, layer_number=layer_number)


def _make(subject: Subject, kind: str, dtype: str) -> nn.Module:
    module = assemble(subject, _request(subject, kind, dtype), layer_number=1)
    shake_parameters(module)
    return module


def _input(subject: Subject, dtype: str, b: int, s: int) -> Tensor:
    x = torch.randn(b, s, _H, dtype=torch.float64)
    return x.to(subject.device, getattr(torch, dtype)).requires_grad_(subject.trains)


def _call(module: nn.Module, x: Tensor, y: Tensor, mask: AttentionMask | None = None) -> Tensor:
    output, bias = module(x, key_value_states=y, mask=mask)
    assert isinstance(output, Tensor)
    return output if bias is None else output + bias


def _check_shapes(subject: Subject, kind: str, dtype: str) -> None:
    module = _make(subject, kind, dtype)
    for b, s, t in ((2, 5, 3), (2, 3, 5), (1, 1, 1)):
        x, y = _input(subject, dtype, b, s), _input(subject, dtype, b, t)
        before = x.detach().clone(), y.detach().clone()
        output, bias = module(x, key_value_states=y)
        expect_shape(output, (b, s, _H), getattr(torch, dtype))
        if bias is not None:
            expect_shape(bias, (_H,), getattr(torch, dtype), "the bias")
        if not (torch.equal(x.detach(), before[0]) and torch.equal(y.detach(), before[1])):
            raise ConformanceError("it wrote to an input")


def _check_by_token(subject: Subject, kind: str, dtype: str) -> None:
    module = _make(subject, kind, dtype).eval()
    x, y = _input(subject, dtype, 2, 5).detach(), _input(subject, dtype, 2, 3)
    output = _call(module, x, y)
    changed = x.clone()
    changed[:, 2] += 1
    other = _call(module, changed, y)
    expect_depends(other[:, 2], output[:, 2], "the token itself")
    rest = torch.arange(5, device=subject.device) != 2
    expect_same(other[:, rest], output[:, rest], dtype, "outputs beside a token that changed")
    expect_depends(_call(module, x, y.detach() + torch.randn_like(y)), output, "the sequence that it reads")


def _check_rows(subject: Subject, kind: str, dtype: str) -> None:
    module = _make(subject, kind, dtype).eval()
    x, y = _input(subject, dtype, 2, 5), _input(subject, dtype, 2, 3).detach()
    changed = y.clone()
    changed[1] += 1
    output, other = _call(module, x, y), _call(module, x, changed)
    expect_same(other[0], output[0], dtype, "the row beside one whose keys changed")


@torch.no_grad()
def _check_cache(subject: Subject, kind: str, dtype: str) -> None:
    module = _make(subject, kind, dtype).eval()
    if "cache" not in inspect.signature(module.forward).parameters:
        raise CaseSkipped("its forward takes no cache")
    x, y, entry = _input(subject, dtype, 2, 5), _input(subject, dtype, 2, 3), ContextEntry()
    expected = _call(module, x, y)
    for states in (y, None):
        output, bias = module(x, key_value_states=states, cache=entry)
        what = "the output with a cache, against that without," if states is not None else "the output of what is kept"
        expect_same(output if bias is None else output + bias, expected, dtype, what)
    if entry.held is None:
        raise ConformanceError("it has kept nothing in the cache that it was given")


def _check_padding(subject: Subject, kind: str, dtype: str) -> None:
    module = _make(subject, kind, dtype).eval()
    x, y = _input(subject, dtype, 2, 5), _input(subject, dtype, 2, 4).detach()
    padding = torch.tensor([[1, 1, 0, 0], [0, 1, 0, 1]], device=subject.device).bool()
    changed = torch.where(padding[..., None], y, y + 1)
    output, other = (_call(module, x, each, AttentionMask(key_padding=padding)) for each in (y, changed))
    expect_same(other, output, dtype, "outputs beside a change of the padding")
    expect_same(output[:1], _call(module, x[:1], y[:1, :2]), dtype, "outputs with padding, against those without it,")


def _check_blind(subject: Subject, kind: str, dtype: str) -> None:
    module = _make(subject, kind, dtype)
    x, y = _input(subject, dtype, 2, 5), _input(subject, dtype, 2, 4)
    padding = torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0]], device=subject.device).bool()
    output = _call(module, x, y, AttentionMask(key_padding=padding))
    expect_finite(output, "the output of a query that sees nothing")
    if subject.trains:
        output.double().square().mean().backward()  # type: ignore[no-untyped-call]
        assert y.grad is not None
        expect_finite(y.grad, "the gradient of keys that nobody sees")


def _check_gradients(subject: Subject, kind: str, dtype: str) -> None:
    module = _make(subject, kind, dtype)
    x, y = _input(subject, dtype, 4, 8), _input(subject, dtype, 4, 6)
    output = _call(module, x, y)
    (output.double() * torch.randn_like(output.double())).sum().backward()  # type: ignore[no-untyped-call]
    expect_gradients(module, {"hidden_states": x, "key_value_states": y})


def _exercise(subject: Subject) -> Exercise:
    def make(layer_number: int, device: str | None = None) -> nn.Module:
        def request_of(kind: str) -> ArchitectureRequest:
            return _request(subject, kind, subject.dtype, layer_number)

        return assemble(subject, serving(subject, request_of), on=device, layer_number=layer_number)

    def inputs() -> Tensors:
        return {name: torch.randn(2, s, _H, dtype=torch.float64) for name, s in (("hidden", 5), ("keys", 3))}

    def run(module: nn.Module, given: Tensors) -> Tensors:
        return {"output": _call(module, given["hidden"], given["keys"])}

    return Exercise(make, inputs, run, fill=shake_parameters)
