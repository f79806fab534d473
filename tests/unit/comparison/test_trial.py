"""One implementation at work."""

from __future__ import annotations

import torch
from torch import nn
from transom.comparison.place import Call
from transom.comparison.trial import Trial


def _trial(module: nn.Module, *, trains: bool) -> Trial:
    return Trial(module, Call((torch.tensor([[1.0, 2.0]], requires_grad=trains),), {}), trains=trains, compiles=False)


def test_trial_gives_outputs_and_the_gradients_of_inputs_and_parameters():
    linear = nn.Linear(2, 2, bias=False)
    found = _trial(linear, trains=True).results()
    assert torch.equal(found.outputs[0], torch.tensor([[1.0, 2.0]]) @ linear.weight.T)
    # The gradient that reaches the two outputs is -1 and 1.
    assert torch.equal(found.gradients[0], (linear.weight[1] - linear.weight[0])[None])
    assert torch.equal(found.gradients[1], torch.tensor([[-1.0, -2.0], [1.0, 2.0]]))
    assert not found.changed_inputs


def test_trial_gives_zeros_for_what_no_gradient_reaches():
    found = _trial(nn.Threshold(5.0, 0.0), trains=True).results()
    assert torch.equal(found.gradients[0], torch.zeros(1, 2))


def test_trial_leaves_dropout_out_of_what_it_compares():
    found = _trial(nn.Dropout(0.9), trains=True).results()
    assert torch.equal(found.outputs[0], torch.tensor([[1.0, 2.0]]))


def test_trial_gives_no_gradients_in_inference():
    found = _trial(nn.Linear(2, 2), trains=False).results()
    assert found.gradients is None
