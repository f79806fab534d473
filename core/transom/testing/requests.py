"""The plainest request of every slot: what an implementation is asked when nothing in particular is asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from transom.registry.implementation import import_object
from transom.registry.registry import default_registry
from transom.slots.activation import ActivationRequest
from transom.slots.attention import AttentionRequest
from transom.slots.bias_dropout_add import BiasDropoutAddRequest
from transom.slots.core_attention import CoreAttentionRequest
from transom.slots.embedding import EmbeddingRequest
from transom.slots.kv_cache import KVCacheRequest
from transom.slots.layer import LayerRequest
from transom.slots.linear import LinearRequest
from transom.slots.loss import LossRequest
from transom.slots.mlp import MLPRequest
from transom.slots.model import ModelRequest
from transom.slots.norm import NormRequest
from transom.slots.norm_linear import NormLinearRequest
from transom.slots.request import BuildContext, Request
from transom.slots.rotary import RotaryRequest
from transom.testing.subject import config_for

__all__ = ["plain_request"]


def _attention(context: BuildContext) -> Request:
    return AttentionRequest(context=context, config=config_for(params_dtype=context.dtype))


_PLAIN: Mapping[str, Callable[[BuildContext], Request]] = {
    "column_linear": lambda c: LinearRequest(context=c, input_size=32, output_size=48, bias=True),
    "row_linear": lambda c: LinearRequest(context=c, input_size=32, output_size=48, bias=True),
    "embedding": lambda c: EmbeddingRequest(context=c, num_embeddings=32, embedding_dim=16),
    "norm": lambda c: NormRequest(context=c, hidden_size=64, eps=1e-5),
    "norm_linear": lambda c: NormLinearRequest(context=c, input_size=32, output_size=48, bias=True, eps=1e-5),
    "activation": lambda c: ActivationRequest(context=c, function="gelu", gated=False),
    "rotary": lambda c: RotaryRequest(context=c, head_size=16, rotary_dim=16),
    "core_attention": lambda c: CoreAttentionRequest(
        context=c, num_attention_heads=4, num_query_groups=4, head_size=16, value_head_size=16
    ),
    "bias_dropout_add": lambda c: BiasDropoutAddRequest(context=c, dropout=0.0),
    "loss": lambda c: LossRequest(context=c, vocab_size=32),
    "kv_cache": lambda c: KVCacheRequest(
        context=c, windows=((8, 0), None), num_query_groups=2, head_size=16, value_head_size=16
    ),
    "mlp": lambda c: MLPRequest(context=c, config=config_for(params_dtype=c.dtype), after_norm=True),
    "self_attention": _attention,
    "cross_attention": _attention,
    "layer": lambda c: LayerRequest(context=c, config=config_for(params_dtype=c.dtype)),
    "model": lambda c: ModelRequest(
        context=c, config=config_for(params_dtype=c.dtype), vocab_size=32, max_sequence_length=32
    ),
}


def plain_request(slot: str, context: BuildContext, features: frozenset[str] = frozenset()) -> Request:
    """Make the plainest request of a slot.

    Args:
        slot: its name; for a plugin's own slot, the module of its cases is asked.
        context: of the request.
        features: to ask for.
    """
    return replace((_PLAIN.get(slot) or _plain_of_plugin(slot))(context), features=features)


def _plain_of_plugin(slot: str) -> Callable[[BuildContext], Request]:
    module = default_registry().slot(slot).conformance
    found: Callable[[BuildContext], Request]
    found = import_object(f"{module}:plain_request", f"the plainest request of slot {slot}", slot=slot, name="")
    return found
