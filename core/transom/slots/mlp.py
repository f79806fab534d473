"""The MLP slot: the feed-forward half of a layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from transom.slots.request import ArchitectureRequest
from transom.slots.slot import Slot

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from transom.transformer.transformer_config import TransformerConfig

__all__ = ["MLP_SLOT", "MLPBuilder", "MLPInterface", "MLPRequest"]


@dataclass(frozen=True, kw_only=True)
class MLPRequest(ArchitectureRequest):
    """What an MLP must serve.

    Args:
        layer_number: of the layer it is for, counted from 1.
        is_expert: whether it is an expert of a mixture.
        input_size: h where it is not the config's.
        ffn_hidden_size: inner width where it is not the config's.
        after_norm: whether the config's norm stands directly before it and feeds nothing else. An MLP whose card says
            ``includes_norm`` then takes it in: it fills both places, and its canonical parameters are, beside the
            reference's, ``norm.weight`` and, of a LayerNorm, ``norm.bias``.
    """

    layer_number: int = 1
    is_expert: bool = False
    input_size: int | None = None
    ffn_hidden_size: int | None = None
    after_norm: bool = False


class MLPInterface(Protocol):
    """A map of every token by itself."""

    def forward(self, hidden_states: Tensor, per_token_scale: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Map ``[b, s, h]`` to ``([b, s, h], bias | None)``; ``per_token_scale [b, s]`` multiplies the activation."""
        ...

    def __call__(self, hidden_states: Tensor, per_token_scale: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Run `forward`."""
        ...


class MLPBuilder(Protocol):
    """Makes an MLP.

    An implementation that has places of its own declares them: a dataclass ``Submodules`` of builders and a class
    method ``parts(request) -> Parts`` with the same names. One without gets ``submodules=None``.
    """

    def __call__(
        self,
        config: TransformerConfig,
        submodules: Any,
        *,
        is_expert: bool = False,
        input_size: int | None = None,
        ffn_hidden_size: int | None = None,
        tp_group: torch.distributed.ProcessGroup | None = None,
    ) -> MLPInterface:
        """Make the module."""
        ...


MLP_SLOT = Slot(
    name="mlp",
    kind="architecture",
    api=(1, 1),
    summary="the feed-forward half of a layer",
    request=MLPRequest,
    builder=MLPBuilder,
    interface=MLPInterface,
    features={"tensor_parallel": "the weights are split over several processes"},
    default="mlp",
)
