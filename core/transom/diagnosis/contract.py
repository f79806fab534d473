"""Whether an imported object keeps the conventions that planning and building rely on, beside its signatures."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator
from typing import Any

import msgspec

from transom.errors import PluginImportError
from transom.registry.card import CardSection
from transom.registry.implementation import import_object
from transom.registry.signatures import builder_mismatches
from transom.registry.submodules import submodules_complaints
from transom.slots.slot import Slot

__all__ = ["object_complaints"]


def object_complaints(builder: Any, slot: Slot, card: CardSection | None) -> tuple[str, ...]:
    """Return what is wrong with a builder; empty = nothing.

    Args:
        builder: what the entry point refers to.
        slot: its slot.
        card: what it declares, `None` = nothing.

    Returns:
        one complaint each, to be read after "the builder".
    """
    return (
        *builder_mismatches(builder, slot.builder, slot.interfaces),
        *_class_method(builder, "supports"),
        *_class_method(builder, "parts"),
        *submodules_complaints(builder),
        *_options(builder, card),
    )


def _class_method(builder: Any, name: str) -> Iterator[str]:
    method = getattr(builder, name, None)
    if method is None:
        return
    if not callable(method):
        yield f"has `{name}` of type {type(method).__name__}, which cannot be called"
        return
    if not _takes_a_request(method):
        yield f"has `{name}` that cannot be called with a request alone: it should be a class method"


def _takes_a_request(method: Any) -> bool:
    """Whether it can be called with a request, and options where it has a parameter of that name."""
    try:
        signature = inspect.signature(method)
        signature.bind(*[object()] * (2 if "options" in signature.parameters else 1))
    except (TypeError, ValueError):
        return False
    return True


def _options(builder: Any, card: CardSection | None) -> Iterator[str]:
    declared = getattr(builder, "Options", None)
    if isinstance(declared, type) and not (dataclasses.is_dataclass(declared) or issubclass(declared, msgspec.Struct)):
        yield "has `Options` that is neither a dataclass nor a msgspec.Struct"
    promised = None if card is None else card.options
    if promised is None:
        return
    if declared is None:
        yield "has no `Options`, which its card promises"
    elif isinstance(promised, str):
        try:
            found = import_object(promised, "the options", slot="", name="")
        except PluginImportError as error:
            yield f"has options on its card that cannot be imported: {error.reason.partition(': ')[2]}"
            return
        if found is not declared:
            yield f"has other `Options` than its card refers to, {promised}"
