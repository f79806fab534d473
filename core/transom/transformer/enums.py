"""The closed sets of names that a config may use."""

from __future__ import annotations

import enum
from typing import Literal

__all__ = [
    "ActivationName",
    "AttnMaskType",
    "DtypeName",
    "Normalization",
    "PositionEmbeddingType",
    "RecomputeGranularity",
    "RecomputeMethod",
    "RecomputeModule",
    "RopeScalingType",
    "SoftmaxType",
]

ActivationName = Literal["gelu", "gelu_tanh", "silu", "relu", "squared_relu", "quick_gelu", "sigmoid"]
"""Element-wise non-linearities; their formulas are in `transom.transformer.activation`."""

DtypeName = Literal["float32", "bfloat16", "float16", "float64"]
"""Dtypes of parameters and activations, by torch's names."""

Normalization = Literal["LayerNorm", "RMSNorm"]
"""Norms over the last dimension."""

PositionEmbeddingType = Literal["rope", "learned_absolute", "relative", "alibi", "none"]
"""How a model knows where a token is."""

RecomputeGranularity = Literal["full", "selective"]
"""What the backward pass computes again: whole layers, or chosen modules."""

RecomputeMethod = Literal["uniform", "block"]
"""Which layers `full` means: chunks of all of them, or the first ones."""

RecomputeModule = Literal["core_attn", "mlp", "layernorm"]
"""What `selective` may name."""

RopeScalingType = Literal["linear", "llama3", "yarn", "longrope", "xpos"]
"""How rotary position embeddings are stretched."""

SoftmaxType = Literal["vanilla", "off-by-one", "learnable"]
"""Attention's denominator: plain; plus one; plus the exponential of a learned logit per head."""


class AttnMaskType(enum.Enum):
    """What an attention that stands alone adds to the mask it is given: `causal` and `padding_causal` add causality."""

    padding = 1
    causal = 2
    no_mask = 3
    padding_causal = 4
    arbitrary = 5
