"""What several tests install."""

from __future__ import annotations

import json

import pytest

HOOKS = '''
import torch
from torch import nn
from transom import hookimpl

class Scaled(nn.Module):
    """Twice what the module inside answers, in every element."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x, /):
        out, bias = self.inner(x)
        return 2 * out, bias

    def backward_dw(self):
        self.inner.backward_dw()

class Double:
    """Doubles the output of every second linear of an MLP."""

    @hookimpl
    def transom_module_built(self, module, path):
        return Scaled(module) if path.endswith("mlp.linear_fc2") else None

class Wrapped(nn.Module):
    """What the module inside answers, under the names that it has without."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def layout_map(self):
        from transom.checkpoint.layout_map import LayoutMap, Rule
        return LayoutMap([Rule(f"inner.{name}", name) for name, _ in self.inner.named_parameters()])

    def forward(self, x, /):
        return self.inner(x)

    def backward_dw(self):
        self.inner.backward_dw()

class Renaming:
    """Wraps the same, and says how its names become theirs."""

    @hookimpl
    def transom_module_built(self, module, path):
        return Wrapped(module) if path.endswith("mlp.linear_fc2") else None

class Watch:
    """Writes down every call, in a place that outlives it."""

    calls = []

    @hookimpl
    def transom_modify_spec(self, spec):
        self.calls.append(["modify", spec.name])

    @hookimpl
    def transom_after_resolve(self, plan):
        self.calls.append(["resolved", plan.root.resolution.chosen.ref])

    @hookimpl
    def transom_module_built(self, module, path, resolution):
        self.calls.append(["built", path, type(module).__name__, resolution.chosen.name])

class Longer:
    """Plans two layers more."""

    @hookimpl
    def transom_modify_spec(self, spec):
        import msgspec
        layers = spec.config.num_layers + 2
        return msgspec.structs.replace(spec, config=spec.config.replace(num_layers=layers))
'''


@pytest.fixture
def hooks(site):
    """A site with hooks that work."""
    site.install(
        "acme-hooks",
        {"hooks": {"double": "Double", "renaming": "Renaming", "watch": "Watch", "longer": "Longer"}},
        code=HOOKS,
    )
    return site


@pytest.fixture
def write_config(tmp_path):
    """Give a function that writes the user's config and returns the environment that names it."""

    def write(text: str) -> dict[str, str]:
        path = tmp_path / "config.toml"
        path.write_text(text)
        return {"TRANSOM_CONFIG": str(path)}

    return write


@pytest.fixture
def tiny():
    """Source of a small spec, as a literal; `extra` are further fields."""

    def make(**extra) -> str:
        config = {"num_layers": 2, "hidden_size": 16, "num_attention_heads": 2, "ffn_hidden_size": 24}
        spec = {"name": "tiny", "vocab_size": 16, "max_sequence_length": 8, "config": config} | extra
        return repr(json.loads(json.dumps(spec)))

    return make
