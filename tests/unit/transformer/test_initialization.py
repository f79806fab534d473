from __future__ import annotations

import pytest
import torch
from torch import nn
from transom.transformer.initialization import NormalInit, initialize, leave_uninitialized


def test_normal_init_draws_what_torch_draws():
    parameter = nn.Parameter(torch.empty(50, 40))
    torch.manual_seed(1)
    NormalInit(0.3)(parameter)
    torch.manual_seed(1)
    assert torch.equal(parameter.detach(), torch.empty(50, 40).normal_(std=0.3))
    assert parameter.std().item() == pytest.approx(0.3, rel=0.1)


def test_normal_inits_are_equal_when_their_numbers_are():
    assert NormalInit(0.1) == NormalInit(0.1)
    assert hash(NormalInit(0.1)) == hash(NormalInit(0.1))
    assert NormalInit(0.1) != NormalInit(0.2)


def test_initialize_calls_the_method_without_gradients(make_config):
    parameter = nn.Parameter(torch.zeros(3))
    initialize(parameter, lambda weight: weight.add_(2.0), make_config())  # in place on a leaf: needs no_grad
    assert parameter.tolist() == [2.0, 2.0, 2.0]


def test_initialize_leaves_weights_alone_when_told_to(make_config):
    parameter = nn.Parameter(torch.full((3,), 5.0))
    initialize(parameter, NormalInit(1.0), make_config(perform_initialization=False))
    assert parameter.tolist() == [5.0, 5.0, 5.0]


def test_initialize_draws_nothing_for_the_meta_device(make_config):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    initialize(nn.Parameter(torch.empty(3, device="meta")), NormalInit(1.0), make_config())
    assert torch.equal(torch.get_rng_state(), before)


class _Elsewhere(torch.Tensor):
    """Says that it is on another device, and records what is copied into it."""

    copied: torch.Tensor | None = None

    @property
    def device(self):
        return torch.device("cuda")

    def copy_(self, other):
        self.copied = other
        return self


def test_initialize_draws_on_the_cpu_for_other_devices_when_told_to(make_config):
    weight = torch.empty(4).as_subclass(_Elsewhere)
    torch.manual_seed(3)
    initialize(weight, NormalInit(1.0), make_config(use_cpu_initialization=True))
    torch.manual_seed(3)
    assert torch.equal(weight.copied.as_subclass(torch.Tensor), torch.empty(4).normal_())


def test_initialize_draws_nothing_where_a_checkpoint_will_fill_the_weights(make_config):
    weight, state = torch.full((4,), 7.0), torch.get_rng_state()
    with leave_uninitialized():
        initialize(weight, NormalInit(1.0), make_config())
    assert weight.tolist() == [7.0] * 4
    assert torch.equal(torch.get_rng_state(), state)
    initialize(weight, NormalInit(1.0), make_config())
    assert weight.tolist() != [7.0] * 4
