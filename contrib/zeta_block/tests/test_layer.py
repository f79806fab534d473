"""ZetaLayer: the published block in a residual branch, filled by name, in a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transom
from torch import Tensor, nn
from transom import BuildContext, TransformerConfig
from transom.errors import ResolutionError
from transom.slots.layer import LayerRequest
from transom.training.run import train
from transom_zeta_block.block import TransformerBlock
from transom_zeta_block.layer import ZetaLayer, ZetaOptions

SPEC = Path(__file__).parents[1] / "tiny-zeta.yaml"
SMALL = {"num_layers": 2, "hidden_size": 32, "ffn_hidden_size": 64, "num_attention_heads": 4, "num_query_groups": 1}


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def spec(**changes: Any) -> dict[str, Any]:
    options = changes.pop("options", None)
    config = {**SMALL, "hidden_dropout": 0.0, "attention_dropout": 0.0, "position_embedding_type": "none", **changes}
    data: dict[str, Any] = {
        "vocab_size": 64,
        "max_sequence_length": 32,
        "config": config,
        "use": {"layer": "zeta_block"},
    }
    return data if options is None else data | {"options": {"layer": options}}


def shaken(module: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return module


@pytest.mark.parametrize(
    "options", [{}, {"qk_rmsnorm": True, "qk_scale": 3.0}, {"use_xpos": False}, {"xpos_scale_base": 7}], ids=str
)
def test_layer_is_the_published_block_in_a_residual_branch(options: dict[str, Any]) -> None:
    layer = shaken(transom.build(spec(options=options), dtype="float64").layers[0])
    block = TransformerBlock(dim=32, dim_head=8, heads=4, ff_mult=2, **options).double()
    block.load_state_dict(layer.state_dict())
    x = torch.randn(2, 6, 32, dtype=torch.float64)
    out, _ = layer(x, mask=transom.AttentionMask(causal=True))
    torch.testing.assert_close(out, x + block(x), atol=1e-12, rtol=1e-10)


def test_layer_drops_by_its_option_and_by_the_config() -> None:
    x = torch.randn(1, 6, 32)
    for changes in ({"options": {"ff_dropout": 0.5}}, {"hidden_dropout": 0.5}, {"attention_dropout": 0.5}):
        layer = shaken(transom.build(spec(**changes)).layers[0])
        first, second = (layer(x, mask=transom.AttentionMask(causal=True))[0] for _ in range(2))
        assert not torch.equal(first, second)
        assert torch.equal(*(layer.eval()(x)[0] for _ in range(2)))


def test_layer_keeps_a_wide_residual_stream_when_asked() -> None:
    layer = transom.build(spec(params_dtype="bfloat16", fp32_residual_connection=True)).layers[0]
    out, _ = layer(torch.randn(1, 3, 32))
    assert out.dtype is torch.float32
    assert layer.norm.g.dtype is torch.bfloat16


def test_layer_hands_the_context_on() -> None:
    context = torch.randn(1, 2, 32)
    assert transom.build(spec()).layers[0](torch.randn(1, 3, 32), context=context)[1] is context


@pytest.mark.parametrize("kernel", ["dot_product", "torch_dot_product"])
def test_model_computes_the_same_by_any_core_attention(kernel: str) -> None:
    model = shaken(transom.build(spec()))
    other = transom.build(spec(), use={"core_attention": kernel})
    other.load_state_dict(model.state_dict())
    tokens = torch.randint(64, (2, 20))
    torch.testing.assert_close(other(tokens), model(tokens), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("groups", [1, 4])
def test_model_decodes_over_a_cache_as_it_reads_the_whole(groups: int) -> None:
    model = shaken(transom.build(spec(num_query_groups=groups), mode="infer", dtype="float64"))
    tokens = torch.randint(64, (2, 12))
    whole = model(tokens)
    model.setup_caches(2)
    steps = [model(tokens[:, :5], input_pos=torch.arange(5))]
    steps += [model(tokens[:, i : i + 1], input_pos=torch.tensor([i])) for i in range(5, 12)]
    torch.testing.assert_close(torch.cat(steps, dim=1), whole)


def test_layer_puts_weight_gradients_off_when_asked() -> None:
    grads = []
    for delayed in (False, True):
        torch.manual_seed(3)
        layer = transom.build(spec(delay_wgrad_compute=delayed)).layers[0]
        x = torch.randn(1, 5, 32)
        layer(x)[0].square().sum().backward()
        if delayed:
            assert layer.attn_out.weight.grad is None
            layer.backward_dw()
        grads.append({name: weight.grad for name, weight in layer.named_parameters()})
    for name, wanted in grads[0].items():
        torch.testing.assert_close(grads[1][name], wanted)


REFUSED = {
    "odd heads": ({"kv_channels": 5}, "rotary positions turn pairs of components, and kv_channels is 5"),
    "selective recompute": (
        {"recompute_granularity": "selective", "recompute_modules": ("mlp",)},
        "it recomputes none of its parts by itself; recompute_granularity: full recomputes it whole",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_layer_refuses_what_it_cannot_do(name: str) -> None:
    changes, reason = REFUSED[name]
    request = LayerRequest(context=BuildContext(), config=TransformerConfig(**(SMALL | changes)))
    assert list(ZetaLayer.supports(request)) == [reason]
    with pytest.raises(ResolutionError, match=reason.split(";")[0]):
        transom.plan(spec(**changes))


def test_layer_supports_a_plain_request() -> None:
    assert not list(ZetaLayer.supports(LayerRequest(context=BuildContext(), config=TransformerConfig(**SMALL))))


def test_layer_is_recomputed_whole_without_a_change() -> None:
    tokens, grads = torch.randint(64, (2, 10)), []
    for changes in ({}, {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}):
        model = transom.build(spec(**changes), seed=1)
        model(tokens).square().mean().backward()
        grads.append([weight.grad for weight in model.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*grads, strict=True))


def test_options_have_the_published_defaults() -> None:
    assert ZetaOptions() == ZetaOptions(
        qk_rmsnorm=False, qk_scale=8, ff_dropout=0.0, use_xpos=True, xpos_scale_base=512
    )


def test_spec_is_tiny_llama_with_other_layers() -> None:
    ours, theirs = transom.load_spec(SPEC), transom.load_spec("tiny-llama")
    assert (ours.vocab_size, ours.max_sequence_length, ours.train.data) == (
        theirs.vocab_size, theirs.max_sequence_length, theirs.train.data
    )  # fmt: skip
    model = transom.build(ours, device="meta")
    assert {type(layer) for layer in model.layers} == {ZetaLayer}
    assert 1_000_000 < sum(parameter.numel() for parameter in model.parameters()) < 4_000_000


def test_a_smaller_model_of_the_spec_learns(tmp_path: Path) -> None:
    data = transom.load_spec(SPEC).to_dict()
    data["config"] |= {"num_layers": 2, "hidden_size": 64, "ffn_hidden_size": 128, "num_attention_heads": 4}
    data["max_sequence_length"] = 64
    data["train"] |= {"steps": 60, "batch_size": 8, "learning_rate": 0.01, "warmup_steps": 5, "checkpoint_every": 0}
    uniform: Tensor = torch.tensor(256.0).log()
    assert train(data, out=tmp_path / "run").validation_loss < 0.6 * uniform
