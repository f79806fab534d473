"""Plain data to typed objects, strictly: what does not fit is told with its path, its line and what would fit."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any, TypeVar

import msgspec
from msgspec import inspect

from transom.errors import ConfigError, SpecError
from transom.specs.read import Lines

__all__ = ["convert"]

T = TypeVar("T")
Path = tuple[str | int, ...]

_GAP = -1  # stands in a path for a key that msgspec does not tell


def convert(data: Any, kind: type[T], *, source: str, lines: Lines | None = None, under: str = "") -> T:
    """Make an object of plain data.

    Args:
        data: mappings, lists and scalars.
        kind: a class of msgspec, or a dataclass.
        source: where the data was read from, for errors.
        lines: line of each value, by its path, as far as known.
        under: path of the data within the source.

    Returns:
        the object.

    Raises:
        SpecError: a field is unknown or missing, or a value of a wrong type.
        ConfigError: a config that cannot be.

    Example:
        >>> from transom.specs.train_spec import TrainSpec
        >>> convert({"steps": 5}, TrainSpec, source="mine.yaml").steps
        5
    """
    place = _Place(source, lines or {}, under)
    shape = _shape(kind)  # type: ignore[arg-type]  # a type variable's bound is not known to be hashable
    for path, known in _unknown(data, shape, ()):
        raise _unknown_field(path, known, place)
    try:
        return msgspec.convert(data, kind, strict=True)
    except msgspec.ValidationError as error:
        raise _explain(error, data, kind, place) from error.__cause__ or error


class _Place:
    """Where data stands, for errors."""

    def __init__(self, source: str, lines: Lines, under: str) -> None:
        self.source = source
        self.lines = lines
        self.under = under

    def dotted(self, path: Path) -> str:
        return ".".join([*([self.under] if self.under else []), *map(str, path)])

    def facts(self, path: Path) -> dict[str, Any]:
        """Give the data that an error carries: path, file, line."""
        above = path
        while above and above not in self.lines:
            above = above[:-1]
        return {"path": self.dotted(path), "file": self.source, "line": self.lines.get(above)}

    def asked_by(self, path: Path) -> str:
        facts = self.facts(path)
        line = f"line {facts['line']}" if facts["line"] else None
        return ", ".join(filter(None, [facts["path"], line, self.source]))


@lru_cache(maxsize=256)
def _shape(kind: type) -> inspect.Type:
    return inspect.type_info(kind)


def _fields(shape: inspect.Type) -> Mapping[str, inspect.Type] | None:
    """Return the fields of something with named fields, `None` for anything else."""
    if isinstance(shape, inspect.StructType | inspect.DataclassType | inspect.TypedDictType):
        tag = getattr(shape, "tag_field", None)
        return {field.encode_name: field.type for field in shape.fields} | ({tag: inspect.StrType()} if tag else {})
    return None


def _inner(shape: inspect.Type, data: Any) -> inspect.Type:
    """Return the member of a union that the data is meant for; other types as they are."""
    if not isinstance(shape, inspect.UnionType):
        return shape
    wanted: tuple[type, ...] = ()
    if isinstance(data, dict):
        wanted = (inspect.StructType, inspect.DataclassType, inspect.TypedDictType, inspect.DictType)
    elif isinstance(data, list):
        wanted = (inspect.ListType, inspect.VarTupleType, inspect.TupleType)
    members = [member for member in shape.types if isinstance(member, wanted)]
    # Several kinds of mapping are told apart by their tags, which msgspec reads.
    return members[0] if len(members) == 1 else inspect.AnyType()


def _items(data: Any, shape: inspect.Type) -> Iterator[tuple[str | int, Any, inspect.Type]]:
    """Yield key, value and type of what a mapping or a list holds."""
    fields = _fields(shape)
    if isinstance(data, dict):
        values = shape.value_type if isinstance(shape, inspect.DictType) else inspect.AnyType()
        for key, value in data.items():
            yield key, value, (fields or {}).get(key, values)
    elif isinstance(data, list) and isinstance(shape, inspect.ListType | inspect.VarTupleType):
        for i, value in enumerate(data):
            yield i, value, shape.item_type
    elif isinstance(data, list) and isinstance(shape, inspect.TupleType):
        for i, (value, item) in enumerate(zip(data, shape.item_types, strict=False)):
            yield i, value, item


def _unknown(data: Any, shape: inspect.Type, path: Path) -> Iterator[tuple[Path, tuple[str, ...]]]:
    """Yield the path of every field that there is not, and the fields that there are: dataclasses ignore them."""
    if not isinstance(data, dict | list):  # nearly everything in a spec holds nothing
        return
    shape = _inner(shape, data)
    fields = _fields(shape)
    for key, value, inner in _items(data, shape):
        if fields is not None and key not in fields:
            yield (*path, key), tuple(fields)
        else:
            yield from _unknown(value, inner, (*path, key))


def _unknown_field(path: Path, known: tuple[str, ...], place: _Place) -> SpecError:
    *above, name = path
    near = difflib.get_close_matches(str(name), known, n=1)
    inside = place.dotted(tuple(above))
    return SpecError(
        f"no field is named {name!r}{f' in {inside}' if inside else ''}.",
        asked_by=place.asked_by(path),
        available=known,
        hint=f"{near[0]}?" if near else None,
        **place.facts(path),
    )


def _explain(error: msgspec.ValidationError, data: Any, kind: type, place: _Place) -> SpecError:
    message, path = _split(error)
    path = _without_gaps(path, message, data, kind)
    cause = error.__cause__
    if isinstance(cause, ConfigError):
        path = (*path, cause.data["field"])
        facts = cause.data | place.facts(path)
        return ConfigError(
            cause.what, asked_by=place.asked_by(path), available=cause.available, hint=cause.hint, **facts
        )
    missing = re.fullmatch(r"Object missing required field `(.+)`", message)
    named = re.match(r"(\w+)(?: is |: )", message)
    if missing:
        path = (*path, missing[1])
        what = f"{place.dotted(path)} is missing."
    elif named and named[1] in (_fields(_at(path, data, kind)) or ()):
        path = (*path, named[1])
        what = f"{place.dotted(path)}{message.removeprefix(named[1])}."
    else:
        what = f"{place.dotted(path) or place.source}: {message[:1].lower()}{message[1:]}."
    expected = _at(path, data, kind)
    choices = [repr(value) for value in expected.values] if isinstance(expected, inspect.LiteralType) else []
    return SpecError(what, asked_by=place.asked_by(path), available=choices, **place.facts(path))


def _split(error: msgspec.ValidationError) -> tuple[str, Path]:
    """Take msgspec's text apart: the message, and the path with a gap where it does not tell a mapping's key."""
    text = str(error)
    found = re.search(r" - at `(?:key in )?\$(\S*)`$", text)
    if found is None:
        return text.rstrip("."), ()
    steps = re.findall(r"\.(\w+)|\[(\d+)\]|\[(\.\.\.)\]", found[1])
    path = tuple(_GAP if gap else name or int(index) for name, index, gap in steps)
    return text[: found.start()].rstrip("."), path


def _without_gaps(path: Path, message: str, data: Any, kind: type) -> Path:
    """Find the key of a mapping that msgspec complained about: the first that alone gives the same complaint."""
    if _GAP not in path:
        return path
    gap = path.index(_GAP)
    for key in _get(data, path[:gap]):
        try:
            msgspec.convert(_alone(data, path[:gap], key), kind, strict=True)
        except msgspec.ValidationError as error:
            if _split(error) == (message, path):
                filled = (*path[:gap], key, *path[gap + 1 :])
                return _without_gaps(filled, message, data, kind)
    return path[:gap]


def _get(data: Any, path: Path) -> Any:
    for step in path:
        data = data[step]
    return data


def _alone(data: Any, path: Path, key: str) -> Any:
    """Copy data with only one key in the mapping at ``path``."""
    if not path:
        return {key: data[key]}
    step, *rest = path
    inner = _alone(data[step], tuple(rest), key)
    if isinstance(data, dict):
        return {**data, step: inner}
    return [inner if i == step else item for i, item in enumerate(data)]


def _at(path: Path, data: Any, kind: type) -> inspect.Type:
    """Return the type that the data at a path should have had."""
    shape: inspect.Type = _shape(kind)
    for step in path:
        inside = {key: (value, inner) for key, value, inner in _items(data, _inner(shape, data))}
        if step not in inside:
            return (_fields(_inner(shape, data)) or {}).get(str(step), inspect.AnyType())
        data, shape = inside[step]
    return shape
