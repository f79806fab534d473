"""The hook that rounds the weights of a model's linears."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

from torch import nn
from transom import hookimpl
from transom.errors import HookError

from transom_int8_linear.linear import Int8Linear

if TYPE_CHECKING:
    from transom import Plan
    from transom.registry.resolve import Resolution

__all__ = ["Int8", "Int8Options"]

_NAME = "transom-int8-linear/int8_linear"
_LINEARS = ("column_linear", "row_linear", "norm_linear")


@dataclass(frozen=True)
class Int8Options:
    """Which weights are rounded.

    Args:
        targets: paths of linears, with ``*`` for one component or a part of one and ``**`` for any number.
        training: allow that the model is trained: these linears stay as they are, and what else there is learns, or
            what another hook adds.
    """

    targets: tuple[str, ...] = ("**.self_attention.*", "**.cross_attention.*", "**.mlp.*")
    training: bool = False


@final
class Int8:
    """Puts an `Int8Linear` in the place of every linear whose path fits.

    Args:
        options: which.

    Raises:
        HookError: the model is to be trained, and the options do not allow it; weights are split over processes; no
            linear fits; the output layer, whose weight is read without calling it, or a linear that norms its input
            too, is among them.

    Example:
        >>> import transom
        >>> model = transom.build(transom.load_spec("tiny-llama").to_dict() | {"hooks": ["int8_linear"]}, mode="infer")
        >>> model.layers[0].mlp.linear_fc2
        Int8Linear(512, 192, bias=False)
    """

    Options = Int8Options

    def __init__(self, options: Int8Options) -> None:
        self.targets = [_regex(target) for target in options.targets]
        self.asked = ", ".join(options.targets)
        self.training = options.training
        self.found = False

    @hookimpl
    def transom_after_resolve(self, plan: Plan) -> None:
        """Refuse training, and weights of which each process holds a part."""
        if plan.context.mode == "train" and not self.training:
            raise HookError(
                "int8_linear rounds weights, which then cannot learn, and the model is to be trained.",
                hint='mode="infer"; or the option training: true, and adapters or whatever else learns',
                hook=_NAME,
            )
        ranks = plan.config.tensor_model_parallel_size
        if ranks > 1:
            raise HookError(
                f"int8_linear rounds whole weights, and tensor_model_parallel_size is {ranks}.",
                hint="leave the hook out, or use one process",
                hook=_NAME,
            )

    @hookimpl
    def transom_module_built(self, module: nn.Module, path: str, resolution: Resolution) -> nn.Module | None:
        """Round a linear; when the model is whole, see that there was one."""
        if path == "" and not self.found:
            raise HookError(
                f"no linear of the model has a path that fits int8_linear's targets, {self.asked}.",
                hint="transom plan SPEC prints the paths",
                hook=_NAME,
            )
        if resolution.slot not in _LINEARS or not any(target.fullmatch(path) for target in self.targets):
            return None
        if path.rpartition(".")[2] == "output_layer":
            raise HookError(
                f"int8_linear cannot round {path}: its weight is read without calling it.",
                hint="name other linears in options.targets",
                hook=_NAME,
            )
        if resolution.slot == "norm_linear":
            raise HookError(
                f"int8_linear cannot round {path}: {resolution.chosen.name} norms and multiplies in one.",
                hint=f"use: {{{path}: separate}}, or norm_linear: separate",
                hook=_NAME,
            )
        self.found = True
        return Int8Linear(module)


def _regex(target: str) -> re.Pattern[str]:
    *leading, last = target.split(".")
    before = (r"(?:[^.]+\.)*" if c == "**" else _component(c) + r"\." for c in leading)
    return re.compile("".join(before) + (".+" if last == "**" else _component(last)))


def _component(pattern: str) -> str:
    return "[^.]*".join(re.escape(part) for part in pattern.split("*"))
