"""What is being tested: an implementation, on one device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from transom.registry.card import ANY, CardSection
from transom.registry.policy import Policy
from transom.registry.registry import default_registry
from transom.registry.verdict import judge
from transom.slots.request import BuildContext, Request
from transom.testing.case import CaseSkipped, ConformanceError
from transom.transformer.transformer_config import TransformerConfig

if TYPE_CHECKING:
    from transom.registry.implementation import Implementation
    from transom.registry.verdict import Verdict
    from transom.slots.slot import Slot

__all__ = ["DTYPES", "Subject", "asking_for_determinism", "config_for", "devices_of"]

_DETERMINISTIC: ContextVar[bool] = ContextVar("transom_deterministic", default=False)

DTYPES = ("float32", "float64", "bfloat16", "float16")
"""What is tried of a card that declares any dtype; the first that is declared runs every case."""

_NOTHING = CardSection(api="1.0", devices=(ANY,), dtypes=(ANY,), modes=("train", "infer"))


def config_for(**fields: Any) -> TransformerConfig:
    """Make a small config without dropout.

    Args:
        fields: of `TransformerConfig`, over three layers of width 64 with four heads.
    """
    small = {"num_layers": 3, "hidden_size": 64, "num_attention_heads": 4, "ffn_hidden_size": 96}
    return TransformerConfig(**(small | {"hidden_dropout": 0.0, "attention_dropout": 0.0} | fields))


def devices_of(card: CardSection | None) -> dict[str, str | None]:
    """Give the device types that a card declares and the kit knows, each with the reason why it cannot be used here.

    Args:
        card: of the implementation; `None` = none, which is tried on the CPU.

    Returns:
        `None` in place of a reason where the device is there. A card that declares any device is tried on what is here.
    """
    has_cuda = torch.cuda.is_available()
    declared = (ANY,) if card is None else card.devices
    if ANY in declared:
        return {"cpu": None, "cuda": None} if has_cuda else {"cpu": None}
    reasons: dict[str, str | None] = {}
    for device in declared:
        if device == "cpu" or (device == "cuda" and has_cuda):
            reasons[device] = None
        else:
            reasons[device] = f"it needs {device}, and this machine has none that torch can use"
    return reasons


@contextmanager
def asking_for_determinism() -> Iterator[None]:
    """Let all that subjects are asked for in a block be deterministic: kernels may have to be told."""
    token = _DETERMINISTIC.set(True)
    try:
        yield
    finally:
        _DETERMINISTIC.reset(token)


@dataclass(frozen=True)
class Subject:
    """An implementation under test, on one device.

    Args:
        implementation: as the registry has it.
        device: device type.
    """

    implementation: Implementation
    device: str = "cpu"

    @cached_property
    def slot(self) -> Slot:
        """The slot that it fills."""
        return default_registry().slot(self.implementation.slot)

    @cached_property
    def card(self) -> CardSection:
        """What it declares; without a card, nothing."""
        return self.implementation.card or _NOTHING

    @cached_property
    def features(self) -> frozenset[str]:
        """The features that it declares."""
        return frozenset(self.card.features)

    @property
    def dtypes(self) -> tuple[str, ...]:
        """The floating dtypes that it declares, the one that runs every case first."""
        return tuple(dtype for dtype in DTYPES if dtype in self.card.dtypes or ANY in self.card.dtypes)

    @property
    def dtype(self) -> str:
        """The dtype in which every case runs."""
        return self.dtypes[0] if self.dtypes else self.card.dtypes[0]

    @property
    def declares_training(self) -> bool:
        """Whether its card declares gradients."""
        return "train" in self.card.modes

    @cached_property
    def trains(self) -> bool:
        """Whether it declares gradients, and its ``supports()`` does not take them back on this device."""
        if not {"train", "infer"} <= set(self.card.modes):
            return self.declares_training
        return not (self._verdict_of_plain("train").stage == "supports" and self._verdict_of_plain("infer").ok)

    @property
    def mode(self) -> Literal["train", "infer"]:
        """The mode in which it is built."""
        return "train" if self.trains else "infer"

    def context(self, dtype: str | None = None, **changes: Any) -> BuildContext:
        """Make the build context of a request that the card covers.

        Args:
            dtype: one that it declares; `None` = that in which every case runs.
            changes: other fields of `BuildContext`.
        """
        return replace(self._context(dtype or self.dtype, self.mode), **changes)

    def verdict(self, request: Request) -> Verdict:
        """Ask whether it can serve, whatever the environment's policy says."""
        return judge(self.implementation, self.slot, request, Policy())

    def _verdict_of_plain(self, mode: Literal["train", "infer"]) -> Verdict:
        from transom.testing.requests import plain_request

        return self.verdict(plain_request(self.slot.name, self._context(self.dtype, mode)))

    def _context(self, dtype: str, mode: Literal["train", "infer"]) -> BuildContext:
        capability = torch.cuda.get_device_capability() if self.device == "cuda" else None
        return BuildContext(
            device=self.device,
            dtype=dtype,
            mode=mode,
            compute_capability=capability,
            deterministic=_DETERMINISTIC.get(),
        )

    def require(self, request: Request) -> None:
        """Go on only if it serves a request that its card covers.

        Raises:
            CaseSkipped: its own ``supports()`` refuses, or this machine lacks what it needs.
            ConformanceError: it is refused for another reason.
        """
        verdict = self.verdict(request)
        if verdict.stage in ("supports", "requires", "hardware"):
            raise CaseSkipped(f"{verdict.stage}: {verdict.reason}")
        if not verdict.ok:
            raise ConformanceError(f"cannot serve what its card declares ({verdict.stage}): {verdict.reason}")

    def in_training(self, check: Callable[..., None]) -> Callable[..., None]:
        """Give a check that is skipped where ``supports()`` takes gradients back that the card declares."""

        def checked(*arguments: Any) -> None:
            if not self.trains:
                raise CaseSkipped(f"supports: {self._verdict_of_plain('train').reason}")
            check(*arguments)

        return checked

    @cached_property
    def builder(self) -> Callable[..., Any]:
        """What was registered, imported."""
        return self.implementation.load_for(self.slot)

    def build(self, request: Request, /, *args: Any, on: str | None = None, **kwargs: Any) -> nn.Module:
        """Make the module, if the request is served.

        Args:
            request: what it must serve.
            args: of the builder.
            on: device type; `None` = the subject's.
            kwargs: of the builder.

        Raises:
            CaseSkipped: as `require`.
            ConformanceError: as `require`, or what was made is no module.
        """
        self.require(request)
        with torch.device(on or self.device):
            module = self.builder(*args, **kwargs)
        if not isinstance(module, nn.Module):
            raise ConformanceError(f"the builder made a {type(module).__name__}, not a torch.nn.Module")
        return module.train(self.trains)
