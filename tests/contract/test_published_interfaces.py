"""Interfaces that are published elsewhere and kept here: names, the order and kind of arguments, and their defaults."""

from __future__ import annotations

import ast
import importlib
import inspect
from typing import Any

import pytest

MODULES = {
    "attention": ["CrossAttention", "CrossAttentionSubmodules", "SelfAttention", "SelfAttentionSubmodules"],
    "dot_product_attention": ["DotProductAttention"],
    "enums": ["AttnMaskType"],
    "identity_op": ["IdentityFuncOp", "IdentityOp"],
    "mlp": ["MLP", "MLPSubmodules", "apply_swiglu_sharded_factory"],
    "module": ["Float16Module", "Module"],
    "transformer_block": ["TransformerBlock", "TransformerBlockSubmodules"],
    "transformer_config": ["TransformerConfig"],
    "transformer_layer": ["TransformerLayer", "TransformerLayerSubmodules"],
    "utils": [],
}

MLP = """
class LinearFc1Interface:
    def forward(self, hidden_states: Tensor, /) -> tuple[Tensor, Tensor | None]: ...
    def backward_dw(self) -> None: ...

class LinearFc1Builder:
    def __call__(
        self, input_size: int, output_size: int, /, *, config: TransformerConfig, init_method: Callable,
        gather_output: bool, bias: bool, skip_bias_add: bool, is_expert: bool, tp_comm_buffer_name: str | None,
        tp_group: ProcessGroup | None, stride: int = 1,
    ) -> LinearFc1Interface: ...

class TEActivationFunctionInterface:
    def forward(self, input_: Tensor, /) -> Tensor: ...

class TEActivationFunctionBuilder:
    def __call__(self, *, config: TransformerConfig) -> TEActivationFunctionInterface: ...

class LinearFc2Interface:
    def forward(self, hidden_states: Tensor, /) -> tuple[Tensor, Tensor | None]: ...
    def backward_dw(self) -> None: ...

class LinearFc2Builder:
    def __call__(
        self, input_size: int, output_size: int, /, *, config: TransformerConfig, init_method: Callable,
        bias: bool, input_is_parallel: bool, skip_bias_add: bool, is_expert: bool, tp_comm_buffer_name: str | None,
        tp_group: ProcessGroup | None,
    ) -> LinearFc2Interface: ...

class MLPSubmodules:
    def __init__(
        self, linear_fc1: LinearFc1Builder, linear_fc2: LinearFc2Builder,
        activation_func: TEActivationFunctionBuilder | None = None,
    ) -> None: ...

class MLP:
    def __init__(
        self, config: TransformerConfig, submodules: MLPSubmodules, is_expert: bool = False,
        input_size: int | None = None, ffn_hidden_size: int | None = None, tp_group: ProcessGroup | None = None,
    ) -> None: ...
    def forward(self, hidden_states: Tensor, per_token_scale: Tensor | None = None): ...
    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: tuple = (), metadata: Mapping | None = None
    ) -> ShardedStateDict: ...
    def backward_dw(self): ...

def apply_swiglu_sharded_factory(original_sh_ten, sharded_offsets, singleton_local_shards: bool = False): ...
"""
"""Less one thing, on purpose: ``forward`` takes no arguments that it does not know."""

DECODER = """
class TransformerDecoder:
    def __init__(
        self, tok_embeddings, layer, num_layers: int, max_seq_len: int, num_heads: int, head_dim: int, norm, output
    ) -> None: ...
    def forward(self, tokens: Tensor, *, mask: Tensor | None = None, input_pos: Tensor | None = None) -> Tensor: ...
    def setup_caches(self, batch_size: int, dtype: torch.dtype): ...
    def caches_are_enabled(self) -> bool: ...
    def reset_caches(self): ...
"""

PUBLISHED = {"transom.transformer.mlp": MLP, "transom.models.decoder": DECODER}

Argument = tuple[str, str, Any]
"""Name, kind and default."""


def functions(text: str) -> dict[str, ast.FunctionDef]:
    """All functions of a text, methods as ``Class.method``."""
    found: dict[str, ast.FunctionDef] = {}
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef):
            found[node.name] = node
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{each.name}": each for each in node.body if isinstance(each, ast.FunctionDef)}
    return found


def published_arguments(function: ast.FunctionDef) -> list[Argument]:
    given = function.args
    required = inspect.Parameter.empty
    positional = [*given.posonlyargs, *given.args]
    missing = len(positional) - len(given.defaults)
    defaults = [required] * missing + [ast.literal_eval(default) for default in given.defaults]
    kinds = ["POSITIONAL_ONLY"] * len(given.posonlyargs) + ["POSITIONAL_OR_KEYWORD"] * len(given.args)
    found = [(each.arg, kind, default) for each, kind, default in zip(positional, kinds, defaults, strict=True)]
    for each, default in zip(given.kwonlyargs, given.kw_defaults, strict=True):
        found.append((each.arg, "KEYWORD_ONLY", required if default is None else ast.literal_eval(default)))
    return found[1:] if found and found[0][0] == "self" else found


def own_arguments(function: Any) -> list[Argument]:
    parameters = inspect.signature(function).parameters.values()
    return [(p.name, p.kind.name, p.default) for p in parameters if p.name != "self"]


CASES = [(module, path, node) for module, text in PUBLISHED.items() for path, node in functions(text).items()]


@pytest.mark.parametrize(("module", "path", "published"), CASES, ids=[path for _, path, _ in CASES])
def test_published_function_is_here_with_its_arguments(module: str, path: str, published: ast.FunctionDef) -> None:
    own: Any = importlib.import_module(module)
    assert path.partition(".")[0] in own.__all__
    for name in path.split("."):
        own = getattr(own, name)
    wanted, found = published_arguments(published), own_arguments(own)
    # A default where there is none is for whoever leaves the argument out; more arguments are for whoever names them.
    assert [argument[:2] for argument in found[: len(wanted)]] == [argument[:2] for argument in wanted]
    for (_, _, default), (_, _, published_default) in zip(found, wanted, strict=False):
        assert default == published_default or published_default is inspect.Parameter.empty
    for _, kind, default in found[len(wanted) :]:
        assert kind == "KEYWORD_ONLY"
        assert default is not inspect.Parameter.empty


@pytest.mark.parametrize("name", MODULES)
def test_published_module_is_here_and_says_what_it_offers(name: str) -> None:
    module = importlib.import_module(f"transom.transformer.{name}")
    assert module.__doc__
    assert set(MODULES[name]) <= set(module.__all__)
    for each in module.__all__:
        value = getattr(module, each)
        is_ours = inspect.isclass(value) or inspect.isfunction(value)
        assert not is_ours or inspect.getdoc(value), f"{each} has no docstring"


def test_interfaces_of_modules_can_be_called() -> None:
    """`torch.nn.Module` lets everything be called with anything: a Protocol needs ``forward`` too."""
    module = importlib.import_module("transom.transformer.mlp")
    for name in ("LinearFc1Interface", "LinearFc2Interface", "TEActivationFunctionInterface"):
        interface = getattr(module, name)
        assert own_arguments(interface.__call__) == own_arguments(interface.forward)
