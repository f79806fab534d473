"""The card: the static file in which a plugin declares what its implementations support.

``transom.toml`` stands beside the ``__init__`` of the package that the entry point refers to::

    card = 1
    [core_attention.flash_attention]
    api = "1.0"
    requires = ["flash-attn>=2.6"]
    install = "pip install 'transom-flash-attention[fa2]'"
    devices = ["cuda"]
    min_compute_capability = "8.0"
    dtypes = ["bfloat16", "float16"]
    features = ["causal", "window", "gqa", "packed", "dropout"]
    modes = ["train", "infer"]
    compiles = true

It is found and read without importing anything. What it does not declare is refused.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal

import msgspec

from transom.errors import CardError
from transom.registry.names import near

__all__ = [
    "ANY",
    "CARD_VERSION",
    "FILE_NAME",
    "Card",
    "CardSection",
    "Deprecation",
    "alternatives",
    "card_schema",
    "find_beside",
    "find_card",
    "read_card",
]

CARD_VERSION = 1
FILE_NAME = "transom.toml"
ANY = "any"
"""In place of a list of devices or dtypes: every one."""

Api = Annotated[str, msgspec.Meta(pattern=r"^\d+\.\d+$", description="contract version, major.minor")]
Capability = Annotated[str, msgspec.Meta(pattern=r"^\d+\.\d+$", description="CUDA compute capability, major.minor")]
Device = Annotated[str, msgspec.Meta(pattern=r"^[a-z]+$", description="a device type of torch, or any")]
Dtype = Annotated[
    str, msgspec.Meta(pattern=r"^(any|bool|(u?int|b?float|complex)\d+\w*)$", description="a dtype of torch, or any")
]
Feature = Annotated[str, msgspec.Meta(pattern=r"^[a-z]\w*$", description="a feature that the slot lists")]
NonEmpty = Annotated[str, msgspec.Meta(min_length=1)]


class Deprecation(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """That an implementation will go, and what to use instead."""

    message: NonEmpty
    replacement: NonEmpty | None = None


class CardSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What one implementation declares.

    Args:
        api: version of the slot's contract that it was written for.
        devices: device types that it runs on.
        dtypes: dtypes of parameters and activations that it computes in.
        modes: ``"train"`` when gradients are right, ``"infer"`` when outputs are.
        features: which of its slot's features it has.
        requires: distributions that must be installed, with versions and environment markers; of alternatives with
            ``|`` between them, one.
        install: the command that installs what `requires` lists.
        min_compute_capability: the oldest CUDA device that it runs on.
        compiles: ``torch.compile(fullgraph=True)`` compiles it in one graph.
        deterministic: the same inputs give the same bits.
        includes_norm: of an MLP: it norms its input itself, and takes in the norm before it.
        options: its options, as a reference ``module:Dataclass`` or as a JSON Schema.
        deprecated: that it will go.
    """

    api: Api
    devices: Annotated[tuple[Device, ...], msgspec.Meta(min_length=1)]
    dtypes: Annotated[tuple[Dtype, ...], msgspec.Meta(min_length=1)]
    modes: Annotated[tuple[Literal["train", "infer"], ...], msgspec.Meta(min_length=1)]
    features: tuple[Feature, ...] = ()
    requires: tuple[str, ...] = ()
    install: NonEmpty | None = None
    min_compute_capability: Capability | None = None
    compiles: bool = False
    deterministic: bool = False
    includes_norm: bool = False
    options: str | dict[str, Any] | None = None
    deprecated: Deprecation | None = None


_EXAMPLES = {
    "api": 'major.minor as text: api = "1.0"',
    "devices": 'a list of device types: devices = ["cpu", "cuda"], or ["any"]',
    "dtypes": 'a list of torch dtypes: dtypes = ["bfloat16", "float32"], or ["any"]',
    "modes": 'modes = ["train", "infer"], or one of them',
    "features": 'a list of the slot\'s features: features = ["causal"]',
    "min_compute_capability": 'major.minor as text: min_compute_capability = "8.0"',
    "deprecated": 'a table: deprecated = {message = "...", replacement = "..."}',
}


@dataclass(frozen=True)
class Card:
    """One card file: its path, and its sections by slot and name."""

    path: Path
    sections: Mapping[tuple[str, str], CardSection]


def find_card(module: str) -> Path | None:
    """Return the card beside the ``__init__`` of a module's top-level package, `None` where there is none.

    Nothing is imported. In a namespace package, which has no ``__init__``, the first regular package below it counts.

    Args:
        module: dotted name, as in an entry point.

    Example:
        >>> find_card("transom.transformer.linear").name
        'transom.toml'
    """
    return find_beside(module, FILE_NAME)


def find_beside(module: str, name: str) -> Path | None:
    """Return the file of a name beside the ``__init__`` of a module's top-level package, as for `find_card`."""
    top, *rest = module.split(".")
    try:
        spec = find_spec(top)
    except Exception:  # any finder on sys.meta_path may fail; the import will say how
        return None
    if spec is None or spec.submodule_search_locations is None:
        return None
    for directory in _package_directories(spec, rest):
        if (directory / name).is_file():
            return directory / name
    return None


def _package_directories(spec: ModuleSpec, below: list[str]) -> Iterator[Path]:
    """Yield the directories of the outermost regular package."""
    directories = [Path(location) for location in spec.submodule_search_locations or ()]
    if spec.origin is not None:
        yield from directories
        return
    for name in below:
        directories = [directory / name for directory in directories if (directory / name).is_dir()]
        regular = [directory for directory in directories if (directory / "__init__.py").is_file()]
        if regular:
            yield from regular
            return


def read_card(path: Path, *, distribution: str) -> Card:
    """Parse and validate a card.

    Args:
        path: of the file.
        distribution: whose card it is, for errors.

    Returns:
        the card; reading an unchanged file again costs nothing.

    Raises:
        CardError: when it is not readable, not TOML, of another version, or has a wrong or unknown field.
    """
    try:
        status = path.stat()
        return _read(path, distribution, status.st_mtime_ns, status.st_size)
    except OSError as error:
        raise _error(path, distribution, f"cannot be read: {error.strerror}") from error


@lru_cache(maxsize=256)
def _read(path: Path, distribution: str, _changed: int, _size: int) -> Card:
    try:
        data = tomllib.loads(path.read_bytes().decode())
        return Card(path, MappingProxyType(_sections(data, path, distribution)))
    except UnicodeDecodeError as error:
        raise _error(path, distribution, f"is not UTF-8: {error}") from error
    except RecursionError as error:
        raise _error(path, distribution, "is nested too deeply") from error
    except CardError:
        raise
    except ValueError as error:  # TOMLDecodeError, and what Python says to a number of 5,000 digits
        raise _error(path, distribution, f"is not TOML: {error}") from error


def _sections(data: dict[str, Any], path: Path, distribution: str) -> dict[tuple[str, str], CardSection]:
    version = data.pop("card", None)
    if version != CARD_VERSION or isinstance(version, bool):
        said = "has no version" if version is None else f"is of version {version!r}"
        hint = f"this transom reads card = {CARD_VERSION}"
        raise _error(path, distribution, said, where="card", hint=hint)
    return {
        (slot, name): _section(table, path, distribution, f"{slot}.{name}")
        for slot, tables in data.items()
        for name, table in _tables(tables, path, distribution, slot).items()
    }


def _tables(value: object, path: Path, distribution: str, where: str) -> dict[str, object]:
    if not isinstance(value, dict):
        raise _error(path, distribution, "is not a table of implementations", where=where, hint="[slot.name]")
    return value


def _section(table: object, path: Path, distribution: str, where: str) -> CardSection:
    try:
        section = msgspec.convert(table, CardSection)
    except msgspec.ValidationError as error:
        complaint, _, place = str(error).partition(" - at `$")
        place, hint = place.rstrip("`"), _field_hint(complaint, place)
        raise _error(path, distribution, f"is wrong: {complaint}", where=where + place, hint=hint) from error
    for field, complaint in _contradictions(section):
        raise _error(path, distribution, f"is wrong: {complaint}", where=f"{where}.{field}")
    return section


def _field_hint(complaint: str, place: str) -> str | None:
    """Return what a wrong field should have looked like, or which one an unknown field may have meant."""
    if "unknown field" in complaint:
        guesses = near(complaint.split("`")[1], CardSection.__struct_fields__)
        return f"{guesses[0]}?" if guesses else f"the fields are {', '.join(CardSection.__struct_fields__)}"
    return _EXAMPLES.get(place.strip(".`").partition("[")[0])


def _contradictions(section: CardSection) -> Iterator[tuple[str, str]]:
    """Yield field and complaint for what types cannot say."""
    for field in ("devices", "dtypes"):
        if ANY in getattr(section, field) and len(getattr(section, field)) > 1:
            yield field, f"{ANY!r} stands beside others"
    if section.min_compute_capability and not {"cuda", ANY} & set(section.devices):
        yield "min_compute_capability", "no device is 'cuda'"
    if isinstance(section.options, str) and not re.fullmatch(r"[\w.]+:[\w.]+", section.options):
        yield "options", f"{section.options!r} does not refer to a dataclass as module:Name"
    if section.requires:
        from packaging.markers import UndefinedComparison, UndefinedEnvironmentName
        from packaging.requirements import InvalidRequirement, Requirement
        from packaging.version import InvalidVersion

        pieces = [(n, each) for n, entry in enumerate(section.requires) for each in alternatives(entry)]
        for number, requirement in pieces:
            try:
                marker = Requirement(requirement).marker
                if marker is not None:
                    marker.evaluate({"extra": ""})
            except (InvalidRequirement, InvalidVersion, UndefinedComparison, UndefinedEnvironmentName) as error:
                yield f"requires[{number}]", f"{requirement!r} is not a requirement: {str(error).splitlines()[0]}"


def alternatives(requirement: str) -> list[str]:
    """Split an entry of ``requires`` into its alternatives.

    Example:
        >>> alternatives("flash-attn-4>=4.0.0b36 | flash-attn>=2.8")
        ['flash-attn-4>=4.0.0b36', 'flash-attn>=2.8']
    """
    return [each.strip() for each in requirement.split("|")]


def _error(path: Path, distribution: str, complaint: str, *, where: str = "", hint: str | None = None) -> CardError:
    subject = f"{where} in the card of {distribution}" if where else f"the card of {distribution}"
    return CardError(
        f"{subject} {complaint}.",
        asked_by=str(path),
        hint=hint,
        distribution=distribution,
        file=str(path),
        path=where,
    )


def card_schema() -> dict[str, Any]:
    """Return the JSON Schema of a card, for editors that complete and check TOML.

    Example:
        >>> card_schema()["properties"]["card"]["const"]
        1
    """
    schema = msgspec.json.schema(dict[str, dict[str, CardSection]])
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Transom card",
        "required": ["card"],
        "properties": {"card": {"const": CARD_VERSION, "description": "version of the card's format"}},
        **schema,
    }
