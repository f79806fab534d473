"""The attention slots: the attention half of a layer, projections included."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from transom.slots.request import ArchitectureRequest
from transom.slots.slot import Slot

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from transom.slots.kv_cache import LayerCache
    from transom.transformer.attention_mask import AttentionMask
    from transom.transformer.transformer_config import TransformerConfig

__all__ = [
    "CROSS_ATTENTION",
    "SELF_ATTENTION",
    "AttentionBuilder",
    "AttentionRequest",
    "CachedCrossAttention",
    "ContextCache",
    "CrossAttention",
    "SelfAttention",
]


@dataclass(frozen=True, kw_only=True)
class AttentionRequest(ArchitectureRequest):
    """What an attention must serve; ``layer_number`` counts from 1."""

    layer_number: int = 1


class SelfAttention(Protocol):
    """Mixes the tokens of one sequence."""

    def forward(
        self,
        hidden_states: Tensor,
        *,
        mask: AttentionMask | None = None,
        positions: Tensor | None = None,
        cache: LayerCache | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend within a sequence.

        Args:
            hidden_states: ``[b, s, h]``.
            mask: who may attend to whom; `None` = everyone to everyone.
            positions: of the tokens, ``[s]`` or ``[b, s]``; `None` = 0 ... s-1.
            cache: this layer's entry: new keys and values are written to it, and all that it holds are attended to.

        Returns:
            ``[b, s, h]`` and the output bias ``[h]`` that the caller must add, or `None`.
        """
        ...

    def __call__(
        self,
        hidden_states: Tensor,
        *,
        mask: AttentionMask | None = None,
        positions: Tensor | None = None,
        cache: LayerCache | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Run `forward`."""
        ...


class CrossAttention(Protocol):
    """Lets the tokens of one sequence read another."""

    def forward(
        self, hidden_states: Tensor, *, key_value_states: Tensor, mask: AttentionMask | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Attend from ``hidden_states [b, s, h]`` to ``key_value_states [b, t, h]``; returns as self-attention does."""
        ...

    def __call__(
        self, hidden_states: Tensor, *, key_value_states: Tensor, mask: AttentionMask | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Run `forward`."""
        ...


class ContextCache(Protocol):
    """The keys and values of what one cross-attention reads, which are made once however often it is asked."""

    def read(
        self, states: Tensor | None, project: Callable[[Tensor], tuple[Tensor, Tensor]], /
    ) -> tuple[Tensor, Tensor]:
        """Give keys ``[b, t, g, d]`` and values ``[b, t, g, dv]``.

        Args:
            states: ``[b, t, h]``, what is read; `None` = what was read before.
            project: makes keys and values of the states; it is called where they are not held.
        """
        ...


class CachedCrossAttention(Protocol):
    """A `CrossAttention` that can keep what it reads; one that cannot projects it anew at every step."""

    def forward(
        self,
        hidden_states: Tensor,
        *,
        key_value_states: Tensor | None,
        mask: AttentionMask | None = None,
        cache: ContextCache | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend as `CrossAttention`; with a cache, ``key_value_states`` may be what it holds already, or `None`."""
        ...

    def __call__(
        self,
        hidden_states: Tensor,
        *,
        key_value_states: Tensor | None,
        mask: AttentionMask | None = None,
        cache: ContextCache | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Run `forward`."""
        ...


class AttentionBuilder(Protocol):
    """Makes an attention; ``submodules`` as in `transom.slots.mlp.MLPBuilder`."""

    def __call__(
        self,
        config: TransformerConfig,
        submodules: Any,
        layer_number: int,
        *,
        tp_group: torch.distributed.ProcessGroup | None = None,
    ) -> Any:
        """Make the module."""
        ...


_FEATURES = {
    "tensor_parallel": "the weights are split over several processes",
    "context_parallel": "each sequence is split over several processes; tokens mix in the core attention alone",
}

SELF_ATTENTION = Slot(
    name="self_attention",
    kind="architecture",
    api=(1, 1),
    summary="mixes the tokens of one sequence, projections included",
    request=AttentionRequest,
    builder=AttentionBuilder,
    interface=SelfAttention,
    features=_FEATURES,
    default="self_attention",
)

CROSS_ATTENTION = Slot(
    name="cross_attention",
    kind="architecture",
    api=(1, 2),
    summary="lets the tokens of one sequence read another",
    request=AttentionRequest,
    builder=AttentionBuilder,
    interface=CrossAttention,
    alternatives=(CachedCrossAttention,),
    features=_FEATURES,
    default="cross_attention",
)
