from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transom.slots import BuildContext
from transom.slots.loss import LossRequest
from transom.transformer import loss
from transom.transformer.loss import CrossEntropy

B, S, H, V = 2, 5, 4, 9


def _formula(hidden: Tensor, weight: Tensor, labels: Tensor, bias: Tensor | None, z: float, ignored: int) -> Tensor:
    """Sum over the vocabulary, token by token, in float64."""
    rows = []
    for h, label in zip(hidden.reshape(-1, hidden.shape[-1]), labels.flatten().tolist(), strict=True):
        logits = [(h * w).sum() + (0 if bias is None else bias[i]) for i, w in enumerate(weight)]
        log_z = torch.stack(logits).exp().sum().log()
        rows.append(0 * log_z if label == ignored else log_z - logits[label] + z * log_z**2)
    return torch.stack(rows).view(labels.shape)


def _inputs(dtype=torch.float64, bias=True):
    generator = torch.Generator().manual_seed(0)
    hidden, weight, offset = (
        torch.randn(*shape, dtype=torch.float64, generator=generator).to(dtype).requires_grad_()
        for shape in ((B, S, H), (V, H), (V,))
    )
    labels = torch.randint(0, V, (B, S), generator=generator)
    return hidden, weight, labels, offset if bias else None


@pytest.fixture
def make_loss(make_config, monkeypatch):
    """Make a loss that computes whole, or in chunks of three tokens."""

    def make(path: str, *, z_loss: float = 0.0, ignore_index: int = -100) -> CrossEntropy:
        monkeypatch.setattr(loss, "_WHOLE", 3 * V if path == "chunked" else 10**9)
        request = LossRequest(context=BuildContext(), vocab_size=V, z_loss=z_loss, ignore_index=ignore_index)
        return CrossEntropy(make_config(), request=request)

    return make


paths = pytest.mark.parametrize("path", ["whole", "chunked"])
biases = pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
penalties = pytest.mark.parametrize("z", [0.0, 0.1])


@paths
@biases
@penalties
def test_loss_computes_its_formula(make_loss, path, bias, z):
    hidden, weight, labels, offset = _inputs(bias=bias)
    out = make_loss(path, z_loss=z)(hidden, weight, labels, offset)
    assert out.shape == (B, S)
    torch.testing.assert_close(out, _formula(hidden, weight, labels, offset, z, -100), rtol=1e-12, atol=1e-12)


@paths
@biases
@penalties
def test_loss_gradients_are_right(make_loss, path, bias, z):
    hidden, weight, labels, offset = _inputs(bias=bias)
    labels[0, 1] = -100
    crossing = make_loss(path, z_loss=z)
    given = (hidden, weight) if offset is None else (hidden, weight, offset)
    assert torch.autograd.gradcheck(lambda h, w, b=None: crossing(h, w, labels, b), given)


@paths
@penalties
@pytest.mark.parametrize("ignored", [-100, 3])
def test_loss_of_ignored_labels_is_zero_and_moves_nothing(make_loss, path, z, ignored):
    hidden, weight, labels, offset = _inputs()
    labels[0], labels[1] = ignored, (ignored + 1) % V
    out = make_loss(path, z_loss=z, ignore_index=ignored)(hidden, weight, labels, offset)
    assert out[0].tolist() == [0.0] * S
    assert (out[1] > 0).all()
    out.sum().backward()
    assert hidden.grad[0].abs().max() == 0
    assert hidden.grad[1].abs().min() > 0


@paths
def test_loss_where_all_labels_are_ignored_has_zero_gradients(make_loss, path):
    hidden, weight, labels, offset = _inputs()
    make_loss(path)(hidden, weight, torch.full_like(labels, -100), offset).sum().backward()
    assert hidden.grad.abs().max() == weight.grad.abs().max() == offset.grad.abs().max() == 0


@paths
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_loss_of_narrow_hidden_states_is_in_float32(make_loss, path, dtype):
    hidden, weight, labels, offset = _inputs(dtype)
    out = make_loss(path, z_loss=0.1)(hidden, weight, labels, offset)
    assert out.dtype == torch.float32
    exact = _formula(hidden.double(), weight.double(), labels, offset.double(), 0.1, -100)
    torch.testing.assert_close(out.double(), exact, rtol=0.05, atol=0.05)
    out.sum().backward()
    assert {t.grad.dtype for t in (hidden, weight, offset)} == {dtype}


@paths
def test_loss_stands_huge_logits(make_loss, path):
    hidden = torch.tensor([[[1000.0], [-1000.0]]])
    out = make_loss(path)(hidden, torch.tensor([[1.0], [0.0], [-1.0]] + [[0.0]] * (V - 3)), torch.tensor([[0, 0]]))
    assert out.tolist() == [[0.0, 2000.0]]


@pytest.mark.parametrize("frozen", [0, 1, 3], ids=["hidden", "weight", "bias"])
def test_chunked_loss_gives_no_gradient_to_what_is_frozen(make_loss, frozen):
    given = _inputs()
    given[frozen].requires_grad_(False)
    make_loss("chunked")(*given).sum().backward()
    other = _inputs()
    make_loss("whole")(*other).sum().backward()
    for i in (0, 1, 3):
        if i == frozen:
            assert given[i].grad is None
        else:
            torch.testing.assert_close(given[i].grad, other[i].grad)


def test_loss_never_holds_more_than_a_chunk_of_logits(make_loss):
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, tuple | list) else (out,):
                largest = max(largest, tensor.numel() if isinstance(tensor, Tensor) else 0)
            return out

    crossing, (hidden, weight, labels, _) = make_loss("chunked"), _inputs()
    tokens = 40
    many = hidden.detach().repeat(1, tokens // (B * S) * B, 1)[:1].requires_grad_()
    with Watch():
        crossing(many, weight, labels.repeat(1, tokens // (B * S) * B)[:1]).sum().backward()
    assert many.shape[1] * V > 300
    assert largest <= max(many.numel(), weight.numel(), 3 * V)


@pytest.mark.parametrize("label", [V, -1])
@paths
def test_loss_refuses_labels_that_are_no_ids(make_loss, path, label):
    hidden, weight, labels, _ = _inputs()
    labels[0, 0] = label
    with pytest.raises((IndexError, RuntimeError), match="out of bounds"):
        make_loss(path)(hidden, weight, labels)


@paths
def test_loss_compiles_with_its_backward(make_loss, path):
    crossing, given, other = make_loss(path, z_loss=0.1), _inputs(torch.float32), _inputs(torch.float32)
    out = torch.compile(crossing, fullgraph=True, backend="aot_eager")(*given)
    expected = crossing(*other)
    torch.testing.assert_close(out, expected)
    out.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(given[1].grad, other[1].grad)
