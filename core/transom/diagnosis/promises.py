"""What cards promise, and whether it can be had on this machine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from transom.registry.card import ANY, CardSection
from transom.registry.implementation import Implementation
from transom.registry.verdict import unmet_requirements

__all__ = ["Promise", "promise"]


@dataclass(frozen=True)
class Promise:
    """What one implementation declares.

    Args:
        slot: the slot's name.
        name: its bare name.
        devices: device types that it runs on.
        dtypes: dtypes that it computes in.
        modes: what it is for.
        features: how many of its slot's features it has.
        missing: what keeps it from serving here, one sentence each, with the stage of the verdict; empty = nothing.
        hint: what to do about it, as far as its card says.
    """

    slot: str
    name: str
    devices: tuple[str, ...]
    dtypes: tuple[str, ...]
    modes: tuple[str, ...]
    features: int
    missing: tuple[str, ...]
    hint: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Give it as plain data."""
        return asdict(self) | {"holds": not self.missing}


def promise(implementation: Implementation, devices: Sequence[dict[str, Any]]) -> Promise | None:
    """Compare a card with this machine; `None` where nothing is declared.

    Args:
        implementation: whose card.
        devices: as `transom.diagnosis.probe.Session.machine` has them.
    """
    card = implementation.card
    if card is None:
        return None
    unmet = [f"it requires {what} (requires)" for _, what in unmet_requirements(card.requires)]
    hardware = [f"{what} (hardware)" for what in _hardware(card, devices)]
    return Promise(
        implementation.slot,
        implementation.name,
        card.devices,
        card.dtypes,
        card.modes,
        len(card.features),
        (*unmet, *hardware),
        _hint(card, bool(unmet), bool(hardware)),
    )


def _hint(card: CardSection, is_unmet: bool, lacks_hardware: bool) -> str | None:
    """Say what would let it serve: where the hardware lacks, installing alone would not."""
    place = f"a machine with {' or '.join(card.devices)}" + (
        f" of compute capability {card.min_compute_capability} or newer" if card.min_compute_capability else ""
    )
    if is_unmet and card.install:
        return f"{card.install}; on {place}" if lacks_hardware else card.install
    return f"{place}, or another implementation" if lacks_hardware else None


def _hardware(card: CardSection, devices: Sequence[dict[str, Any]]) -> Iterator[str]:
    here = {device["type"] for device in devices}
    if ANY not in card.devices and not here & set(card.devices):
        yield f"it runs on {', '.join(card.devices)}; this machine has {', '.join(sorted(here))}"
    needed = card.min_compute_capability
    found = [device["capability"] for device in devices if device["type"] == "cuda"]
    if needed is not None and found and max(found) < [int(part) for part in needed.split(".")]:
        yield f"it needs compute capability {needed}; this machine's newest device has {'.'.join(map(str, max(found)))}"
