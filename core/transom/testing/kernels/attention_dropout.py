"""Dropout of attention weights: how often, how it is made up for, and never in evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from transom.slots.core_attention import CoreAttentionRequest
from transom.testing.case import Case, ConformanceError
from transom.testing.closeness import TOLERANCES, assert_close, assert_same
from transom.testing.subject import Subject, config_for

__all__ = ["attention_dropout_cases"]

_P = 0.3
_TOKENS = 64
_HEADS = 2


def attention_dropout_cases(subject: Subject) -> Iterator[Case]:
    """Make the cases of dropout; the first two hold for every core attention, declared or not."""
    yield _case(subject, "dropout_in_eval", "nothing is dropped in evaluation", _check_eval)
    yield _case(subject, "dropout_of_zero", "attention_dropout=0 drops nothing in training", _check_zero)
    if "dropout" not in subject.features or not subject.declares_training:
        return
    for name, (shows, check) in _DROPPING.items():
        yield _case(subject, name, shows, subject.in_training(check))
    if "float64" in subject.dtypes:
        shows = "gradients of queries and keys are those of what forward dropped"
        check = partial(subject.in_training(_check_slope), subject)
        yield Case("agreement", "dropout_slope", shows, check, "float64", subject.device)


def _case(subject: Subject, name: str, shows: str, check: object) -> Case:
    assert callable(check)
    return Case("agreement", name, shows, partial(check, subject), subject.dtype, subject.device)


def _make(subject: Subject, dropout: float, argument: float | None = None, dtype: str | None = None) -> nn.Module:
    asked = {"dropout"} if dropout and "dropout" in subject.features else set()
    request = CoreAttentionRequest(
        context=subject.context(dtype),
        features=frozenset(asked),
        num_attention_heads=_HEADS,
        num_query_groups=_HEADS,
        head_size=_TOKENS,
        value_head_size=_TOKENS,
        dropout=dropout,
    )
    config = config_for(
        hidden_size=_HEADS * _TOKENS,
        num_attention_heads=_HEADS,
        attention_dropout=dropout,
        params_dtype=dtype or subject.dtype,
    )
    return subject.build(request, config, request=request, layer_number=1, attention_dropout=argument)


def _uniform(subject: Subject) -> tuple[Tensor, Tensor, Tensor]:
    """Make queries and keys that weigh all keys alike, and values ``[b, t, n, dv]`` that show each weight alone.

    Value j is the j-th unit vector, so that component j of an output is the weight of key j.
    """
    dtype = getattr(torch, subject.dtype)
    zeros = torch.zeros(2, _TOKENS, _HEADS, _TOKENS, dtype=dtype, device=subject.device)
    units = torch.eye(_TOKENS, dtype=dtype, device=subject.device)[None, :, None, :]
    return zeros, zeros.clone(), units.expand_as(zeros).contiguous()


def _check_eval(subject: Subject) -> None:
    query, key, value = _uniform(subject)
    weights = _make(subject, _P).eval()(query, key, value)
    even = torch.full(weights.shape, 1 / _TOKENS, dtype=torch.float64)
    assert_close(weights, even, TOLERANCES[subject.dtype].outputs, "the weights in evaluation")


def _check_zero(subject: Subject) -> None:
    query, key, value = _uniform(subject)
    weights = _make(subject, 0.0, argument=0.0).train()(query, key, value)
    even = torch.full(weights.shape, 1 / _TOKENS, dtype=torch.float64)
    assert_close(weights, even, TOLERANCES[subject.dtype].outputs, "the weights with attention_dropout=0")


def _check_share(subject: Subject) -> None:
    weights = _make(subject, _P)(*_uniform(subject))
    _expect_share(weights, _P)
    kept = weights[weights != 0].double().cpu()
    scaled = torch.full(kept.shape, 1 / (_TOKENS * (1 - _P)), dtype=torch.float64)
    assert_close(kept, scaled, TOLERANCES[subject.dtype].outputs, "the weights that are kept, over 1 - p")


def _check_argument(subject: Subject) -> None:
    _expect_share(_make(subject, _P, argument=0.6)(*_uniform(subject)), 0.6)


def _expect_share(weights: Tensor, p: float) -> None:
    """Expect a share of zeros within five standard deviations of a fair draw."""
    share = float((weights == 0).double().mean())
    allowed = 5 * (p * (1 - p) / weights.numel()) ** 0.5
    if abs(share - p) > allowed:
        raise ConformanceError(f"{share:.3f} of the weights are dropped, expected {p} within {allowed:.3f}")


def _check_differs(subject: Subject) -> None:
    module, inputs = _make(subject, _P), _uniform(subject)
    first, second = module(*inputs), module(*inputs)
    pairs = {
        "two calls": (first, second),
        "two rows": (first[0], first[1]),
        "two heads": (first[:, :, 0], first[:, :, 1]),
        "two queries": (first[:, 0], first[:, 1]),
    }
    for what, (one, other) in pairs.items():
        if torch.equal(one, other):
            raise ConformanceError(f"{what} drop the same weights")


def _check_seeded(subject: Subject) -> None:
    module, inputs = _make(subject, _P), _uniform(subject)
    torch.manual_seed(7)
    first = module(*inputs)
    torch.manual_seed(7)
    assert_same(module(*inputs), first, "the output from the same random state")


def _check_backward(subject: Subject) -> None:
    """Use that the output is linear in the values: out · g = value · (gradient of out · g with respect to value)."""
    query, key, value = _uniform(subject)
    value.requires_grad_()
    output = _make(subject, _P)(query, key, value)
    direction = torch.randn(output.shape, dtype=torch.float64).to(output)
    output.backward(direction)
    if value.grad is None:
        raise ConformanceError("no gradient reaches value")
    forward = (output.double() * direction.double()).sum(dim=(1, 3)).cpu()  # [b, n]
    back = (value.double() * value.grad.double()).sum(dim=(1, 3)).cpu()
    scale = (output.double() * direction.double()).abs().sum(dim=(1, 3)).cpu()
    tolerance = TOLERANCES[subject.dtype].gradients
    assert_close(back / scale, forward / scale, tolerance, "value times its gradient, against output times its own,")


def _check_slope(subject: Subject) -> None:
    """Compare the derivative along a random direction with a difference quotient under the same random state."""
    module = _make(subject, _P, dtype="float64")
    inputs = [torch.randn(2, 8, _HEADS, _TOKENS, dtype=torch.float64).to(subject.device) for _ in range(3)]
    weights, *directions = (torch.randn_like(inputs[0]) for _ in range(4))

    def value(step: float) -> Tensor:
        torch.manual_seed(7)
        moved = [x + step * direction for x, direction in zip(inputs, directions, strict=True)]
        output: Tensor = module(*moved)
        return (output * weights).sum()

    step = torch.zeros((), dtype=torch.float64, device=subject.device, requires_grad=True)
    torch.manual_seed(7)
    moved = [x + step * direction for x, direction in zip(inputs, directions, strict=True)]
    (slope,) = torch.autograd.grad((module(*moved) * weights).sum(), step)
    with torch.no_grad():
        quotient = (value(1e-5) - value(-1e-5)) / 2e-5
    assert_close(slope, quotient.cpu(), 1e-4, "the derivative, against a difference quotient,")


_DROPPING: Mapping[str, tuple[str, Callable[[Subject], None]]] = {
    "dropout_share": ("as many weights are dropped as asked for, the others scaled", _check_share),
    "dropout_argument": ("attention_dropout overrides the request's", _check_argument),
    "dropout_differs": ("heads, rows and calls drop different weights", _check_differs),
    "dropout_seeded": ("the same random state drops the same weights", _check_seeded),
    "dropout_backward": ("backward drops the weights that forward dropped", _check_backward),
}
