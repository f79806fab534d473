"""The cases of an implementation, generated from its card."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from transom.errors import UnknownSlotError
from transom.testing.case import Case

if TYPE_CHECKING:
    from transom.registry.implementation import Implementation
    from transom.testing.subject import Subject

__all__ = ["cases_for", "declaration_cases"]

_GENERATORS: Mapping[str, str] = {
    "column_linear": "kernels.linear",
    "row_linear": "kernels.linear",
    "embedding": "kernels.embedding",
    "norm": "kernels.norm",
    "norm_linear": "kernels.norm_linear",
    "activation": "kernels.activation",
    "rotary": "kernels.rotary",
    "core_attention": "kernels.core_attention",
    "bias_dropout_add": "kernels.bias_dropout_add",
    "loss": "kernels.loss",
    "kv_cache": "kernels.kv_cache",
    "mlp": "architectures.mlp",
    "self_attention": "architectures.self_attention",
    "cross_attention": "architectures.cross_attention",
    "layer": "architectures.layer",
    "model": "architectures.model",
}
"""The module that makes a slot's cases; its function ``cases`` takes a subject. A plugin's slot names its own."""


def declaration_cases(implementation: Implementation) -> tuple[Case, ...]:
    """Make the cases that need no tensor: card, entry point, signature, refusals, import.

    Args:
        implementation: as the registry has it.

    Raises:
        UnknownSlotError: there is no such slot, or it is a plugin's own without cases.
        PluginImportError: the cases of a plugin's own slot cannot be imported.
    """
    from transom.testing import declaration
    from transom.testing.subject import Subject

    _generator(implementation.slot)
    return tuple(declaration.declaration_cases(Subject(implementation)))


def cases_for(implementation: Implementation) -> tuple[Case, ...]:
    """Make all cases of an implementation, on every device that it declares.

    Cases of a device that this machine lacks say so when they are run; where there is another, one stands for them all.

    Args:
        implementation: as the registry has it.

    Returns:
        the cases; none was run, and the implementation was not imported.

    Raises:
        UnknownSlotError: there is no such slot, or it is a plugin's own without cases.
        PluginImportError: the cases of a plugin's own slot cannot be imported.

    Example:
        >>> from transom.registry.registry import default_registry
        >>> cases = cases_for(default_registry().get("norm", "torch_norm"))
        >>> cases[0].id
        'card/readable'
    """
    from transom.testing.context import context_cases
    from transom.testing.parallel import parallel_cases
    from transom.testing.subject import Subject, devices_of

    cases = list(declaration_cases(implementation))
    if implementation.card_error is not None:
        return tuple(cases)
    generate = _generator(implementation.slot)
    devices = devices_of(implementation.card)
    can_be_run = any(reason is None for reason in devices.values())
    for device, reason in devices.items():
        if reason is None or not can_be_run:
            subject = Subject(implementation, device)
            found = (*generate(subject), *parallel_cases(subject), *context_cases(subject))
            cases += [replace(case, unavailable=reason or case.unavailable) for case in found]
        else:
            cases.append(Case("card", device, f"all cases pass on {device}", _nothing, unavailable=reason))
    return tuple(cases)


def _generator(slot: str) -> Callable[[Subject], Iterable[Case]]:
    """Return the function that makes a slot's cases, core's or those of the plugin that defines the slot."""
    from transom.registry.implementation import import_object
    from transom.registry.registry import default_registry

    module = (
        f"transom.testing.{_GENERATORS[slot]}" if slot in _GENERATORS else default_registry().slot(slot).conformance
    )
    if module is None:
        raise UnknownSlotError(
            f"there are no conformance cases for slot {slot!r}.",
            available=_GENERATORS,
            hint="the distribution that defines a slot says in Slot(conformance=...) which module tests it",
            slot=slot,
        )
    found: Callable[[Subject], Iterable[Case]]
    found = import_object(f"{module}:cases", f"the conformance cases of slot {slot}", slot=slot, name="")
    return found


def _nothing() -> None:
    """Check nothing: the case is never run."""
