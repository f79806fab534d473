"""What reaches one place of a model."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transom.comparison.place import Call, captured, tensors_in
from transom.errors import InputError
from transom.transformer.attention_mask import AttentionMask


class Inner(nn.Module):
    def forward(self, x, *, mask=None):
        return x + 1


def test_captured_gives_the_first_call_with_leaves_of_its_own():
    inner, x = Inner(), torch.ones(2, 3)
    mask = AttentionMask(causal=True)
    mask.as_bool(3, 3, device=x.device)

    def run():
        inner(x, mask=mask)
        inner(2 * x)

    call = captured(inner, run, trains=True)
    (copy,) = call.args
    assert torch.equal(copy, x)
    assert copy is not x
    assert copy.requires_grad
    assert call.inputs() == [copy]
    assert call.kwargs["mask"].causal
    assert call.kwargs["mask"]._memo == {}
    assert torch.equal(call.on(inner), x + 1)


def test_call_copied_shares_nothing():
    call = Call((torch.ones(2, requires_grad=True),), {"more": [torch.zeros(3)]})
    copied = call.copied()
    assert copied.is_like(call)
    assert copied.args[0].requires_grad
    assert not copied.kwargs["more"][0].requires_grad
    copied.kwargs["more"][0].add_(1)
    assert not copied.is_like(call)


def test_captured_refuses_a_module_that_is_not_called():
    with pytest.raises(InputError, match="does not call its Inner"):
        captured(Inner(), lambda: None, trains=False)


def test_captured_needs_no_gradients_for_inference():
    inner = Inner()
    call = captured(inner, lambda: inner(torch.ones(1)), trains=False)
    assert call.inputs() == []


def test_tensors_in_looks_into_tuples_lists_and_mappings():
    a, b, c = torch.zeros(1), torch.ones(1), torch.full((1,), 2.0)
    assert list(tensors_in((a, [b, None], {"c": c}, 3))) == [a, b, c]
