"""The core attention slot: queries, keys and values to weighted values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from transom.slots.request import Request
from transom.slots.slot import Slot

if TYPE_CHECKING:
    from torch import Tensor

    from transom.slots.kv_cache import Pages
    from transom.transformer.attention_mask import AttentionMask
    from transom.transformer.transformer_config import TransformerConfig

__all__ = [
    "CORE_ATTENTION",
    "MASK_FEATURES",
    "CoreAttention",
    "CoreAttentionBuilder",
    "CoreAttentionRequest",
    "PagedCoreAttention",
]


@dataclass(frozen=True, kw_only=True)
class CoreAttentionRequest(Request):
    """What a core attention must serve.

    Args:
        num_attention_heads: n, query heads of this rank.
        num_query_groups: g, key/value heads of this rank; divides n.
        head_size: d of queries and keys.
        value_head_size: dv of values.
        window: (left, right) token distances that apply to every call, `None` = unbounded on that side.
        softcap: scores become ``softcap * tanh(scores / softcap)`` when given.
        dropout: probability of dropping an attention weight in training mode.
    """

    num_attention_heads: int
    num_query_groups: int
    head_size: int
    value_head_size: int
    window: tuple[int | None, int | None] | None = None
    softcap: float | None = None
    dropout: float = 0.0


class CoreAttention(Protocol):
    """Scaled dot-product attention (Vaswani et al. 2017), with grouped key/value heads and one mask object."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor, *, mask: AttentionMask | None = None) -> Tensor:
        """Attend.

        Args:
            query: ``[b, s, n, d]``.
            key: ``[b, t, g, d]``; head i of the query reads group ``i // (n // g)``.
            value: ``[b, t, g, dv]``.
            mask: who may attend to whom, and biases; `None` = everyone to everyone (within the request's window).

        Returns:
            ``[b, s, n, dv]`` in the query's dtype; a query that may attend to nothing yields zeros.
        """
        ...

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, *, mask: AttentionMask | None = None) -> Tensor:
        """Run `forward`."""
        ...


class PagedCoreAttention(CoreAttention, Protocol):
    """A `CoreAttention` that can read keys and values where a paged cache keeps them; others are given copies."""

    def attend_pages(self, query: Tensor, pages: Pages, *, mask: AttentionMask | None = None) -> Tensor:
        """Attend as `forward` does, to what ``pages.gathered()`` gives, over which the mask is; for inference alone."""
        ...


class CoreAttentionBuilder(Protocol):
    """Makes a core attention.

    Args of the call:
        config: the model's config.
        request: heads, sizes, window, softcap, dropout and the features that it must have.
        layer_number: of the layer it is for, counted from 1.
        softmax_scale: multiplies the scores; None = 1/sqrt(d).
        attention_dropout: overrides the request's dropout.
    """

    def __call__(
        self,
        config: TransformerConfig,
        *,
        request: CoreAttentionRequest,
        layer_number: int,
        softmax_scale: float | None = None,
        attention_dropout: float | None = None,
    ) -> CoreAttention:
        """Make the module."""
        ...


MASK_FEATURES = {
    "causal": "a query sees no later key",
    "bottom_right": "causal with fewer queries than keys: the last query sees the last key",
    "packed": "several sequences in one row, told apart by segment ids or cumulative lengths",
    "prefix": "the first p keys are seen by every query",
    "padding": "keys that are padding are hidden",
    "positions": "queries and keys say at which positions they are (caches, rings)",
    "keep": "an arbitrary boolean mask",
    "bias": "an additive bias without gradient",
    "bias_grad": "an additive bias that is learned",
    "alibi": "ALiBi: a bias that falls linearly with distance, one slope a head",
}

CORE_ATTENTION = Slot(
    name="core_attention",
    kind="kernel",
    api=(1, 1),
    summary="softmax(q·k) v, with masks",
    request=CoreAttentionRequest,
    builder=CoreAttentionBuilder,
    interface=CoreAttention,
    features={
        **MASK_FEATURES,
        "window": "keys further away than a number of tokens are hidden",
        "softcap": "scores are soft-capped by tanh (Gemma 2)",
        "sink_off_by_one": "one is added to the softmax's denominator",
        "sink_learnable": "a learned logit per head joins the softmax's denominator",
        "dropout": "attention weights are dropped in training",
        "gqa": "fewer key/value heads than query heads",
        "value_head_size": "values have another head size than keys",
        "cross": "queries and keys come from different sequences",
        "context_parallel": "queries are a rank's share of the sequence, asked chunk by chunk; keys' gradients add up",
    },
    settings={
        "window": "window_size",
        "softcap": "attn_logit_softcapping",
        "sink_off_by_one": "softmax_type",
        "sink_learnable": "softmax_type",
        "dropout": "attention_dropout: 0.0",
    },
    default="dot_product",
)
