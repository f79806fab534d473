"""The rotary slot: rotary position embedding of queries and keys."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from transom.slots.request import Request
from transom.slots.slot import Slot

if TYPE_CHECKING:
    from torch import Tensor

    from transom.transformer.attention_mask import AttentionMask
    from transom.transformer.transformer_config import TransformerConfig

__all__ = ["ROTARY", "Rotary", "RotaryBuilder", "RotaryRequest", "StepRotary"]


@dataclass(frozen=True, kw_only=True)
class RotaryRequest(Request):
    """What a rotary embedding must serve: the style and the scaling are among ``features``.

    Args:
        head_size: d, of which the first ``rotary_dim`` components are rotated.
        rotary_dim: an even number, at most ``head_size``.
    """

    head_size: int
    rotary_dim: int


class Rotary(Protocol):
    """Rotates queries and keys by angles that grow with their positions (Su et al. 2021, RoFormer)."""

    def forward(self, query: Tensor, key: Tensor, positions: Tensor | None = None, /) -> tuple[Tensor, Tensor]:
        """Rotate query ``[b, s, n, d]``, key ``[b, s, g, d]`` at positions (``[s]``, ``[b, s]``; None = 0 ... s-1)."""
        ...

    def __call__(self, query: Tensor, key: Tensor, positions: Tensor | None = None, /) -> tuple[Tensor, Tensor]:
        """Run `forward`."""
        ...


class StepRotary(Rotary, Protocol):
    """A rotary embedding that works once a step for all layers, and takes heads as self-attention has them.

    An optional refinement: who takes a ``mask`` by name is given the step's, of which `AttentionMask.shared` keeps what
    positions alone decide on, and heads by group, which need not be copied.
    """

    def forward(
        self, query: Tensor, key: Tensor, positions: Tensor | None = None, /, *, mask: AttentionMask | None = None
    ) -> tuple[Tensor, Tensor]:
        """Rotate query ``[b, s, n, d]`` or ``[b, s, g, n / g, d]``, key ``[b, s, g, d]`` or ``[b, s, g, 1, d]``."""
        ...

    def __call__(
        self, query: Tensor, key: Tensor, positions: Tensor | None = None, /, *, mask: AttentionMask | None = None
    ) -> tuple[Tensor, Tensor]:
        """Run `forward`."""
        ...


class RotaryBuilder(Protocol):
    """Makes the rotary embedding that the config describes (base, style, partial dimension, scaling)."""

    def __call__(self, config: TransformerConfig, *, request: RotaryRequest) -> Rotary:
        """Make the module."""
        ...


ROTARY = Slot(
    name="rotary",
    kind="kernel",
    api=(1, 0),
    summary="rotary position embedding of queries and keys",
    request=RotaryRequest,
    builder=RotaryBuilder,
    interface=Rotary,
    features={
        "half_split": "component i is paired with i + d/2 (GPT-NeoX, Hugging Face Llama)",
        "interleaved": "component 2i is paired with 2i + 1 (RoFormer, Meta Llama)",
        "partial": "only the first rotary_percent of the head is rotated",
        "linear": "positions divided by a factor (Chen et al. 2023)",
        "llama3": "Llama 3.1's frequency-dependent scaling",
        "yarn": "YaRN (Peng et al. 2023)",
        "longrope": "each frequency divided by a number of its own (Ding et al. 2024)",
        "xpos": "xPos decay of queries and keys (Sun et al. 2022)",
    },
    default="torch_rotary",
    shared=True,
)
