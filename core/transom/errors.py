"""What can go wrong, and the one layout in which it is told.

::

    TransomError(ValueError)
    ├── SpecError                     a spec file or mapping is wrong
    │   └── ConfigError               one field of the model's config is wrong
    ├── RegistryError                 names, cards and plugins
    │   ├── UnknownSlotError          no such slot
    │   ├── UnknownImplementationError    no such name in the slot
    │   ├── AmbiguousNameError        two distributions registered the name
    │   ├── DuplicateNameError        a name is taken and `replace` was not given
    │   ├── CardError                 a transom.toml is wrong
    │   ├── PolicyError               the policy forbids, or a variable of it is wrong
    │   ├── UserConfigError           the user's config file is wrong
    │   ├── HookError                 a hook is unknown, or breaks the contract of hooks
    │   ├── PluginImportError         an implementation's import failed
    │   └── ResolutionError           no asked implementation can serve the request
    ├── PlanMismatchError             a lock, a checkpoint or another rank chose otherwise
    ├── BuildError                    a built part breaks its slot's contract
    ├── InputError                    a model was called with what does not fit it
    ├── MaskError                     an attention mask that cannot be what was meant
    ├── CacheError                    a key/value cache: capacity, positions, state
    ├── CheckpointError               a checkpoint is missing, damaged or of another model
    ├── DataError                     training data is missing, empty or malformed
    ├── OutputError                   an output cannot be written, or would overwrite
    └── ParallelError                 sizes or processes that do not fit together

Every error carries its data as attributes beside the text, which always has this layout::

    no core_attention is named 'flash_atention'.
      Asked by:   use.core_attention in tiny-llama.yaml
      Available:  dot_product (transom 0.1.0), torch_dot_product (transom-torch-dot-product 0.1.0)
      Failed:     acme_attn (acme-attn 2.0): ImportError: libacme.so not found
      Try:        torch_dot_product?   All: transom list core_attention
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

__all__ = [
    "AmbiguousNameError",
    "BuildError",
    "CacheError",
    "CardError",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "DuplicateNameError",
    "HookError",
    "InputError",
    "MaskError",
    "OutputError",
    "ParallelError",
    "PlanMismatchError",
    "PluginImportError",
    "PolicyError",
    "RegistryError",
    "ResolutionError",
    "SpecError",
    "TransomError",
    "UnknownImplementationError",
    "UnknownSlotError",
    "UserConfigError",
]

_LABEL_WIDTH = 12
_SHOWN = 24  # of what is available; all of it is in the error's data


class TransomError(ValueError):
    """Something a user can mend: what happened, what was asked, what is available, what to do.

    Args:
        what: one sentence that says what happened, with the offending value.
        asked_by: who asked for it: a spec's path and file, a command-line option, an argument.
        available: what could have been asked for.
        failed: what was tried and why it did not serve, one line each.
        hint: what to do about it.
        data: further facts, kept as attributes of the error.

    Example:
        >>> error = TransomError("the moon is not mounted.", asked_by="--moon", hint="mount it")
        >>> print(error)
        the moon is not mounted.
          Asked by:   --moon
          Try:        mount it
    """

    def __init__(
        self,
        what: str,
        *,
        asked_by: str | None = None,
        available: Iterable[str] = (),
        failed: Iterable[str] = (),
        hint: str | None = None,
        **data: Any,
    ) -> None:
        self.what = what
        self.asked_by = asked_by
        self.available = tuple(available)
        self.failed = tuple(failed)
        self.hint = hint
        self.data = data
        for name, value in data.items():
            setattr(self, name, value)
        super().__init__(self._render())

    def _render(self) -> str:
        rows = [("Asked by:", self.asked_by)] if self.asked_by else []
        if self.available:
            more = len(self.available) - _SHOWN
            shown = [*self.available[:_SHOWN], f"and {more} more"] if more > 1 else self.available
            rows.append(("Available:", ", ".join(shown)))
        rows += [("Failed:" if i == 0 else "", line) for i, line in enumerate(self.failed)]
        if self.hint:
            rows.append(("Try:", self.hint))
        continuation = "\n" + " " * (2 + _LABEL_WIDTH)
        lines = [f"  {label:<{_LABEL_WIDTH}}{str(text).replace(chr(10), continuation)}" for label, text in rows]
        return "\n".join([self.what, *lines])

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.what, self.asked_by, self.available, self.failed, self.hint, self.data)


def _rebuild(
    cls: type[TransomError],
    what: str,
    asked_by: str | None,
    available: tuple[str, ...],
    failed: tuple[str, ...],
    hint: str | None,
    data: dict[str, Any],
) -> TransomError:
    return cls(what, asked_by=asked_by, available=available, failed=failed, hint=hint, **data)


class SpecError(TransomError):
    """A spec file or mapping is wrong; `path`, `file` and `line` say where, as far as known."""

    path: str
    file: str | None
    line: int | None


class ConfigError(SpecError):
    """A field of the config is wrong; `field` and `value` are attributes."""

    field: str
    value: Any


class RegistryError(TransomError):
    """The registry cannot answer."""


class UnknownSlotError(RegistryError):
    """No slot has this name; `slot` is the name that was asked for."""

    slot: str


class UnknownImplementationError(RegistryError):
    """No implementation has this name; `slot` and `name` are what was asked for."""

    slot: str
    name: str


class AmbiguousNameError(RegistryError):
    """Two distributions registered this bare name; `candidates` are the qualified spellings."""

    slot: str
    name: str
    candidates: tuple[str, ...]


class DuplicateNameError(RegistryError):
    """The name is taken; nothing was registered."""

    slot: str
    name: str


class CardError(RegistryError):
    """A `transom.toml` cannot be read or says something that cannot be; `distribution` names its package."""

    distribution: str


class PolicyError(RegistryError):
    """A policy setting is nonsense."""


class UserConfigError(RegistryError):
    """The user's config file cannot be read or says something that cannot be; `file` and `path` say where."""

    file: str
    path: str


class HookError(RegistryError):
    """No hook has this name, or a hook breaks the contract of hooks; `hook` names it."""

    hook: str


class PluginImportError(RegistryError):
    """An implementation could not be imported; the cause is chained, and `traceback` keeps its text for reports."""

    slot: str
    name: str
    reason: str
    traceback: str | None


class ResolutionError(RegistryError):
    """None of the names that were asked for can serve; `resolution` holds every verdict."""

    slot: str
    resolution: Any


class PlanMismatchError(TransomError):
    """Two plans that must agree do not; `differences` lists where."""

    differences: tuple[str, ...]


class BuildError(TransomError):
    """An implementation was built and breaks its slot's contract; `path` says which node."""

    path: str


class InputError(TransomError):
    """A model was called with tokens, positions or labels that do not fit it."""


class MaskError(TransomError):
    """An attention mask has a wrong shape, dtype or kind."""


class CacheError(TransomError):
    """A key/value cache was asked for what it cannot hold; nothing was written."""


class CheckpointError(TransomError):
    """A checkpoint is missing, damaged or belongs to another model; nothing was loaded."""


class DataError(TransomError):
    """Training data is missing, empty or malformed."""


class OutputError(TransomError):
    """An output cannot be written or would overwrite something; what was there is untouched."""


class ParallelError(TransomError):
    """Sizes, ranks or process groups do not fit together."""
