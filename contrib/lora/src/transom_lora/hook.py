"""The hook that puts adapters on the linears of a model."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

from torch import nn
from transom import hookimpl
from transom.errors import HookError

from transom_lora.linear import LoraLinear

if TYPE_CHECKING:
    from transom import Plan
    from transom.registry.resolve import Resolution

__all__ = ["Lora", "LoraOptions"]

_LINEARS = ("column_linear", "row_linear", "norm_linear")


@dataclass(frozen=True)
class LoraOptions:
    """What adapters there are.

    Args:
        rank: of each adapter.
        alpha: each is multiplied by alpha / rank; `None` = 2 * rank.
        dropout: probability of dropping an element of an adapter's input in training.
        targets: paths of linears, with ``*`` for one component or a part of one and ``**`` for any number.
        freeze: adapters alone learn; False = so does everything else.
    """

    rank: int = 8
    alpha: float | None = None
    dropout: float = 0.0
    targets: tuple[str, ...] = ("**.self_attention.*", "**.cross_attention.*", "**.mlp.*")
    freeze: bool = True

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"rank is {self.rank}; at least 1 is needed")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}; a probability below 1 is needed")


@final
class Lora:
    """Puts a `LoraLinear` around every linear whose path fits, and lets nothing else learn.

    Args:
        options: which linears, and what adapters.

    Raises:
        HookError: no linear fits; the linears are split over processes; the output layer, whose weight is read without
            calling it, is among them.

    Source: Hu et al. 2021.

    Example:
        >>> import transom
        >>> spec = transom.load_spec("tiny-llama").to_dict()
        >>> spec["hooks"] = [{"hook": "lora", "options": {"rank": 2, "targets": ["layers.*.mlp.*"]}}]
        >>> model = transom.build(spec)
        >>> sum(p.numel() for p in model.parameters() if p.requires_grad)
        15360
    """

    Options = LoraOptions

    def __init__(self, options: LoraOptions) -> None:
        self.options = options
        self.targets = [_regex(target) for target in options.targets]
        self.found = False

    @hookimpl
    def transom_after_resolve(self, plan: Plan) -> None:
        """Refuse weights of which each process holds a part."""
        ranks = plan.config.tensor_model_parallel_size
        if ranks > 1:
            raise HookError(
                f"lora puts adapters on whole weights, and tensor_model_parallel_size is {ranks}.",
                hint="train the adapters with data parallelism",
                hook="transom-lora/lora",
            )

    @hookimpl
    def transom_module_built(self, module: nn.Module, path: str, resolution: Resolution) -> nn.Module | None:
        """Put an adapter on a linear; when the model is whole, freeze what is none."""
        if path == "":
            self._finish(module)
        if resolution.slot not in _LINEARS or not any(target.fullmatch(path) for target in self.targets):
            return None
        if path.rpartition(".")[2] == "output_layer":
            raise HookError(
                f"lora cannot put an adapter on {path}: the loss reads its weight without calling it.",
                hint="name other linears in options.targets",
                hook="transom-lora/lora",
            )
        self.found = True
        options = self.options
        alpha = 2.0 * options.rank if options.alpha is None else options.alpha
        return LoraLinear(module, rank=options.rank, alpha=alpha, dropout=options.dropout)

    def _finish(self, model: nn.Module) -> None:
        if not self.found:
            raise HookError(
                f"no linear of the model has a path that fits lora's targets, {', '.join(self.options.targets)}.",
                hint="transom plan SPEC prints the paths",
                hook="transom-lora/lora",
            )
        if not self.options.freeze:
            return
        model.requires_grad_(False)
        for module in model.modules():
            if isinstance(module, LoraLinear):
                module.lora_a.requires_grad_()
                module.lora_b.requires_grad_()


def _regex(target: str) -> re.Pattern[str]:
    *leading, last = target.split(".")
    before = (r"(?:[^.]+\.)*" if c == "**" else _component(c) + r"\." for c in leading)
    return re.compile("".join(before) + (".+" if last == "**" else _component(last)))


def _component(pattern: str) -> str:
    return "[^.]*".join(re.escape(part) for part in pattern.split("*"))
