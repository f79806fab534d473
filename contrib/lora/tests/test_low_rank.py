"""The product of two small matrices, as a module of its own."""

from __future__ import annotations

import pytest
import torch
import transom
from torch import nn
from transom.errors import InputError
from transom_lora.low_rank import LowRank
from transom_lora.merge import merge


def learned(**options: float) -> LowRank:
    torch.manual_seed(0)
    module = LowRank(6, 4, rank=3, **options).double()  # type: ignore[arg-type]
    nn.init.normal_(module.lora_b)
    return module


@pytest.mark.parametrize(("alpha", "scale"), [(None, 2.0), (5.0, 5 / 3)], ids=["default", "given"])
def test_low_rank_equals_its_formula(alpha: float | None, scale: float) -> None:
    module = learned() if alpha is None else learned(alpha=alpha)
    x = torch.randn(2, 5, 6, dtype=torch.float64)
    torch.testing.assert_close(module(x), x @ (module.lora_b @ module.lora_a).T * scale)


def test_low_rank_starts_as_zeros_and_learns() -> None:
    module = LowRank(6, 4)
    out = module(torch.randn(2, 6))
    assert not out.any()
    out.sum().backward()
    assert module.lora_b.grad is not None
    assert bool(module.lora_b.grad.any())


def test_low_rank_drops_in_training_alone() -> None:
    module = learned(dropout=0.5)
    x = torch.randn(3, 6, dtype=torch.float64)
    assert not torch.equal(module.train()(x), module(x))
    assert torch.equal(module.eval()(x), module(x))


def test_low_rank_serves_a_block_that_takes_finetune_modules() -> None:
    zeta = pytest.importorskip("transom_zeta_block")
    torch.manual_seed(0)
    adapters = (LowRank(32, 32), LowRank(32, 8), LowRank(32, 8), LowRank(32, 32))
    plain = zeta.TransformerBlock(dim=32, dim_head=8, heads=4)
    block = zeta.TransformerBlock(dim=32, dim_head=8, heads=4, finetune_modules=adapters)
    block.load_state_dict(plain.state_dict())
    x = torch.randn(2, 5, 32)
    torch.testing.assert_close(block(x), plain(x))
    for adapter in adapters:
        nn.init.normal_(adapter.lora_b)
    assert not torch.allclose(block(x), plain(x))
    block(x).sum().backward()
    assert all(adapter.lora_a.grad is not None for adapter in adapters)


def test_adapters_over_integers_cannot_be_merged() -> None:
    pytest.importorskip("transom_int8_linear")
    hooks = [{"hook": "int8_linear", "options": {"training": True}}, "lora"]
    model = transom.build(transom.load_spec("tiny-llama").to_dict() | {"hooks": hooks})
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    what = "the weight of layers.0.self_attention.linear_qkv is kept in fewer bits, and nothing can be added to it."
    with pytest.raises(InputError) as caught:
        merge(model)
    assert caught.value.what == what
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
