"""What may be plugged in: one module per slot, with its Protocol, its builder's Protocol and its request.

Importing this package loads neither torch nor a plugin: it is data and types.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from transom.slots.activation import ACTIVATION
from transom.slots.attention import CROSS_ATTENTION, SELF_ATTENTION
from transom.slots.bias_dropout_add import BIAS_DROPOUT_ADD
from transom.slots.core_attention import CORE_ATTENTION
from transom.slots.embedding import EMBEDDING
from transom.slots.kv_cache import KV_CACHE
from transom.slots.layer import LAYER
from transom.slots.linear import COLUMN_LINEAR, ROW_LINEAR
from transom.slots.loss import LOSS
from transom.slots.mlp import MLP_SLOT
from transom.slots.model import MODEL
from transom.slots.norm import NORM
from transom.slots.norm_linear import NORM_LINEAR
from transom.slots.request import ArchitectureRequest, BuildContext, Part, Parts, Request
from transom.slots.rotary import ROTARY
from transom.slots.slot import Slot

__all__ = ["SLOTS", "SLOT_ALIASES", "ArchitectureRequest", "BuildContext", "Part", "Parts", "Request", "Slot"]

SLOTS: Mapping[str, Slot] = MappingProxyType(
    {
        slot.name: slot
        for slot in (
            MODEL,
            LAYER,
            SELF_ATTENTION,
            CROSS_ATTENTION,
            MLP_SLOT,
            CORE_ATTENTION,
            COLUMN_LINEAR,
            ROW_LINEAR,
            EMBEDDING,
            NORM,
            NORM_LINEAR,
            ACTIVATION,
            ROTARY,
            BIAS_DROPOUT_ADD,
            LOSS,
            KV_CACHE,
        )
    }
)
"""Core's slots by name, the outermost first."""

SLOT_ALIASES: Mapping[str, tuple[str, ...]] = MappingProxyType({"linear": ("column_linear", "row_linear")})
"""Names that stand for several slots in a spec's `use`."""
