"""Activation recompute: what a part computes in between is dropped, and computed again in the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch.utils.checkpoint import checkpoint

from transom.transformer.attention_mask import AttentionMask

if TYPE_CHECKING:
    from transom.transformer.transformer_config import TransformerConfig

__all__ = ["LayerRecompute", "recomputed"]

_T = TypeVar("_T")


def recomputed(function: Callable[..., _T], *args: Any, **kwargs: Any) -> _T:
    """Call a function so that only its inputs are kept for the backward pass, where it runs again.

    The random state of the first run is restored for the second, so both draw the same dropout.

    Args:
        function: of tensors and masks, to a tensor or a tuple of them.
        args: for it.
        kwargs: for it.
    """

    def run() -> _T:
        return function(*map(_own, args), **{name: _own(value) for name, value in kwargs.items()})

    result: _T = checkpoint(run, use_reentrant=False)
    return result


def _own(argument: Any) -> Any:
    # A mask keeps what it renders, and a compiled region that runs twice may write to nothing outside of it.
    if torch.compiler.is_compiling() and isinstance(argument, AttentionMask):
        return argument.unrendered()
    return argument


@dataclass(frozen=True)
class LayerRecompute:
    """Which layers of a stack are recomputed, and how many together.

    Args:
        together: layers of one chunk, whose input alone is kept.
        at_most: layers that are recomputed, from the first on; `None` = all.
    """

    together: int = 1
    at_most: int | None = None

    @classmethod
    def of(cls, config: TransformerConfig) -> LayerRecompute | None:
        """Read the config; `None` = layers are not recomputed (though modules inside of them may be)."""
        if config.recompute_granularity != "full":
            return None
        number = config.recompute_num_layers
        assert number is not None, "checked when the config is made"
        return cls(together=number) if config.recompute_method == "uniform" else cls(at_most=number)

    def chunks(self, num_layers: int) -> Iterator[tuple[range, bool]]:
        """Divide a stack into ranges of layers, and whether each is recomputed; the last one may be short.

        Example:
            >>> list(LayerRecompute(together=2).chunks(3))
            [(range(0, 2), True), (range(2, 3), True)]
            >>> list(LayerRecompute(at_most=1).chunks(3))
            [(range(0, 1), True), (range(1, 3), False)]
        """
        end = num_layers if self.at_most is None else min(self.at_most, num_layers)
        for start in range(0, end, self.together):
            yield range(start, min(start + self.together, end)), True
        if end < num_layers:
            yield range(end, num_layers), False
