"""The reference transformer put together without the registry: every slot by core's own implementation."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo
from transom.slots import ArchitectureRequest, BuildContext, Part
from transom.transformer import parts
from transom.transformer.activation import TorchActivation
from transom.transformer.attention import CrossAttention, SelfAttention
from transom.transformer.bias_dropout_add import BiasDropoutAdd
from transom.transformer.dot_product_attention import DotProductAttention
from transom.transformer.linear import ColumnLinear, RowLinear
from transom.transformer.mlp import MLP
from transom.transformer.norm import TorchNorm
from transom.transformer.rotary import RotaryEmbedding
from transom.transformer.transformer_block import TransformerBlock, TransformerBlockSubmodules
from transom.transformer.transformer_config import TransformerConfig
from transom.transformer.transformer_layer import TransformerLayer

DATA = Path(__file__).parents[2] / "data"

REFERENCE: dict[str, Any] = {
    "column_linear": ColumnLinear,
    "row_linear": RowLinear,
    "norm": TorchNorm,
    "activation": TorchActivation,
    "rotary": RotaryEmbedding,
    "core_attention": DotProductAttention,
    "bias_dropout_add": BiasDropoutAdd,
    "mlp": MLP,
    "self_attention": SelfAttention,
    "cross_attention": CrossAttention,
    "layer": TransformerLayer,
}
REQUESTED = ("rotary", "core_attention")


def builder_of(part: Part, others: dict[str, Any] | None = None) -> Callable[..., Any]:
    """A part's builder, with all that a plan would have bound to it."""
    build = (others or {}).get(part.slot, REFERENCE[part.slot])
    if part.slot in REQUESTED:
        return partial(build, request=part.request)
    if not hasattr(build, "parts"):
        return build
    inside = {name: builder_of(p, others) for name, p in build.parts(part.request).items()}
    return partial(build, submodules=build.Submodules(**inside))


@pytest.fixture
def make_config():
    """Make a config of a small model, with some fields changed."""

    def make(**changes: Any) -> TransformerConfig:
        return TransformerConfig(**({"num_layers": 2, "hidden_size": 8, "num_attention_heads": 2} | changes))

    return make


@pytest.fixture
def small_config() -> Callable[..., TransformerConfig]:
    """Give a function that makes a small config without dropout, wide enough for several heads."""

    def make(**fields: Any) -> TransformerConfig:
        small = {"num_layers": 2, "hidden_size": 32, "num_attention_heads": 4}
        return TransformerConfig(**(small | {"hidden_dropout": 0.0, "attention_dropout": 0.0} | fields))

    return make


@pytest.fixture
def build() -> Callable[..., Any]:
    """Give a function that builds ``self_attention``, ``cross_attention`` or ``layer`` of a config.

    Its weights are drawn with a standard deviation that makes differences visible.
    """

    def make(slot: str, config: TransformerConfig, *, seed: int = 0, others: Any = None, **wanted: Any) -> Any:
        torch.manual_seed(seed)
        request = ArchitectureRequest(context=BuildContext(), config=config)
        layer_number = wanted.pop("layer_number", 1)
        part = getattr(parts, slot)(request, layer_number, **wanted)
        module = builder_of(part, others)(config, layer_number=layer_number)
        for parameter in module.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        return module

    return make


@pytest.fixture
def submodules_of() -> Callable[..., Any]:
    """Give a function that makes the builders of the parts of core's implementation of a slot."""

    def make(slot: str, config: TransformerConfig, **wanted: Any) -> Any:
        request = ArchitectureRequest(context=BuildContext(), config=config)
        return builder_of(getattr(parts, slot)(request, 1, **wanted)).keywords["submodules"]

    return make


@pytest.fixture
def block_submodules() -> Callable[..., TransformerBlockSubmodules]:
    """Give a function that makes the builders of a block, with a final norm unless told otherwise."""

    def make(config: TransformerConfig, *, others: Any = None, norm: bool = True) -> TransformerBlockSubmodules:
        request = ArchitectureRequest(context=BuildContext(), config=config)
        layers = [builder_of(parts.layer(request, i), others) for i in range(1, config.num_layers + 1)]
        return TransformerBlockSubmodules(layers, TorchNorm if norm else None)

    return make


@pytest.fixture
def build_block(block_submodules: Any) -> Callable[..., TransformerBlock]:
    """Give a function that builds a block, with a final norm unless told otherwise."""

    def make(
        config: TransformerConfig, *, seed: int = 0, others: Any = None, norm: bool = True, **arguments: Any
    ) -> Any:
        torch.manual_seed(seed)
        block = TransformerBlock(config, block_submodules(config, others=others, norm=norm), **arguments)
        for parameter in block.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        return block

    return make


@pytest.fixture
def case() -> Callable[[str], dict[str, Any]]:
    """Give a function that reads a measured case."""

    def read(name: str) -> dict[str, Any]:
        found: dict[str, Any] = torch.load(DATA / f"{name}.pt", weights_only=True)
        return found

    return read


@pytest.fixture(autouse=True)
def fresh_compiler() -> Any:
    """Let no test see what another one compiled."""
    yield
    torch._dynamo.reset()
