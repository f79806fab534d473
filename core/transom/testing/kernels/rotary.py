"""Cases of the rotary slot."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from transom.slots.request import BuildContext, Request
from transom.slots.rotary import RotaryRequest
from transom.testing.agreement import Agreement, Tensors, agreement_cases
from transom.testing.case import Case, ConformanceError
from transom.testing.closeness import TOLERANCES, assert_close
from transom.testing.exercise import Exercise
from transom.testing.module_cases import module_cases
from transom.testing.subject import Subject, config_for
from transom.transformer.rope_scaling import RopeScaling

__all__ = ["cases"]

_D, _BASE = 16, 10_000.0
_FAR = 3000  # beyond any table that is made beforehand
_ROUNDING = 2e-3  # radians, of position times frequency in float32, that far away

_LLAMA3 = RopeScaling(type="llama3", factor=8.0, original_max_position_embeddings=64)
_YARN = RopeScaling(type="yarn", factor=4.0, original_max_position_embeddings=64, beta_fast=8.0)
_LONGROPE = RopeScaling(
    type="longrope", frequency_divisors=tuple(1.0 + 0.5 * i for i in range(_D // 2)), attention_factor=1.2
)
_XPOS = RopeScaling(type="xpos", scale_base=32.0)


@dataclass(frozen=True)
class _Call:
    """One rotation of queries ``[2, 6, 4, d]`` and keys ``[2, 6, 2, d]``."""

    name: str
    shows: str
    style: str
    scaling: str | None = None
    positions: Any = None
    rotary_dim: int = _D
    config: Mapping[str, Any] = field(default_factory=dict)
    floor: float = 0.0
    principal: bool = False

    @property
    def features(self) -> frozenset[str]:
        partial_ = ["partial"] if self.rotary_dim < _D else []
        return frozenset({self.style, *partial_, *([self.scaling] if self.scaling else [])})


def _calls(style: str) -> Iterator[_Call]:
    rows, one_row = [[0, 1, 2, 3, 4, 5], [0, 0, 0, 1, 2, 3]], [7, 8, 9, 10, 11, 12]
    far = [_FAR + i for i in range(6)]
    yield _Call(style, "without positions, pairs are rotated by 0, 1 and so on", style, principal=True)
    yield _Call(f"{style}_positions", "positions that all rows share", style, positions=one_row)
    yield _Call(f"{style}_rows", "positions of each row", style, positions=rows, principal=True)
    yield _Call(
        f"{style}_far",
        "angles are exact in float32 far beyond the tables, whatever the dtype",
        style,
        positions=far,
        floor=_ROUNDING,
        principal=True,
    )
    yield _Call(f"{style}_base", "the config's base counts", style, positions=one_row, config={"rotary_base": 100.0})
    half = {"rotary_percent": 0.5}
    yield _Call(
        f"{style}_partial", "only the first half is rotated", style, rotary_dim=_D // 2, config=half, principal=True
    )
    factor: dict[str, Any] = {"seq_len_interpolation_factor": 3.0}
    yield _Call(f"{style}_interpolated", "positions are divided by a factor", style, "linear", config=factor)
    linear = {"rope_scaling": RopeScaling(type="linear", factor=4.0)}
    yield _Call(f"{style}_linear", "frequencies are divided by a factor", style, "linear", one_row, config=linear)
    for scaling in (_LLAMA3, _YARN, _LONGROPE, _XPOS):
        kind = scaling.type
        yield _Call(f"{style}_{kind}", f"{kind} agrees", style, kind, one_row, config={"rope_scaling": scaling})


def cases(subject: Subject) -> Iterator[Case]:
    """Make the cases of a rotary embedding."""
    styles = ("half_split", "interleaved")
    calls = tuple(call for style in styles for call in _calls(style))
    yield from agreement_cases(subject, tuple(_agreement(call) for call in calls))
    style = next((each for each in styles if each in subject.features), "half_split")
    shows = "a query's product with a key depends on their distance alone"
    check = partial(_check_relative, subject, next(_calls(style)))
    yield Case("contract", "relative", shows, check, subject.dtype, subject.device)
    yield from module_cases(subject, _exercise(subject, next(_calls(style))))


def _agreement(call: _Call) -> Agreement:
    return Agreement(
        name=call.name,
        shows=call.shows,
        request=partial(_request, call),
        make=partial(_make, call),
        inputs=partial(_inputs, call),
        run=_run,
        expected=partial(_expected, call),
        features=call.features,
        principal=call.principal,
        floor=call.floor,
    )


def _request(call: _Call, context: BuildContext) -> RotaryRequest:
    return RotaryRequest(context=context, features=call.features, head_size=_D, rotary_dim=call.rotary_dim)


def _make(call: _Call, subject: Subject, request: Request, *, on: str | None = None) -> nn.Module:
    config = config_for(
        position_embedding_type="rope",
        rotary_interleaved=call.style == "interleaved",
        params_dtype=request.context.dtype,
        **call.config,
    )
    return subject.build(request, config, on=on, request=request)


def _inputs(call: _Call) -> Tensors:
    made = {
        "query": torch.randn(2, 6, 4, _D, dtype=torch.float64),
        "key": torch.randn(2, 6, 2, _D, dtype=torch.float64),
    }
    return made if call.positions is None else made | {"positions": torch.tensor(call.positions)}


def _run(module: nn.Module, inputs: Tensors) -> Tensors:
    query, key = module(inputs["query"], inputs["key"], inputs.get("positions"))
    return {"query": query, "key": key}


def _expected(call: _Call, state: Tensors, inputs: Tensors) -> Tensors:
    """Turn each pair as a complex number: by its frequency, times the position."""
    positions = inputs["positions"] if "positions" in inputs else torch.arange(6)
    where = positions.double().reshape(*positions.shape, 1, 1)  # [(b,) s, 1, 1]
    frequencies, amplitude = _frequencies(call)
    turns = torch.polar(torch.full_like(where * frequencies, amplitude), where * frequencies)
    growth = torch.ones(())
    if call.scaling == "xpos":
        i = torch.arange(0, call.rotary_dim, 2, dtype=torch.float64)
        growth = ((i + 0.4 * call.rotary_dim) / (1.4 * call.rotary_dim)) ** (where / _XPOS.scale_base)
    return {
        "query": _turn(call, inputs["query"], turns * growth),
        "key": _turn(call, inputs["key"], turns / growth),
    }


def _turn(call: _Call, x: Tensor, turns: Tensor) -> Tensor:
    rotated, kept = x[..., : call.rotary_dim], x[..., call.rotary_dim :]
    if call.style == "interleaved":
        real, imaginary = rotated[..., 0::2], rotated[..., 1::2]
    else:
        real, imaginary = rotated[..., : call.rotary_dim // 2], rotated[..., call.rotary_dim // 2 :]
    turned = torch.complex(real, imaginary) * turns
    if call.style == "interleaved":
        pairs = torch.stack([turned.real, turned.imag], dim=-1).flatten(-2)
    else:
        pairs = torch.cat([turned.real, turned.imag], dim=-1)
    return torch.cat([pairs, kept], dim=-1)


def _frequencies(call: _Call) -> tuple[Tensor, float]:
    """Give the frequency of each pair, and the factor of cosines and sines."""
    base = call.config.get("rotary_base", _BASE)
    plain = base ** -(torch.arange(0, call.rotary_dim, 2, dtype=torch.float64) / call.rotary_dim)
    plain = plain / call.config.get("seq_len_interpolation_factor", 1.0)
    scaling: RopeScaling | None = call.config.get("rope_scaling")
    if scaling is None or scaling.type == "xpos":
        return plain, 1.0
    if scaling.type == "linear":
        return plain / scaling.factor, 1.0
    if scaling.type == "longrope":
        return plain / torch.tensor(scaling.frequency_divisors, dtype=torch.float64), scaling.attention_factor or 1.0
    amplitude = 0.1 * math.log(scaling.factor) + 1 if scaling.type == "yarn" else 1.0
    kept = (_kept_by_yarn if scaling.type == "yarn" else _kept_by_llama3)(plain, scaling)
    return plain * kept + plain / scaling.factor * (1 - kept), amplitude


def _kept_by_llama3(frequencies: Tensor, scaling: RopeScaling) -> Tensor:
    """Wavelengths below the context over high_freq_factor are kept, above that over low_freq_factor scaled."""
    context = scaling.original_max_position_embeddings
    assert context is not None
    wavelengths = 2 * math.pi / frequencies
    ramp = (context / wavelengths - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    long, short = wavelengths > context / scaling.low_freq_factor, wavelengths < context / scaling.high_freq_factor
    return torch.where(long, 0.0, torch.where(short, 1.0, ramp))


def _kept_by_yarn(frequencies: Tensor, scaling: RopeScaling) -> Tensor:
    """Pairs that turn more than beta_fast times within the context are kept, less than beta_slow times scaled."""
    context = scaling.original_max_position_embeddings
    assert context is not None

    def pair(turns: float) -> float:
        return _D * math.log(context / (turns * 2 * math.pi)) / (2 * math.log(_BASE))

    low, high = max(math.floor(pair(scaling.beta_fast)), 0), min(math.ceil(pair(scaling.beta_slow)), _D - 1)
    return 1 - ((torch.arange(len(frequencies), dtype=torch.float64) - low) / (high - low)).clamp(0, 1)


def _check_relative(subject: Subject, call: _Call) -> None:
    module = _make(call, subject, _request(call, subject.context()))
    vectors = [torch.randn(1, 1, 1, _D, dtype=torch.float64) for _ in range(2)]
    query, key = (x.to(subject.device, getattr(torch, subject.dtype)).expand(1, 9, 1, _D) for x in vectors)
    turned_query, turned_key = module(query, key, torch.arange(9, device=subject.device))
    scores = torch.einsum("sd,td->st", turned_query[0, :, 0].double(), turned_key[0, :, 0].double()).cpu()
    expected = torch.stack([torch.stack([_at_distance(scores, i - j) for j in range(9)]) for i in range(9)])
    tolerance = TOLERANCES[subject.dtype].gradients
    assert_close(scores, expected.detach(), tolerance, "the product of a query with a key at the same distance")
    if bool((scores[0] == scores[0, 0]).all()):
        raise ConformanceError("the product of a query with a key does not depend on their distance")


def _at_distance(scores: Tensor, distance: int) -> Tensor:
    """Give the score of the first query and key at a distance."""
    return scores[max(distance, 0), max(-distance, 0)]


def _exercise(subject: Subject, call: _Call) -> Exercise:
    def make(layer_number: int, device: str | None = None) -> nn.Module:
        return _make(call, subject, _request(call, subject.context()), on=device)

    return Exercise(make, partial(_inputs, call), _run)
