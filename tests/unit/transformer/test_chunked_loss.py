from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transom.transformer import chunked_loss
from transom.transformer.chunked_loss import chunked_cross_entropy

TOKENS, H, V = 10, 4, 9


def _inputs(dtype=torch.float64, bias=True):
    hidden, weight, offset = (
        torch.randn(*shape, dtype=dtype, requires_grad=True) for shape in ((TOKENS, H), (V, H), (V,))
    )
    return hidden, weight, torch.randint(0, V, (TOKENS,)), offset if bias else None


@pytest.mark.parametrize("chunk", [1, 4, 10, 11])
def test_chunked_cross_entropy_does_not_depend_on_the_chunks(chunk):
    hidden, weight, labels, offset = _inputs()
    whole = chunked_cross_entropy(hidden, weight, labels, offset, -100, 0.1, TOKENS)
    out = chunked_cross_entropy(hidden, weight, labels, offset, -100, 0.1, chunk)
    torch.testing.assert_close(out, whole, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("softcap", [None, 2.0], ids=["uncapped", "capped"])
@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
def test_chunked_cross_entropy_is_a_sound_operator(bias, softcap):
    hidden, weight, labels, offset = _inputs(torch.float32, bias)
    given = (hidden, weight, labels, offset, -100, 0.1, 3, softcap)
    torch.library.opcheck(chunked_loss._losses, given)
    frozen = tuple(x.detach() if isinstance(x, Tensor) else x for x in given)
    torch.library.opcheck(chunked_loss._losses, frozen)
    _, log_partition = chunked_loss._losses(*frozen)
    torch.library.opcheck(
        chunked_loss._gradients, (torch.ones(TOKENS), *frozen[:4], log_partition, -100, 0.1, 3, softcap, True, False)
    )


def test_chunked_cross_entropy_agrees_with_torchs_over_any_leading_dimensions():
    hidden, weight, labels, offset = _inputs()
    labels[2] = 4
    found = chunked_cross_entropy(hidden.view(5, 2, H), weight, labels.view(5, 2), offset, 4, 0.0, 3)
    logits = hidden @ weight.T + offset
    expected = torch.nn.functional.cross_entropy(logits, labels, reduction="none", ignore_index=4)
    torch.testing.assert_close(found, expected.view(5, 2))
    cotangent = torch.randn(5, 2, dtype=torch.float64)
    ours = torch.autograd.grad(found, (hidden, weight, offset), cotangent)
    theirs = torch.autograd.grad(expected, (hidden, weight, offset), cotangent.flatten())
    torch.testing.assert_close(ours, theirs)


def test_chunked_cross_entropy_caps_logits_as_the_formula_says():
    hidden, weight, labels, offset = _inputs()
    found = chunked_cross_entropy(hidden, weight, labels, offset, -100, 0.1, 3, 1.5)
    logits = 1.5 * torch.tanh((hidden @ weight.T + offset) / 1.5)
    expected = torch.nn.functional.cross_entropy(logits, labels, reduction="none", ignore_index=-100)
    expected = expected + 0.1 * logits.logsumexp(-1).square().masked_fill(labels == -100, 0.0)
    torch.testing.assert_close(found, expected)
    cotangent = torch.randn(TOKENS, dtype=torch.float64)
    ours = torch.autograd.grad(found, (hidden, weight, offset), cotangent)
    torch.testing.assert_close(ours, torch.autograd.grad(expected, (hidden, weight, offset), cotangent))
