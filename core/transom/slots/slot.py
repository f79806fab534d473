"""What a slot is: a place in a transformer that is filled by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

__all__ = ["Slot"]


@dataclass(frozen=True)
class Slot:
    """A place in a transformer that can be filled by name.

    Args:
        name: the slot's name in specs, cards and entry-point groups (``transom.<name>``).
        kind: ``"kernel"`` when the config fixes the mathematics (conformance = agreement with the reference),
            ``"architecture"`` when the filler brings its own (conformance = the slot's contract).
        api: contract version ``(major, minor)``. A plugin for an equal major and a minor that is not newer fits.
        summary: one line for listings.
        request: the frozen dataclass of everything known at build time.
        builder: the Protocol of what is registered: a callable that makes the module.
        interface: the Protocol of the module that the builder makes.
        alternatives: further Protocols, of which the module may satisfy one instead.
        features: what a request of this slot may ask for, each with one line of meaning. A card declares a subset;
            undeclared means unsupported.
        default: the name of core's own implementation, used where a spec names none.
        shared: its modules hold tables but no parameters or state of a place, so that one serves every place of a model
            with the same request.
        late: its modules are made when a model is used, not when it is built: the place's parent keeps the builder.
        conformance: the module that tests implementations of a plugin's own slot: its ``plain_request(context)`` gives
            the plainest request, its ``cases(subject)`` gives `transom.testing.Case` objects. It is imported when tests
            are made; `None` = there are none.
        settings: by feature, the one field of a config that asks for it: its name; or ``name: value``, with the value
            that does not ask for it, where that changes no more than how a model is trained.

    Example:
        >>> from transom.slots import SLOTS
        >>> SLOTS["norm"].group, SLOTS["norm"].kind, SLOTS["norm"].default
        ('transom.norm', 'kernel', 'torch_norm')
    """

    name: str
    kind: Literal["kernel", "architecture"]
    api: tuple[int, int]
    summary: str
    request: type
    builder: type
    interface: type
    alternatives: tuple[type, ...] = ()
    features: Mapping[str, str] = field(default_factory=dict)
    default: str | None = None
    shared: bool = False
    late: bool = False
    conformance: str | None = None
    settings: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "features", MappingProxyType(dict(self.features)))
        object.__setattr__(self, "settings", MappingProxyType(dict(self.settings)))

    @property
    def group(self) -> str:
        """The entry-point group of this slot's implementations."""
        return f"transom.{self.name}"

    @property
    def interfaces(self) -> tuple[type, ...]:
        """Every Protocol of which the module may satisfy one."""
        return (self.interface, *self.alternatives)
