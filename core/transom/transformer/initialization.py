"""How weights start: initialisers that compare equal, and the one function that applies them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from transom.transformer.transformer_config import TransformerConfig

__all__ = ["NormalInit", "initialize", "leave_uninitialized"]

_IS_WANTED: ContextVar[bool] = ContextVar("transom_initialization", default=True)


@dataclass(frozen=True)
class NormalInit:
    """Fills a tensor from N(0, std²), in place.

    A class rather than a closure, so that configs with the same numbers are equal and hash alike; importing it loads no
    torch.

    Args:
        std: standard deviation.

    Example:
        >>> NormalInit(0.02) == NormalInit(0.02)
        True
    """

    std: float

    def __call__(self, weight: Tensor, /) -> None:
        """Fill ``weight``, of any shape and floating dtype, in place."""
        import torch

        with torch.no_grad():
            weight.normal_(mean=0.0, std=self.std)


def initialize(weight: Tensor, init_method: Callable[[Tensor], Any], config: TransformerConfig) -> None:
    """Fill a parameter by ``init_method``, as the config says.

    Nothing happens without ``config.perform_initialization``, within `leave_uninitialized`, or on the meta device,
    where there is nothing to fill. With ``config.use_cpu_initialization`` the numbers are drawn on the CPU, so that
    they do not depend on the device.

    Args:
        weight: the parameter, of any shape, filled in place.
        init_method: fills a tensor in place.
        config: the model's config.
    """
    import torch

    if weight.is_meta or not config.perform_initialization or not _IS_WANTED.get():
        return
    with torch.no_grad():
        if weight.device.type == "cpu" or not config.use_cpu_initialization:
            init_method(weight)
            return
        drawn = torch.empty_like(weight, device="cpu")
        init_method(drawn)
        weight.copy_(drawn)


@contextmanager
def leave_uninitialized() -> Iterator[None]:
    """Make modules without drawing their weights, because a checkpoint is about to fill them."""
    token = _IS_WANTED.set(False)
    try:
        yield
    finally:
        _IS_WANTED.reset(token)
