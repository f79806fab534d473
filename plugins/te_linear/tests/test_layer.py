"""The fused layer computes what the reference's does, and its checkpoints are the reference's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transom
from torch import nn
from transom.checkpoint.module_layout import from_canonical, own_tensors, to_canonical
from transom_te_linear.layer import TeLayer

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
EACH = pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)


def both(variant: dict, mode: str = "train") -> tuple[nn.Module, nn.Module]:
    """Build a model with fused layers and the reference's, with the same weights."""
    spec = {"name": "tiny", "vocab_size": 32, "max_sequence_length": 16, "config": CONFIG | variant}
    with transom.override("layer", "fused_here", TeLayer):
        fused = transom.build(spec, use={"layer": "fused_here"}, mode=mode, seed=1)
    reference = transom.build(spec, mode=mode, seed=2)
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)) * 0.1)
    fused.load_state_dict(reference.state_dict())
    return fused, reference


@EACH
def test_fused_model_takes_the_references_state_and_gives_its_logits_and_gradients(variant, install):
    install()
    fused, reference = both(variant)
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
def test_state_has_the_references_names_and_shapes_and_nothing_of_fp8(variant, install):
    install()
    fused, reference = both(variant)
    ours, theirs = fused.state_dict(), reference.state_dict()
    assert {name: tensor.shape for name, tensor in ours.items()} == {name: t.shape for name, t in theirs.items()}
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    back = dict(from_canonical(fused, ours))
    own = own_tensors(fused)
    assert back.keys() == own.keys()
    assert all(torch.equal(back[name], own[name]) for name in own)


def test_optimizer_goes_on_from_the_references_state(install):
    install()
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
def test_sharded_state_has_the_references_keys(variant, install):
    install()
    fused, reference = both(variant)
    ours, theirs = (model.sharded_state_dict() for model in (fused, reference))
    keys = {name: name for name in theirs}
    gated = {name for name in theirs if not hasattr(theirs[name], "key")}  # two shards of gate and up
    assert {name: shard.key for name, shard in ours.items()} == keys
    assert gated <= {name for name in keys if ".linear_fc1." in name}


@pytest.mark.parametrize("kind", list(SHAPES))
def test_layout_map_turns_the_recorded_state_of_the_fused_modules(kind, install):
    """What Transformer Engine 2.20.2 keeps, by its own source, becomes what the reference keeps."""
    install()
    fused, _ = both(SHAPES[kind]["config"])
    layer = fused.layers[0]
    assert {n: list(p.shape) for n, p in layer.mlp.inner.named_parameters()} == SHAPES[kind]["LayerNormMLP"]
    assert {n: list(p.shape) for n, p in layer.self_attention.linear_qkv.inner.named_parameters()} == (
        SHAPES[kind]["LayerNormLinear"]
    )


def test_model_is_made_on_meta_then_filled(install):
    install()
    spec = {"name": "tiny", "vocab_size": 32, "max_sequence_length": 16, "config": CONFIG}
    with transom.override("layer", "fused_here", TeLayer):
        model = transom.build(spec, use={"layer": "fused_here"}, device="meta")
    assert all(parameter.is_meta for parameter in model.parameters())
    reference = transom.build(spec, seed=0)
    model.to_empty(device="cpu")
    model.load_state_dict(reference.state_dict())
    tokens = torch.arange(6)[None]
    # Tables of positions are no state; they are made anew with the model.
    with transom.override("layer", "fused_here", TeLayer):
        filled = transom.build(spec, use={"layer": "fused_here"})
    filled.load_state_dict(model.state_dict())
    torch.testing.assert_close(filled(tokens), reference(tokens), rtol=1e-4, atol=1e-5)


def test_layer_in_evaluation_drops_nothing(install):
    install()
    fused, _ = both({"hidden_dropout": 0.5})
    fused.eval()
    tokens = torch.arange(6)[None]
    assert torch.equal(fused(tokens), fused(tokens))
    assert not torch.equal(fused.train()(tokens), fused(tokens))


def test_cache_decodes_what_whole_sequences_give(install):
    install()
    fused, _ = both({}, mode="infer")
    tokens = torch.randint(32, (2, 8))
    whole = fused(tokens)
    fused.setup_caches(2)
    for step in range(8):
        out = fused(tokens[:, step : step + 1], input_pos=torch.tensor([step]))
        torch.testing.assert_close(out, whole[:, step : step + 1], rtol=1e-4, atol=1e-5)
