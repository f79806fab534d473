"""One layer against its equations."""

from __future__ import annotations

from itertools import product
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transom.slots import ArchitectureRequest, BuildContext
from transom.transformer import parts
from transom.transformer.attention_mask import AttentionMask
from transom.transformer.identity_op import IdentityOp
from transom.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules

F64 = {"params_dtype": "float64"}
CAUSAL = AttentionMask(causal=True)


@pytest.fixture
def x() -> Tensor:
    torch.manual_seed(1)
    return torch.randn(2, 5, 32, dtype=torch.float64)


def by_hand(layer: Any, x: Tensor, context: Tensor | None = None) -> Tensor:
    """The equations, with the layer's own parts."""

    def branch(output: Tensor, bias: Tensor | None, post: Any) -> Tensor:
        output = output if bias is None else output + bias
        return output if post is None else post(output)

    attended = layer.self_attention(layer.input_layernorm(x), mask=AttentionMask(causal=True))
    x = x + branch(*attended, layer.post_attention_layernorm)
    if context is not None:
        x = x + branch(*layer.cross_attention(layer.pre_cross_attn_layernorm(x), key_value_states=context), None)
    return x + branch(*layer.mlp(layer.pre_mlp_layernorm(x)), layer.post_mlp_layernorm)


@pytest.mark.parametrize(("pre", "post"), list(product([True, False], [True, False])))
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_layer_is_its_equations_when_norms_come_and_go(
    pre: bool, post: bool, bias: bool, x: Tensor, small_config: Any, build: Any
) -> None:
    fields = {"pre_layernorm": pre, "post_attention_layernorm": post, "post_mlp_layernorm": post}
    layer = build("layer", small_config(add_bias_linear=bias, **fields, **F64))
    assert isinstance(layer.input_layernorm, IdentityOp) is not pre
    assert (layer.post_mlp_layernorm is None) is not post
    torch.testing.assert_close(layer(x, mask=CAUSAL)[0], by_hand(layer, x), rtol=0, atol=1e-12)


def test_layer_with_a_parallel_residual_gives_its_mlp_what_attention_got(
    x: Tensor, small_config: Any, build: Any
) -> None:
    """``x + attn(norm(x)) + mlp(norm(x))``, with a norm for each, as in GPT-NeoX."""
    layer = build("layer", small_config(parallel_residual=True, **F64))
    with torch.no_grad():
        layer.pre_mlp_layernorm.weight.uniform_(0.5, 2.0)
    attended, attention_bias = layer.self_attention(layer.input_layernorm(x), mask=CAUSAL)
    inner, mlp_bias = layer.mlp(layer.pre_mlp_layernorm(x))
    expected = x + attended + attention_bias + inner + mlp_bias
    torch.testing.assert_close(layer(x, mask=CAUSAL)[0], expected, rtol=0, atol=1e-12)


def test_layer_reads_the_context_between_attention_and_mlp(x: Tensor, small_config: Any, build: Any) -> None:
    layer = build("layer", small_config(**F64), cross_attention=True)
    context = torch.randn(2, 3, 32, dtype=torch.float64)
    got, returned = layer(x, mask=CAUSAL, context=context)
    assert returned is context
    torch.testing.assert_close(got, by_hand(layer, x, context), rtol=0, atol=1e-12)


def test_layer_of_identities_returns_its_input_exactly(x: Tensor, small_config: Any) -> None:
    layer = TransformerLayer(small_config(), TransformerLayerSubmodules())
    context = torch.randn(1)
    got, returned = layer(x, mask=CAUSAL, context=context, positions=torch.arange(5))
    assert got is x
    assert returned is context
    assert not list(layer.parameters())
    explicit = TransformerLayerSubmodules(**dict.fromkeys(TransformerLayerSubmodules.__dataclass_fields__, IdentityOp))
    assert TransformerLayer(small_config(), explicit)(x, context=context)[0] is x


def test_layer_skips_what_is_left_out_when_only_the_mlp_is_given(
    x: Tensor, small_config: Any, submodules_of: Any
) -> None:
    config = small_config(**F64)
    whole = submodules_of("layer", config)
    layer = TransformerLayer(config, TransformerLayerSubmodules(mlp=whole.mlp, mlp_bda=whole.mlp_bda))
    output, bias = layer.mlp(x)
    assert torch.equal(layer(x)[0], x + (output + bias))


def test_places_are_built_by_the_given_builders_with_their_arguments(small_config: Any) -> None:
    calls: dict[str, tuple[Any, ...]] = {}
    config = small_config(layernorm_epsilon=1e-3)
    group = SimpleNamespace(rank=lambda: 1)

    def builder(place: str) -> Any:
        def build(*args: Any, **kwargs: Any) -> nn.Module:
            calls[place] = (args, kwargs)
            return IdentityOp()

        return build

    places = TransformerLayerSubmodules.__dataclass_fields__
    submodules = TransformerLayerSubmodules(**{place: builder(place) for place in places})
    TransformerLayer(config, submodules, 7, tp_group=group)
    assert calls.keys() == places.keys()
    for place, (args, kwargs) in calls.items():
        assert args == (config,)
        if place.endswith("layernorm"):
            assert kwargs == {"hidden_size": 32, "eps": 1e-3}
        elif place.endswith("attention"):
            assert kwargs == {"layer_number": 7, "tp_group": group}
        else:
            assert kwargs == ({"tp_group": group} if place == "mlp" else {})


@pytest.mark.parametrize("cross", [False, True])
def test_parts_name_the_places_in_the_order_of_their_running(cross: bool, small_config: Any) -> None:
    config = small_config(post_attention_layernorm=True, post_mlp_layernorm=True)
    request = ArchitectureRequest(context=BuildContext(), config=config)
    names = list(TransformerLayer.parts(parts.layer(request, 3, cross_attention=cross).request))
    assert names == [
        "input_layernorm",
        "self_attention",
        "post_attention_layernorm",
        "self_attn_bda",
        *(["pre_cross_attn_layernorm", "cross_attention", "cross_attn_bda"] if cross else []),
        "pre_mlp_layernorm",
        "mlp",
        "post_mlp_layernorm",
        "mlp_bda",
    ]


def test_dropout_is_active_in_training_only_when_given(x: Tensor, small_config: Any, build: Any) -> None:
    dropped = build("layer", small_config(hidden_dropout=0.5, **F64))
    plain = build("layer", small_config(**F64))
    assert not torch.equal(dropped(x)[0], plain(x)[0])
    assert torch.equal(dropped.eval()(x)[0], plain(x)[0])


def test_dropout_of_the_constructor_wins_when_it_is_given(x: Tensor, small_config: Any, submodules_of: Any) -> None:
    config = small_config(hidden_dropout=0.9, **F64)
    layer = TransformerLayer(config, submodules_of("layer", config), 1, 0.0)
    assert torch.equal(layer(x)[0], layer.eval()(x)[0])


def test_residual_stays_in_float32_when_asked(small_config: Any, build: Any) -> None:
    fields = {"params_dtype": "bfloat16", "fp32_residual_connection": True}
    layer, plain = (build("layer", small_config(**fields | {"fp32_residual_connection": on})) for on in (True, False))
    x = torch.randn(2, 5, 32, dtype=torch.bfloat16)
    got, _ = layer(x, mask=CAUSAL)
    assert got.dtype is torch.float32
    assert plain(x, mask=CAUSAL)[0].dtype is torch.bfloat16
    assert torch.equal(layer(got, mask=CAUSAL)[0], layer(got.clone(), mask=CAUSAL)[0])
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    tiny = 1.0 + 2.0**-20 * torch.ones(1, 2, 32)
    assert torch.equal(layer(tiny)[0], tiny), "2^-20 would be lost in bfloat16"


def test_residual_is_not_narrowed_when_the_model_is_float64(x: Tensor, small_config: Any, build: Any) -> None:
    layer = build("layer", small_config(fp32_residual_connection=True, **F64))
    assert layer(x)[0].dtype is torch.float64


@pytest.mark.parametrize(
    "modules", [("mlp",), ("layernorm",), ("core_attn",), ("core_attn", "mlp", "layernorm")], ids=str
)
def test_recomputed_modules_give_the_same_bits_when_training(
    modules: tuple[str, ...], small_config: Any, build: Any
) -> None:
    fields = {"hidden_dropout": 0.2, "attention_dropout": 0.2, "position_embedding_type": "rope"}
    again = {"recompute_granularity": "selective", "recompute_modules": modules}
    results = []
    for config in (small_config(**fields), small_config(**fields, **again)):
        layer = build("layer", config)
        torch.manual_seed(3)
        x = torch.randn(2, 5, 32, requires_grad=True)
        output, _ = layer(x, mask=AttentionMask(causal=True))
        output.square().sum().backward()
        results.append([output, x.grad, *(p.grad for p in layer.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize(("module", "place"), [("mlp", "mlp"), ("layernorm", "pre_mlp_layernorm")])
def test_recomputed_modules_run_twice_when_training_only(
    module: str, place: str, small_config: Any, build: Any
) -> None:
    layer = build("layer", small_config(recompute_granularity="selective", recompute_modules=(module,)))
    runs = []
    getattr(layer, place).register_forward_pre_hook(lambda *_: runs.append(1))
    x = torch.randn(1, 3, 32, requires_grad=True)
    layer(x)[0].sum().backward()
    assert len(runs) == 2
    layer.eval()(x)[0].sum().backward()
    assert len(runs) == 3


def test_weight_gradients_wait_when_they_are_delayed(small_config: Any, build: Any) -> None:
    x, context = torch.randn(2, 5, 32), torch.randn(2, 3, 32)
    now, later = (build("layer", small_config(delay_wgrad_compute=on), cross_attention=True) for on in (False, True))
    for layer in (now, later):
        layer(x, context=context)[0].sum().backward()
    missing = {name for name, p in later.named_parameters() if p.grad is None}
    assert missing == {name for name, _ in now.named_parameters() if "linear" in name and name.endswith("weight")}
    later.backward_dw()
    for name in missing:
        torch.testing.assert_close(later.get_parameter(name).grad, now.get_parameter(name).grad)


def test_backward_dw_passes_over_parts_that_have_none(small_config: Any) -> None:
    TransformerLayer(small_config(), TransformerLayerSubmodules()).backward_dw()
