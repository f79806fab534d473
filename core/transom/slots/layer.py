"""The layer slot: one element of a stack."""

from __future__ import annotations

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

__all__ = ["LAYER", "Layer", "LayerBuilder", "LayerRequest"]


@dataclass(frozen=True, kw_only=True)
class LayerRequest(ArchitectureRequest):
    """What a layer must serve.

    Args:
        layer_number: counted from 1 over the whole model.
        cross_attention: whether it reads another sequence too.
    """

    layer_number: int = 1
    cross_attention: bool = False


class Layer(Protocol):
    """One element of a stack: attention, MLP, norms and residuals."""

    def forward(
        self,
        hidden_states: Tensor,
        *,
        mask: AttentionMask | None = None,
        context: Tensor | None = None,
        context_mask: AttentionMask | None = None,
        positions: Tensor | None = None,
        cache: LayerCache | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Run the layer.

        Args:
            hidden_states: ``[b, s, h]``.
            mask: of self-attention; `None` = everyone to everyone.
            context: ``[b, t, h]``, what cross-attention reads.
            context_mask: of cross-attention.
            positions: of the tokens, ``[s]`` or ``[b, s]``; `None` = 0 ... s-1.
            cache: self-attention's cache entry.

        Returns:
            the new hidden states ``[b, s, h]``, and the context for the next layer.
        """
        ...

    def __call__(
        self,
        hidden_states: Tensor,
        *,
        mask: AttentionMask | None = None,
        context: Tensor | None = None,
        context_mask: AttentionMask | None = None,
        positions: Tensor | None = None,
        cache: LayerCache | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Run `forward`."""
        ...


class LayerBuilder(Protocol):
    """Makes a layer; ``submodules`` as in `transom.slots.mlp.MLPBuilder`."""

    def __call__(
        self,
        config: TransformerConfig,
        submodules: Any,
        layer_number: int = 1,
        *,
        tp_group: torch.distributed.ProcessGroup | None = None,
    ) -> Layer:
        """Make the module."""
        ...


LAYER = Slot(
    name="layer",
    kind="architecture",
    api=(1, 1),
    summary="one element of a stack",
    request=LayerRequest,
    builder=LayerBuilder,
    interface=Layer,
    features={
        "tensor_parallel": "the weights are split over several processes",
        "context_parallel": "each sequence is split over several processes; tokens mix in the core attention alone",
        "cross_attention": "reads another sequence too",
    },
    default="transformer_layer",
)
