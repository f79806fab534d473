"""Cases of the embedding slot."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from transom.slots.embedding import EmbeddingRequest
from transom.slots.request import BuildContext, Request
from transom.testing.agreement import Agreement, Tensors, agreement_cases
from transom.testing.case import Case, ConformanceError
from transom.testing.exercise import Exercise
from transom.testing.module_cases import module_cases
from transom.testing.subject import Subject, config_for

__all__ = ["cases"]

_ROWS, _WIDTH = 11, 16


@dataclass(frozen=True)
class _Call:
    """Ids that are looked up."""

    name: str
    shows: str
    ids: Any
    dtype: torch.dtype = torch.int64
    principal: bool = False


_CALLS = (
    _Call(
        "ids",
        "each id gives its row, and repeated ids add up their gradients",
        [[0, 3, 3, 10], [3, 1, 0, 10]],
        principal=True,
    ),
    _Call("ids_int32", "ids of 32 bits", [[0, 3, 3, 10]], torch.int32),
    _Call("one_dimension", "ids of one dimension, as positions are", [0, 1, 2, 3]),
    _Call("three_dimensions", "ids of three dimensions", [[[0, 1], [2, 3]], [[4, 5], [6, 7]]]),
    _Call("no_ids", "no ids at all", [[], []]),
)


def cases(subject: Subject) -> Iterator[Case]:
    """Make the cases of an embedding."""
    yield from agreement_cases(subject, tuple(_agreement(call) for call in _CALLS))
    shows = "weight [rows, width] has the config's dtype and is filled by the init method"
    yield Case("contract", "initial", shows, partial(_check_initial, subject), subject.dtype, subject.device)
    yield from module_cases(subject, _exercise(subject))


def _agreement(call: _Call) -> Agreement:
    return Agreement(
        name=call.name,
        shows=call.shows,
        request=_request,
        make=_make,
        inputs=partial(_inputs, call),
        run=_run,
        expected=_expected,
        principal=call.principal,
    )


def _request(context: BuildContext) -> EmbeddingRequest:
    return EmbeddingRequest(context=context, num_embeddings=_ROWS, embedding_dim=_WIDTH)


def _make(
    subject: Subject,
    request: Request,
    *,
    on: str | None = None,
    init_method: Callable[[Tensor], Any] = nn.init.normal_,
) -> nn.Module:
    config = config_for(params_dtype=request.context.dtype)
    return subject.build(request, _ROWS, _WIDTH, on=on, config=config, init_method=init_method, tp_group=None)


def _inputs(call: _Call) -> Tensors:
    return {"ids": torch.tensor(call.ids, dtype=call.dtype)}


def _run(module: nn.Module, inputs: Tensors) -> Tensors:
    return {"output": module(inputs["ids"])}


def _expected(state: Tensors, inputs: Tensors) -> Tensors:
    chosen = inputs["ids"][..., None] == torch.arange(_ROWS)  # [..., rows]
    return {"output": chosen.double() @ state["weight"]}


def _check_initial(subject: Subject) -> None:
    def fill(weight: Tensor) -> None:
        with torch.no_grad():
            weight.copy_(torch.arange(weight.numel()).view(weight.shape))

    module = _make(subject, _request(subject.context()), init_method=fill)
    wanted = torch.arange(_ROWS * _WIDTH).view(_ROWS, _WIDTH).to(getattr(torch, subject.dtype))
    found = {name: parameter.detach().cpu() for name, parameter in module.named_parameters()}
    if list(found) != ["weight"] or found["weight"].dtype is not wanted.dtype:
        raise ConformanceError(f"its parameters are {', '.join(found)}, expected weight in {subject.dtype}")
    if not torch.equal(found["weight"], wanted):
        raise ConformanceError("the init method did not fill the weight as one table [rows, width]")


def _exercise(subject: Subject) -> Exercise:
    def make(layer_number: int, device: str | None = None) -> nn.Module:
        return _make(subject, _request(subject.context()), on=device)

    return Exercise(make, partial(_inputs, _CALLS[0]), _run)
