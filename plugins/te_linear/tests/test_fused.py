"""Norms that are fused into what they feed compute what the reference does, and checkpoints are the reference's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transom
from torch import nn
from transom.checkpoint.module_layout import from_canonical, own_tensors, to_canonical
from transom.errors import ParallelError
from transom.registry.registry import default_registry
from transom_te_linear.mlp import TeNormMLP
from transom_te_linear.norm_linear import TeNormLinear

SHAPES = json.loads((Path(__file__).parent / "recorded_shapes.json").read_text(encoding="utf-8"))
CONFIG = {
    "num_layers": 2,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_query_groups": 2,
    "ffn_hidden_size": 48,
    "activation_func": "silu",
    "gated_linear_unit": True,
    "position_embedding_type": "rope",
    "attention_dropout": 0.0,
    "hidden_dropout": 0.0,
}
VARIANTS = {
    "gated RMSNorm": {"normalization": "RMSNorm", "add_bias_linear": False},
    "gated LayerNorm": {"normalization": "LayerNorm"},
    "plain": {"activation_func": "gelu_tanh", "gated_linear_unit": False},
    "zero-centred": {"normalization": "RMSNorm", "layernorm_zero_centered_gamma": True},
    "norms everywhere": {
        "qk_layernorm": True, "post_attention_layernorm": True, "post_mlp_layernorm": True, "normalization": "RMSNorm"
    },
}  # fmt: skip
NAMES = {"norm_linear": "te_layernorm_linear", "mlp": "te_layernorm_mlp"}
CHOICES = {
    "norm and linear": {"norm_linear": "te_layernorm_linear"},
    "norm and MLP": {"mlp": "te_layernorm_mlp"},
    "both": NAMES,
}
EACH = pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)


@pytest.fixture(autouse=True)
def _fused(install, on_the_cpu, monkeypatch):
    """Let specs name what is fused, over the stand-in."""
    install()
    for slot, name in NAMES.items():
        monkeypatch.setitem(default_registry()._registered, (slot, name), on_the_cpu(slot))


def spec(**config) -> dict:
    return {"name": "tiny", "vocab_size": 32, "max_sequence_length": 16, "config": CONFIG | config}


def both(variant: dict, mode: str = "train", use: dict = NAMES) -> tuple[nn.Module, nn.Module]:
    """Build a model with fused norms and the reference's, with the same weights."""
    model = transom.build(spec(**variant), use=use, mode=mode, seed=1)
    reference = transom.build(spec(**variant), mode=mode, seed=2)
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)) * 0.1)
    model.load_state_dict(reference.state_dict())
    return model, reference


@EACH
@pytest.mark.parametrize("use", CHOICES.values(), ids=CHOICES)
def test_fused_model_takes_the_references_state_and_gives_its_logits_and_gradients(variant, use):
    fused, reference = both(variant, use=use)
    kinds = {TeNormLinear: "norm_linear" in use, TeNormMLP: "mlp" in use}
    assert all(any(isinstance(m, kind) for m in fused.modules()) is wanted for kind, wanted in kinds.items())
    tokens = torch.randint(32, (2, 9), generator=torch.Generator().manual_seed(4))
    out, wanted = fused(tokens), reference(tokens)
    torch.testing.assert_close(out, wanted, rtol=1e-4, atol=1e-5)
    out.square().mean().backward()
    wanted.square().mean().backward()
    grads = {name: parameter.grad for name, parameter in own_tensors(fused).items()}
    canonical = to_canonical(fused, grads, moments=True)
    for name, parameter in reference.named_parameters():
        torch.testing.assert_close(canonical[name], parameter.grad, rtol=1e-3, atol=1e-6, msg=name)


@EACH
def test_state_has_the_references_names_and_shapes_and_nothing_of_fp8(variant):
    fused, reference = both(variant)
    ours, theirs = fused.state_dict(), reference.state_dict()
    assert {name: tensor.shape for name, tensor in ours.items()} == {name: t.shape for name, t in theirs.items()}
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    back = dict(from_canonical(fused, ours))
    own = own_tensors(fused)
    assert back.keys() == own.keys()
    assert all(torch.equal(back[name], own[name]) for name in own)


def test_optimizer_goes_on_from_the_references_state():
    fused, reference = both(VARIANTS["zero-centred"])
    models = {"fused": fused, "reference": reference}
    optimizers = {name: torch.optim.AdamW(model.parameters(), lr=1e-2) for name, model in models.items()}
    for step in range(3):
        tokens = torch.randint(32, (2, 8), generator=torch.Generator().manual_seed(step))
        losses = {}
        for name, model in models.items():
            optimizers[name].zero_grad()
            losses[name] = model(tokens, labels=tokens.roll(-1, 1)).mean()
            losses[name].backward()
            optimizers[name].step()
        torch.testing.assert_close(losses["fused"], losses["reference"], rtol=1e-4, atol=1e-5)
    mine = {name: optimizers["fused"].state[parameter]["exp_avg"] for name, parameter in own_tensors(fused).items()}
    canonical = to_canonical(fused, mine, moments=True)
    for name, parameter in reference.named_parameters():
        wanted = optimizers["reference"].state[parameter]["exp_avg"]
        torch.testing.assert_close(canonical[name], wanted, rtol=1e-3, atol=1e-6)


@EACH
def test_sharded_state_has_the_references_keys(variant):
    fused, reference = both(variant)
    ours, theirs = (model.sharded_state_dict() for model in (fused, reference))
    keys = {name: name for name in theirs}
    gated = {name for name in theirs if not hasattr(theirs[name], "key")}  # two shards of gate and up
    assert {name: shard.key for name, shard in ours.items()} == keys
    assert gated <= {name for name in keys if ".linear_fc1." in name}


@pytest.mark.parametrize("kind", list(SHAPES))
def test_layout_map_turns_the_recorded_state_of_the_fused_modules(kind):
    """What Transformer Engine 2.20.2 keeps, by its own source, becomes what the reference keeps."""
    fused, _ = both(SHAPES[kind]["config"])
    layer = fused.layers[0]
    assert {n: list(p.shape) for n, p in layer.mlp.inner.named_parameters()} == SHAPES[kind]["LayerNormMLP"]
    assert {n: list(p.shape) for n, p in layer.self_attention.linear_qkv.inner.named_parameters()} == (
        SHAPES[kind]["LayerNormLinear"]
    )


def test_model_is_made_on_meta_then_filled():
    model = transom.build(spec(), use=NAMES, device="meta")
    assert all(parameter.is_meta for parameter in model.parameters())
    reference = transom.build(spec(), seed=0)
    model.to_empty(device="cpu")
    model.load_state_dict(reference.state_dict())
    tokens = torch.arange(6)[None]
    # Tables of positions are no state; they are made anew with the model.
    filled = transom.build(spec(), use=NAMES)
    filled.load_state_dict(model.state_dict())
    torch.testing.assert_close(filled(tokens), reference(tokens), rtol=1e-4, atol=1e-5)


def test_model_in_evaluation_drops_nothing():
    fused, _ = both({"hidden_dropout": 0.5})
    fused.eval()
    tokens = torch.arange(6)[None]
    assert torch.equal(fused(tokens), fused(tokens))
    assert not torch.equal(fused.train()(tokens), fused(tokens))


def test_cache_decodes_what_whole_sequences_give():
    fused, _ = both({}, mode="infer")
    tokens = torch.randint(32, (2, 8))
    whole = fused(tokens)
    fused.setup_caches(2)
    for step in range(8):
        out = fused(tokens[:, step : step + 1], input_pos=torch.tensor([step]))
        torch.testing.assert_close(out, whole[:, step : step + 1], rtol=1e-4, atol=1e-5)


def test_mlp_scales_tokens_as_the_reference_does():
    fused, reference = both(VARIANTS["gated LayerNorm"])
    layer, wanted = fused.layers[0], reference.layers[0]
    x, scale = torch.randn(2, 3, 32), torch.rand(2, 3)
    out, bias = layer.mlp(x, scale)
    assert bias is None
    torch.testing.assert_close(out, wanted.mlp(wanted.pre_mlp_layernorm(x), scale)[0])


def test_mlp_scales_tokens_on_one_process_alone():
    fused, _ = both(VARIANTS["plain"])
    mlp = fused.layers[0].mlp
    mlp.ranks = type(mlp.ranks)("two", 2, 0)
    with pytest.raises(ParallelError, match="scales tokens on one process alone, and there are 2 ranks") as caught:
        mlp(torch.randn(1, 2, 32), torch.ones(1, 2))
    assert caught.value.ranks == 2


def test_norm_linear_refuses_to_gather_over_several_ranks():
    class Group:
        group_name = "two"

        def size(self):
            return 2

        def rank(self):
            return 1

    config = transom.TransformerConfig(**CONFIG)
    with pytest.raises(ParallelError, match="norm and column linear 32 -> 64 gathers its output") as caught:
        TeNormLinear(
            32, 64, config=config, init_method=nn.init.normal_, gather_output=True, bias=False, skip_bias_add=False,
            is_expert=False, tp_comm_buffer_name="qkv", tp_group=Group(),
        )  # fmt: skip
    assert caught.value.ranks == 2


@pytest.mark.parametrize("recipe", ["delayed", "current", "block"])
def test_fused_modules_compute_under_their_recipe(recipe):
    from transformer_engine.pytorch import modules

    options = {"norm_linear": {"recipe": recipe}, "mlp": {"recipe": recipe}}
    model = transom.build(spec(), use=NAMES, options=options)
    modules.seen.clear()
    model(torch.arange(6)[None])
    names = {"delayed": "DelayedScaling", "current": "Float8CurrentScaling", "block": "Float8BlockScaling"}
    assert len(modules.seen) == 4
    assert all(str(each).startswith(names[recipe]) for each in modules.seen)
