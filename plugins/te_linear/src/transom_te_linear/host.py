"""A module of Transformer Engine inside one of Transom's, which shows its parameters under canonical names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Self

import torch
from torch import nn
from torch.nn import Parameter
from transom.transformer.sharding import ShardedModule

__all__ = ["TeHost"]


class TeHost(ShardedModule):
    """Holds a module of Transformer Engine without registering it.

    Its parameters are this module's own, so that states have canonical names and nothing of FP8's scales, which are
    found anew, is ever saved or asked for. What replaces a parameter here (materialising, sharding) is handed on.

    Attributes:
        is_first_microbatch: whether the next forward pass is an optimizer step's first; `None` = not known.
    """

    is_first_microbatch: bool | None

    def __init__(self) -> None:
        super().__init__()
        self.is_first_microbatch = None

    def adopt(self, make: Callable[[], nn.Module], names: Mapping[str, str]) -> None:
        """Make the inner module, and show its parameters as one's own.

        Args:
            make: calls `transom_te_linear.engine`; it must be picklable.
            names: own names, each with the inner one; those that the inner module has not are `None` here.
        """
        inner = make()
        self.__dict__["_inner"], self.__dict__["_make"], self.__dict__["_names"] = inner, make, dict(names)
        for own, name in names.items():
            found = getattr(inner, name, None)
            self.register_parameter(own, found if isinstance(found, Parameter) else None)

    @property
    def inner(self) -> Any:
        """The inner module, with the parameters that this one has now."""
        inner: nn.Module = self.__dict__["_inner"]
        for own, name in self.__dict__["_names"].items():
            mine = self._parameters[own]
            if mine is not None and inner._parameters[name] is not mine:
                inner._parameters[name] = mine
        return inner

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the inner module, which holds functions that cannot be pickled."""
        return {name: value for name, value in self.__dict__.items() if name != "_inner"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Make the inner module anew: of the scales of FP8, a copy too finds its own."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        with torch.device("meta"):
            inner = self.__dict__["_make"]()
        self.__dict__["_inner"] = inner.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """Set the mode, of the inner module too."""
        self.__dict__["_inner"].train(mode)
        return super().train(mode)

    def first_microbatch(self) -> bool | None:
        """Say whether this pass is the first of a step; the next ones are not, until somebody says so."""
        first = self.is_first_microbatch
        if first and torch.is_grad_enabled():
            self.is_first_microbatch = False
        return first
