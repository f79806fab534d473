"""delta_rule against the recurrence that it stands for, one token at a time, in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transom_delta_attention.delta_rule import delta_rule


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def recurrence(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    (b, t, n, _), g = query.shape, key.shape[2]
    rows = []
    for row in range(b):
        heads = []
        for head in range(n):
            memory = query.new_zeros(query.shape[3], value.shape[3])
            outputs = []
            for i in range(t):
                k, v = key[row, i, head // (n // g)], value[row, i, head // (n // g)]
                memory = memory + torch.outer(k, v - memory.T @ k)
                outputs.append(memory.T @ query[row, i, head])
            heads.append(torch.stack(outputs))
        rows.append(torch.stack(heads, dim=1))
    return torch.stack(rows)


def inputs(
    t: int, *, n: int = 4, g: int = 2, d: int = 5, dv: int = 5, dtype: torch.dtype = torch.float64
) -> list[Tensor]:
    query = torch.randn(2, t, n, d, dtype=dtype)
    key, value = F.normalize(torch.randn(2, t, g, d, dtype=dtype), dim=-1), torch.randn(2, t, g, dv, dtype=dtype)
    strength = torch.rand(2, t, g, 1, dtype=dtype).sqrt()
    return [x.requires_grad_() for x in (query, key * strength, value * strength)]


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 64])
@pytest.mark.parametrize("t", [1, 6, 7])
def test_delta_rule_equals_the_recurrence(t: int, chunk: int) -> None:
    tensors = inputs(t)
    out, exact = delta_rule(*tensors, chunk=chunk), recurrence(*tensors)
    torch.testing.assert_close(out, exact, atol=1e-12, rtol=1e-10)
    direction = torch.randn_like(out)
    found, wanted = (torch.autograd.grad((each * direction).sum(), tensors) for each in (out, exact))
    for mine, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-11, rtol=1e-9)


@pytest.mark.parametrize(("n", "g"), [(1, 1), (2, 2), (6, 2), (4, 1)])
@pytest.mark.parametrize(("d", "dv"), [(3, 8), (8, 3)])
def test_delta_rule_reads_the_right_memory(n: int, g: int, d: int, dv: int) -> None:
    tensors = inputs(5, n=n, g=g, d=d, dv=dv)
    torch.testing.assert_close(delta_rule(*tensors, chunk=2), recurrence(*tensors), atol=1e-12, rtol=1e-10)


def test_delta_rule_replaces_what_a_key_held() -> None:
    key = F.normalize(torch.randn(1, 1, 1, 4), dim=-1)
    value = torch.randn(1, 3, 1, 4)
    out = delta_rule(key.expand(1, 3, 1, 4), key.expand(1, 3, 1, 4), value)
    torch.testing.assert_close(out, value)


def test_delta_rule_passes_over_keys_and_values_of_zeros() -> None:
    query, key, value = (x.detach() for x in inputs(9))
    real = torch.ones(9, dtype=torch.bool)
    real[[0, 4, 5]] = False
    there = real[:, None, None]
    out = delta_rule(query, key * there, value * there, chunk=4)
    torch.testing.assert_close(out[:, real], delta_rule(query[:, real], key[:, real], value[:, real], chunk=4))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_delta_rule_computes_in_float32_when_precision_is_low(dtype: torch.dtype) -> None:
    tensors = [x.detach().to(dtype) for x in inputs(100)]
    out = delta_rule(*tensors)
    assert out.dtype is dtype
    torch.testing.assert_close(out, delta_rule(*(x.float() for x in tensors)).to(dtype))
