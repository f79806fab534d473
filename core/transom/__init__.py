"""Transom: a plugin-registry framework for transformers.

A small core defines what each part of a transformer must do; a registry fills every part, by name, from separately
installed packages, when a model is built. Importing this package loads neither torch nor a plugin.

Example:
    >>> import transom
    >>> model = transom.build("tiny-llama", seed=0)
    >>> sum(p.numel() for p in model.parameters()) > 1_000_000
    True
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transom.checkpoint.layout_map import LayoutMap as LayoutMap
    from transom.composition import build as build
    from transom.errors import TransomError as TransomError
    from transom.module_specs import build_module as build_module
    from transom.pretrained.load import from_pretrained as from_pretrained
    from transom.registry.hook_specs import hookimpl as hookimpl
    from transom.registry.registry import list_implementations as list_implementations
    from transom.registry.registry import override as override
    from transom.registry.registry import register as register
    from transom.slots.request import BuildContext as BuildContext
    from transom.slots.request import Part as Part
    from transom.specs.load import load_spec as load_spec
    from transom.specs.plan import Plan as Plan
    from transom.specs.plan import plan as plan
    from transom.specs.spec import ModelSpec as ModelSpec
    from transom.transformer.attention_mask import AttentionMask as AttentionMask
    from transom.transformer.spec_utils import ModuleSpec as ModuleSpec
    from transom.transformer.transformer_config import TransformerConfig as TransformerConfig

__all__ = [
    "AttentionMask",
    "BuildContext",
    "LayoutMap",
    "ModelSpec",
    "ModuleSpec",
    "Part",
    "Plan",
    "TransformerConfig",
    "TransomError",
    "build",
    "build_module",
    "from_pretrained",
    "hookimpl",
    "list_implementations",
    "load_spec",
    "override",
    "plan",
    "register",
]

__version__ = "0.1.0"

_HOMES = {
    "AttentionMask": "transom.transformer.attention_mask",
    "BuildContext": "transom.slots.request",
    "LayoutMap": "transom.checkpoint.layout_map",
    "ModelSpec": "transom.specs.spec",
    "ModuleSpec": "transom.transformer.spec_utils",
    "Part": "transom.slots.request",
    "Plan": "transom.specs.plan",
    "TransformerConfig": "transom.transformer.transformer_config",
    "TransomError": "transom.errors",
    "build": "transom.composition",
    "build_module": "transom.module_specs",
    "from_pretrained": "transom.pretrained.load",
    "hookimpl": "transom.registry.hook_specs",
    "list_implementations": "transom.registry.registry",
    "load_spec": "transom.specs.load",
    "override": "transom.registry.registry",
    "plan": "transom.specs.plan",
    "register": "transom.registry.registry",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'transom' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
