"""Specs of single modules: classes, functions, partials and names side by side."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from transom import ModuleSpec, TransformerConfig, build_module
from transom.errors import SpecError, UnknownImplementationError
from transom.module_specs import layer_builders
from transom.transformer.attention import SelfAttention, SelfAttentionSubmodules
from transom.transformer.dot_product_attention import DotProductAttention
from transom.transformer.identity_op import IdentityOp
from transom.transformer.linear import ColumnLinear, RowLinear
from transom.transformer.mlp import MLP, MLPSubmodules
from transom.transformer.norm import TorchNorm
from transom.transformer.norm_linear import TorchNormLinear
from transom.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules

CONFIG = TransformerConfig(
    num_layers=1, hidden_size=16, num_attention_heads=2, hidden_dropout=0.0, attention_dropout=0.0
)


def counting(calls: list[Any]) -> Any:
    def build(input_size: int, output_size: int, /, **arguments: Any) -> nn.Module:
        calls.append((input_size, output_size))
        return ColumnLinear(input_size, output_size, **arguments)

    return build


def test_build_module_takes_classes_functions_partials_and_names() -> None:
    calls: list[Any] = []
    spec = ModuleSpec(
        TransformerLayer,
        submodules=TransformerLayerSubmodules(
            input_layernorm=TorchNorm,
            self_attention=ModuleSpec(
                "self_attention",
                submodules=SelfAttentionSubmodules(
                    linear_qkv=counting(calls),
                    core_attention="torch_dot_product | dot_product",
                    linear_proj=RowLinear,
                ),
            ),
            mlp=partial(MLP, ffn_hidden_size=CONFIG.ffn_hidden_size),
        ),
    )
    layer = build_module(spec, CONFIG, slot="layer")
    hidden, context = layer(torch.randn(2, 5, 16))
    assert hidden.shape == (2, 5, 16)
    assert context is None
    assert calls == [(16, 48)]
    assert type(layer.self_attention.core_attention).__name__ == "TorchDotProductAttention"
    assert isinstance(layer.mlp.linear_fc1, ColumnLinear)
    assert spec.submodules.self_attention.submodules.core_attention == "torch_dot_product | dot_product", (
        "building must not change a spec"
    )
    assert spec.submodules.mlp.keywords == {"ffn_hidden_size": 64}


def test_build_module_gives_what_a_model_spec_gives() -> None:
    import transom

    model_spec = {"vocab_size": 8, "max_sequence_length": 8, "config": CONFIG}
    model = transom.build(model_spec, seed=0)
    layer = build_module(TransformerLayer, CONFIG, slot="layer")
    assert {n: p.shape for n, p in layer.named_parameters()} == {
        n: p.shape for n, p in model.layers[0].named_parameters()
    }
    layer.load_state_dict(model.layers[0].state_dict())
    x = torch.randn(1, 4, 16)
    assert torch.equal(layer(x)[0], model.layers[0](x)[0])


def test_build_module_passes_params_and_arguments() -> None:
    mlp = build_module(ModuleSpec(MLP, params={"ffn_hidden_size": 24}), CONFIG, slot="mlp", ffn_hidden_size=24)
    assert mlp.linear_fc1.weight.shape == (24, 16)
    expert = build_module(MLP, CONFIG, slot="mlp", is_expert=True, ffn_hidden_size=8)
    assert expert.linear_fc2.weight.shape == (16, 8)


def test_build_module_builds_on_the_meta_device() -> None:
    assert build_module("mlp", CONFIG, slot="mlp", device="meta").linear_fc1.weight.is_meta


def test_build_module_takes_a_mapping_for_submodules() -> None:
    spec = ModuleSpec("mlp", submodules={"linear_fc1": "parallel_linear"})
    mlp = build_module(spec, CONFIG, slot="mlp")
    assert type(mlp.linear_fc1).__name__ == "ColumnParallelLinear"
    assert isinstance(mlp.linear_fc2, RowLinear)


def test_module_spec_cannot_be_changed() -> None:
    params = {"is_expert": False}
    spec = ModuleSpec(MLP, params=params)
    params["is_expert"] = True
    assert spec.params == {"is_expert": False}
    with pytest.raises(AttributeError, match="cannot assign"):
        spec.module = SelfAttention  # type: ignore[misc]


def fails(*args: Any, **kwargs: Any) -> nn.Module:
    raise RuntimeError("no kernel image")


def test_build_module_keeps_the_cause_of_an_error_and_says_where() -> None:
    spec = ModuleSpec(MLP, submodules=MLPSubmodules(linear_fc1=fails, linear_fc2="torch_linear"))
    with pytest.raises(RuntimeError, match="no kernel image") as caught:
        build_module(spec, CONFIG, slot="mlp")
    assert any("mlp.linear_fc1" in note for note in caught.value.__notes__)


def never(config: Any) -> nn.Module:
    return nn.Identity()


@pytest.mark.parametrize(
    ("spec", "slot", "error", "text"),
    [
        ("nobody", "mlp", UnknownImplementationError, "no mlp is named 'nobody'"),
        (
            ModuleSpec("mlp", submodules={"linear_fc3": "x"}),
            "mlp",
            SpecError,
            "mlp.linear_fc3 is filled, and",
        ),
        (ModuleSpec("mlp", submodules={"activation_func": "x"}), "mlp", SpecError, "leaves no such place"),
        (ModuleSpec("mlp", submodules={"linear_fc1": never}), "mlp", SpecError, "cannot make a column_linear"),
        (ModuleSpec("mlp", submodules={"linear_fc1": 3}), "mlp", SpecError, "is filled with 3, .* is not callable"),
        (ModuleSpec("mlp", submodules=3), "mlp", SpecError, "submodules are a int; a dataclass or a mapping is needed"),
        (ModuleSpec("mlp", submodules={"linear_fc1": "nobody"}), "mlp", UnknownImplementationError, "mlp.linear_fc1"),
        (DotProductAttention, "core_attention", SpecError, "no module of slot 'core_attention' is built alone"),
    ],
)
def test_build_module_refuses_with_the_path(spec: Any, slot: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        build_module(spec, CONFIG, slot=slot)


def test_layer_builders_resolve_each_layer_of_a_stack_and_share_what_is_shared() -> None:
    config = TransformerConfig(num_layers=3, hidden_size=8, num_attention_heads=2, position_embedding_type="rope")
    spec = ModuleSpec("transformer_layer", submodules={"cross_attention": ModuleSpec("cross_attention")})
    builders = layer_builders(spec, config, (2, 3), cross_attention=True)
    second, third = (build(config, layer_number=number) for number, build in enumerate(builders, 2))
    assert (second.layer_number, third.layer_number) == (2, 3)
    assert second.reads_context
    assert second.self_attention.rotary is third.self_attention.rotary
    assert second.mlp is not third.mlp


def test_layer_builders_build_on_the_default_device() -> None:
    config = TransformerConfig(num_layers=1, hidden_size=8, num_attention_heads=2)
    with torch.device("meta"):
        (build,) = layer_builders("transformer_layer", config, [1])
        assert all(parameter.is_meta for parameter in build(config, layer_number=1).parameters())


def test_layer_builders_refuse_what_the_masks_need_and_nobody_serves() -> None:
    config = TransformerConfig(num_layers=1, hidden_size=8, num_attention_heads=2)
    spec = ModuleSpec("transformer_layer", submodules={"cross_attention": ModuleSpec("cross_attention")})
    with pytest.raises(SpecError, match="cross_attention is filled, and the config leaves no such place"):
        layer_builders(spec, config, [1])


def fused_layer(**filled: Any) -> ModuleSpec:
    attention = SelfAttentionSubmodules(
        linear_qkv="torch_norm_linear", core_attention=DotProductAttention, linear_proj=RowLinear
    )
    mlp = MLPSubmodules(linear_fc1=TorchNormLinear, linear_fc2=RowLinear)
    places = {
        "self_attention": ModuleSpec(SelfAttention, submodules=attention),
        "mlp": ModuleSpec(MLP, submodules=mlp),
        **filled,
    }
    return ModuleSpec(TransformerLayer, submodules=TransformerLayerSubmodules(**places))


@pytest.mark.parametrize("norm", [None, IdentityOp], ids=["none", "IdentityOp"])
def test_build_module_lets_a_norm_linear_fill_the_norms_place_too(norm: Any) -> None:
    fused = build_module(fused_layer(input_layernorm=norm, pre_mlp_layernorm=norm), CONFIG, slot="layer")
    apart = build_module(TransformerLayer, CONFIG, slot="layer")
    assert isinstance(fused.self_attention.linear_qkv, TorchNormLinear)
    assert isinstance(fused.mlp.linear_fc1, TorchNormLinear)
    assert isinstance(fused.input_layernorm, IdentityOp)
    assert isinstance(fused.pre_mlp_layernorm, IdentityOp)
    with torch.no_grad():
        for parameter in apart.parameters():
            parameter.normal_(std=0.3)
    assert fused.state_dict().keys() == apart.state_dict().keys()
    fused.load_state_dict(apart.state_dict())
    x = torch.randn(2, 5, 16)
    assert torch.equal(fused(x)[0], apart(x)[0])


def test_build_module_refuses_a_norm_beside_a_norm_linear() -> None:
    with pytest.raises(SpecError, match="which brings a norm along") as caught:
        build_module(fused_layer(input_layernorm=TorchNorm), CONFIG, slot="layer")
    assert caught.value.path == "layer.input_layernorm"
    assert caught.value.what == (
        "layer.input_layernorm is filled, and layer.self_attention.linear_qkv by torch_norm_linear, which brings a "
        "norm along."
    )
    assert caught.value.hint == "IdentityOp or None at layer.input_layernorm"


def test_layer_builders_take_a_norm_linear_in() -> None:
    (make,) = layer_builders(fused_layer(), CONFIG, (1,))
    layer = make(CONFIG, layer_number=1)
    assert {"input_layernorm.weight", "pre_mlp_layernorm.bias"} <= layer.sharded_state_dict().keys()
    assert not [name for name in layer.sharded_state_dict() if ".norm." in name]
