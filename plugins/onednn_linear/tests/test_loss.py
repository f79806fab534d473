"""The loss: values and gradients by a formula in float64, and who makes the logits."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transom import BuildContext, TransformerConfig
from transom.slots.loss import LossRequest
from transom.transformer import loss as cores
from transom_onednn_linear import product
from transom_onednn_linear.loss import OneDNNCrossEntropy

needs_onednn = pytest.mark.skipif(product.missing() is not None, reason="this torch was built without oneDNN")

HIDDEN, VOCAB = 12, 40


class Products(TorchDispatchMode):
    """Counts oneDNN's products."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += str(func) == "mkldnn._linear_pointwise.default"
        return func(*args, **(kwargs or {}))


def made(**changes) -> OneDNNCrossEntropy:
    config = TransformerConfig(num_layers=1, hidden_size=HIDDEN, num_attention_heads=1)
    request = LossRequest(context=BuildContext(), vocab_size=VOCAB, **changes)
    return OneDNNCrossEntropy(config, request=request)


def drawn() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(2, 5, HIDDEN, generator=generator).requires_grad_()
    weight = torch.randn(VOCAB, HIDDEN, generator=generator).requires_grad_()
    bias = torch.randn(VOCAB, generator=generator).requires_grad_()
    labels = torch.randint(VOCAB, (2, 5), generator=generator)
    labels[0, 1] = -100
    return hidden, weight, bias, labels


def expected(hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor, z_loss: float, softcap: float | None):
    logits = torch.einsum("bsh,vh->bsv", hidden, weight) + bias
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    log_z = logits.exp().sum(-1).log()
    picked = (logits * F.one_hot(labels.clamp(min=0), VOCAB)).sum(-1)
    return (log_z - picked + z_loss * log_z**2) * (labels != -100)


@pytest.mark.parametrize(("z_loss", "softcap"), [(0.0, None), (0.1, None), (0.1, 4.0)])
def test_losses_and_gradients_are_those_of_the_formula(z_loss, softcap) -> None:
    *leaves, labels = drawn()
    wide = [leaf.detach().double().requires_grad_() for leaf in leaves]
    hidden, weight, bias = leaves
    ours = made(z_loss=z_loss, softcap=softcap)(hidden, weight, labels, bias)
    theirs = expected(*wide, labels, z_loss, softcap)
    torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-5)
    found = torch.autograd.grad(ours.square().sum(), leaves)
    wanted = torch.autograd.grad(theirs.square().sum(), wide)
    for mine, formula in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine.double(), formula, rtol=1e-4, atol=1e-4)


@needs_onednn
@pytest.mark.parametrize("softcap", [None, 4.0])
def test_onednn_makes_the_logits_and_the_hidden_states_gradient(softcap) -> None:
    hidden, weight, bias, labels = drawn()
    with Products() as products:
        made(softcap=softcap)(hidden, weight, labels, bias).sum().backward()
    assert products.count == 2


def test_torch_makes_the_logits_of_chunks(monkeypatch) -> None:
    monkeypatch.setattr(cores, "_WHOLE", VOCAB)
    hidden, weight, bias, labels = drawn()
    with Products() as products:
        losses = made()(hidden, weight, labels, bias)
    assert products.count == 0
    torch.testing.assert_close(losses, expected(hidden, weight, bias, labels, 0.0, None), rtol=1e-5, atol=1e-5)


def test_torch_without_onednn_is_said(monkeypatch) -> None:
    monkeypatch.setattr(product, "_pointwise", None)
    request = LossRequest(context=BuildContext(), vocab_size=VOCAB)
    assert list(OneDNNCrossEntropy.supports(request)) == ["this torch was built without oneDNN"]
