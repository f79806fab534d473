"""From a spec to a model: planning and building beside constructing the bare modules, also of a very large one."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from functools import partial
from typing import Any

import torch
import transom
from torch import nn

from benchmarks.by_hand import by_hand
from benchmarks.contenders.weights import hugging_face_llama
from benchmarks.measure import give_memory_back
from benchmarks.monolith import Monolith, Shape
from benchmarks.settings import Settings
from benchmarks.suites.timing import timed
from benchmarks.table import Table

__all__ = ["building"]

BARE = "bare modules, composed by hand"
_LARGE = "llama-405b-shape"


def building(asked: Settings) -> Iterator[Table]:
    """Build the Llama of the other tables, then one of 405 billion parameters without memory for them."""
    spec = spec_of(asked.shape)
    plan = transom.plan(spec)
    yield _beside_bare_modules(asked, f"build, {asked.shape.layers} layers", plan, spec, "cpu", _others(asked.shape))
    large = transom.plan(_LARGE, device="meta")
    yield _beside_bare_modules(asked, f"build on meta, {_LARGE}, 126 layers", large, _LARGE, "meta", {})


def spec_of(shape: Shape) -> dict[str, Any]:
    """Write the spec of a Llama of these sizes."""
    return {
        "vocab_size": shape.vocab,
        "max_sequence_length": shape.length,
        "config": {
            "num_layers": shape.layers,
            "hidden_size": shape.hidden,
            "ffn_hidden_size": shape.ffn,
            "num_attention_heads": shape.heads,
            "num_query_groups": shape.groups,
            "normalization": "RMSNorm",
            "layernorm_epsilon": shape.eps,
            "gated_linear_unit": True,
            "activation_func": "silu",
            "add_bias_linear": False,
            "position_embedding_type": "rope",
            "hidden_dropout": 0.0,
            "attention_dropout": 0.0,
        },
        "use": {"core_attention": "torch_dot_product"},
    }


def _beside_bare_modules(
    asked: Settings, title: str, plan: Any, spec: Any, device: str, others: dict[str, Callable[[], object]]
) -> Table:
    shared: dict[Hashable, Any] = {}
    composed = by_hand(plan.root, shared)

    def bare() -> None:
        with torch.device(device):
            composed(plan.config)
        shared.clear()  # as the others let go of all that they made

    steps: dict[str, Callable[[], object]] = {
        BARE: bare,
        "transom.build of a plan": lambda: _dropped(transom.build(plan, device=device)),
        "transom.build of a spec": lambda: _dropped(transom.build(spec, device=device)),
        "transom.plan": lambda: _dropped(transom.plan(spec, device=device)),
        **others,
    }
    note = (
        "Whoever builds from a spec plans first; `bare modules` are the classes of that plan and nothing else. Each "
        "contender begins without memory that the ones before it had."
    )
    return timed(title, "building", steps, asked, tolerance=0.0, base=BARE, note=note, before=give_memory_back)


def _others(shape: Shape) -> dict[str, Callable[[], object]]:
    return {
        "monolith": partial(_made, lambda: Monolith(shape)),
        "transformers": partial(_made, lambda: hugging_face_llama(shape)),
    }


def _made(make: Callable[[], nn.Module]) -> None:
    make()


def _dropped(_: object) -> None:
    """Let go of what was built, within the time."""
