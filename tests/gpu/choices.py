"""What is tried on a CUDA machine: each choice is a part, or several, named in a spec over the reference's."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import pytest
import torch
import transom
from torch import nn
from transom.errors import TransomError
from transom.specs.plan import Plan

DEVICE = os.environ.get("TRANSOM_TEST_DEVICE", "cuda")
"""Where the tests run; another than ``cuda`` shows that the tests themselves work."""

DTYPE = "bfloat16" if DEVICE == "cuda" else "float32"
SIZES = {"hidden_size": 1024, "num_attention_heads": 8, "ffn_hidden_size": 2048} if DEVICE == "cuda" else {
    "hidden_size": 64, "num_attention_heads": 4, "ffn_hidden_size": 96
}  # fmt: skip
BATCH, LENGTH, VOCABULARY = (8, 256, 512) if DEVICE == "cuda" else (2, 16, 64)


@dataclass(frozen=True)
class Choice:
    """Parts to try together.

    Args:
        name: of the row in the table.
        use: which slots they fill.
        packages: distributions whose versions the table tells.
        options: of them.
        config: fields over those of the small model.
        infers_only: has no backward pass.
        tolerance: of logits, relative to the largest; FP8 keeps three bits of a number.
        passes_before: training passes that it needs before it is compared: delayed scaling learns its scales from them.
    """

    name: str
    use: dict[str, str]
    packages: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    infers_only: bool = False
    tolerance: float = 0.03 if DEVICE == "cuda" else 1e-4
    passes_before: int = 0

    def __str__(self) -> str:
        return self.name

    @property
    def versions(self) -> str:
        """Which versions of its packages are here."""
        return ", ".join(f"{name} {_version(name)}" for name in self.packages) or f"torch {torch.__version__}"

    def spec(self, **config: Any) -> dict[str, Any]:
        """The spec of the small model."""
        plain = {"num_layers": 2, "attention_dropout": 0.0, "hidden_dropout": 0.0, "position_embedding_type": "rope"}
        fields = {**plain, **SIZES, "activation_func": "silu", "gated_linear_unit": True, **self.config, **config}
        return {"name": "small", "vocab_size": VOCABULARY, "max_sequence_length": LENGTH, "config": fields}

    def plan(self, **fields: Any) -> Plan:
        """Plan the small model with these parts; skip, by name and with the reason, where they cannot serve."""
        if DEVICE == "cuda" and not torch.cuda.is_available():
            pytest.skip(f"{self.name}: torch finds no CUDA device here")
        mode = "infer" if self.infers_only else "train"
        given = {"device": DEVICE, "dtype": DTYPE, "mode": mode, "use": self.use, "options": self.options} | fields
        try:
            return transom.plan(self.spec(), **given)
        except TransomError as error:
            why = "; ".join(error.failed) or error.what
            pytest.skip(f"{self.name}: {why}")

    def model(self) -> nn.Module:
        """Build the small model with these parts."""
        return transom.build(self.plan(), seed=0)

    def reference(self) -> nn.Module:
        """Build the same model with core's own parts and the same weights."""
        model = transom.build(self.spec(), device=DEVICE, dtype=DTYPE, mode="infer" if self.infers_only else "train")
        model.load_state_dict(self.model().state_dict())
        return model


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "absent"


_TE = ("transformer-engine", "transformer-engine-torch")
_RECIPES = (("delayed", 2), ("current", 0), ("block", 0))
_ZERO_CENTRED = {"normalization": "RMSNorm", "layernorm_zero_centered_gamma": True}
_LIGER = ("liger-kernel", "triton")
_FLASH = {2: "flash-attn", 3: "fa3-fwd", 4: "flash-attn-4"}

CHOICES = (
    Choice("torch_dot_product", {"core_attention": "torch_dot_product"}),
    Choice("torch_flex", {"core_attention": "torch_flex"}),
    Choice("parallel_linear", {"linear": "parallel_linear"}),
    Choice("apex_norm, LayerNorm", {"norm": "apex_norm"}, ("apex",)),
    Choice("apex_norm, RMSNorm", {"norm": "apex_norm"}, ("apex",), config={"normalization": "RMSNorm"}),
    Choice(
        "apex_norm, zero-centred, memory-efficient",
        {"norm": "apex_norm"},
        ("apex",),
        {"norm": {"memory_efficient": True}},
        {"layernorm_zero_centered_gamma": True},
    ),
    Choice("apex_fast_layer_norm", {"norm": "apex_fast_layer_norm"}, ("apex",)),
    *(
        Choice(
            f"flash_attention {number}",
            {"core_attention": "flash_attention"},
            (_FLASH[number],),
            {"core_attention": {"version": number}},
            infers_only=number == 3,
        )
        for number in (2, 3, 4)
    ),
    Choice("flash_attention, sinks", {"core_attention": "flash_attention"}, tuple(_FLASH.values()),
           config={"softmax_type": "learnable", "num_query_groups": 4}),
    Choice("flash_attention, windows", {"core_attention": "flash_attention"}, tuple(_FLASH.values()),
           config={"window_size": [64, 0]}),
    Choice("te_linear", {"linear": "te_linear"}, _TE),
    *(
        Choice(f"te_linear, FP8 {recipe}", {"linear": "te_linear"}, _TE, {"linear": {"recipe": recipe}}, tolerance=0.2,
               passes_before=passes)
        for recipe, passes in _RECIPES
    ),
    Choice("te_norm", {"norm": "te_norm"}, _TE),
    Choice("te_activation", {"activation": "te_activation"}, _TE, config={"use_te_activation_func": True}),
    Choice("te_attention", {"core_attention": "te_attention"}, _TE),
    Choice("torch_norm_linear", {"norm_linear": "torch_norm_linear"}),
    *(
        Choice(f"{name}{also}", {slot: name}, _TE, config=config)
        for slot, name in (("norm_linear", "te_layernorm_linear"), ("mlp", "te_layernorm_mlp"))
        for also, config in (("", {}), (", RMSNorm", _ZERO_CENTRED))
    ),
    *(
        Choice(f"{name}, FP8 {recipe}", {slot: name}, _TE, {slot: {"recipe": recipe}}, tolerance=0.2,
               passes_before=passes)
        for slot, name in (("norm_linear", "te_layernorm_linear"), ("mlp", "te_layernorm_mlp"))
        for recipe, passes in _RECIPES
    ),
    Choice("liger_norm, RMSNorm", {"norm": "liger_norm"}, _LIGER, config={"normalization": "RMSNorm"}),
    Choice("liger_norm, LayerNorm", {"norm": "liger_norm"}, _LIGER),
    Choice("liger_rotary", {"rotary": "liger_rotary"}, _LIGER),
    Choice("liger_activation", {"activation": "liger_activation"}, _LIGER, config={"use_te_activation_func": True}),
    Choice("liger_cross_entropy", {"loss": "liger_cross_entropy"}, _LIGER),
    Choice("all of te", {"linear": "te_linear", "norm": "te_norm", "core_attention": "te_attention",
                         "norm_linear": "te_layernorm_linear", "mlp": "te_layernorm_mlp"}, _TE),
)  # fmt: skip
