"""The JSON Schema of a spec, for editors that complete and check YAML, TOML and JSON."""

from __future__ import annotations

import inspect
import re
from typing import Any

import msgspec

from transom.registry.hook_use import HookUse
from transom.slots import SLOT_ALIASES, SLOTS
from transom.slots.core_attention import MASK_FEATURES
from transom.specs.spec import ModelSpec
from transom.specs.train_spec import TrainSpec
from transom.transformer.transformer_config import RopeScaling, TransformerConfig

__all__ = ["documented", "spec_schema"]

_DESCRIBED = (ModelSpec, HookUse, TrainSpec, TransformerConfig, RopeScaling)
_FUNCTIONS = ("init_method", "output_layer_init_method")


def spec_schema() -> dict[str, Any]:
    """Return the JSON Schema of a spec.

    Every field has its description from the docstring that documents it. Slots are completed as keys of ``use``; paths
    are accepted there too.

    Example:
        >>> schema = spec_schema()
        >>> schema["$defs"]["TransformerConfig"]["properties"]["hidden_size"]["description"]
        'width of the residual stream, h.'
    """
    (reference,), definitions = msgspec.json.schema_components([ModelSpec], ref_template="#/$defs/{name}")
    for kind in _DESCRIBED:
        _describe(definitions[kind.__name__], kind)
    for name in _FUNCTIONS:  # a function has no form in a spec
        del definitions["TransformerConfig"]["properties"][name]
    fields = definitions["ModelSpec"]["properties"]
    fields["masks"]["items"] = {"enum": list(MASK_FEATURES)}
    for field in ("use", "options"):
        fields[field]["properties"] = _by_slot(fields[field]["additionalProperties"])
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Transom spec",
        **reference,
        "$defs": definitions,
    }


def _describe(definition: dict[str, Any], kind: type) -> None:
    summary, arguments = documented(kind)
    definition["description"] = summary
    definition["additionalProperties"] = False
    for name, schema in definition["properties"].items():
        schema["description"] = arguments[name]


def documented(kind: type) -> tuple[str, dict[str, str]]:
    """Take a docstring apart: its first paragraph, and what it says about each argument."""
    text = inspect.getdoc(kind) or ""
    summary = " ".join(text.partition("\n\n")[0].split())
    section = text.partition("Args:\n")[2].partition("\n\n")[0]
    entries = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", section, re.MULTILINE)
    return summary, {name: " ".join(words.split()) for name, words in entries}


def _by_slot(value: dict[str, Any]) -> dict[str, Any]:
    meanings = {name: slot.summary for name, slot in SLOTS.items()}
    meanings |= {alias: f"both of {' and '.join(slots)}" for alias, slots in SLOT_ALIASES.items()}
    return {name: {**value, "description": meaning} for name, meaning in meanings.items()}
