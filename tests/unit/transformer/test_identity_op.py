from __future__ import annotations

import torch
from transom.transformer.identity_op import IdentityFuncOp, IdentityOp


def test_identity_op_returns_its_first_argument_itself(make_config):
    x = torch.randn(2, 3)
    module = IdentityOp(make_config(), hidden_size=8, eps=1e-5)
    assert module(x, None, training=True) is x
    assert not list(module.parameters())


def test_identity_func_op_returns_a_function_that_does(make_config):
    x = torch.randn(2, 3)
    module = IdentityFuncOp(make_config())
    assert module(True, 0.1)(x, None, 0.1) is x
    assert not list(module.parameters())
