"""Text to plain data, strictly: no tags, aliases or duplicate keys, nothing infinite; line numbers are kept."""

from __future__ import annotations

import json
import math
import re
import tomllib
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

import yaml

from transom.errors import SpecError

__all__ = ["MAX_DEPTH", "MAX_ITEMS", "MAX_TEXT", "Lines", "check_plain", "read_text"]

MAX_DEPTH = 32
"""Deepest nesting of mappings and lists in a spec."""
MAX_ITEMS = 200_000
"""Most values in a spec."""
MAX_TEXT = 8_000_000
"""Most characters in a spec file."""

Lines = dict[tuple[str | int, ...], int]
"""Line (from 1) of each value, by its path."""

_INT = re.compile(r"[-+]?[0-9]+")
_BASED_INT = re.compile(r"0(?:x[0-9a-fA-F]+|o[0-7]+)")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_HALF = re.compile("[\ud800-\udfff]")
_NOT_FINITE = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")
_CONSTANTS = {"": None, "~": None, "null": None, "Null": None, "NULL": None} | {
    word: value for value in (True, False) for word in (str(value), str(value).lower(), str(value).upper())
}


def read_text(
    text: str, kind: str, *, file: str | None = None, max_items: int = MAX_ITEMS, max_text: int = MAX_TEXT
) -> tuple[Any, Lines]:
    """Parse a spec's text.

    Args:
        text: the file's contents.
        kind: ``"yaml"``, ``"toml"`` or ``"json"``.
        file: name for errors.
        max_items: most values.
        max_text: most characters.

    Returns:
        the data, and the line of each value (YAML only; the other parsers do not tell).

    Raises:
        SpecError: not well formed, or something that a spec may not hold.
    """
    if len(text) > max_text:
        _refuse(f"the spec has {len(text)} characters; at most {max_text} are read.", file)
    readers = {"yaml": _read_yaml, "toml": _read_toml, "json": _read_json}
    try:
        data, lines = readers[kind](text, file)
    except RecursionError:
        _refuse(f"the spec is nested deeper than {MAX_DEPTH} levels.", file)
    check_plain(data, lines, file, max_items=max_items)
    return data, lines


def _refuse(what: str, file: str | None, line: int | None = None, path: str = "", hint: str | None = None) -> NoReturn:
    where = ", ".join(filter(None, [file, f"line {line}" if line else None]))
    raise SpecError(what, asked_by=where or None, hint=hint, path=path, file=file, line=line)


def _read_toml(text: str, file: str | None) -> tuple[Any, Lines]:
    try:
        return tomllib.loads(text), {}
    except (tomllib.TOMLDecodeError, ValueError) as error:
        found = re.search(r"at line (\d+)", str(error))
        _refuse(f"not valid TOML: {error}.", file, int(found[1]) if found else None)


def _read_json(text: str, file: str | None) -> tuple[Any, Lines]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        seen = dict(pairs)
        if len(seen) < len(pairs):
            names = [name for name, _ in pairs]
            _refuse(f"key {next(n for n in names if names.count(n) > 1)!r} is given twice.", file)
        return seen

    def constant(word: str) -> NoReturn:
        _refuse(f"{word} is not a number that a spec may hold.", file)

    try:
        return json.loads(text, object_pairs_hook=unique, parse_constant=constant), {}
    except SpecError:
        raise
    except json.JSONDecodeError as error:
        _refuse(f"not valid JSON: {error.msg} (column {error.colno}).", file, error.lineno)
    except ValueError as error:  # an integer of more digits than Python converts
        _refuse(f"not valid JSON: {error}.", file)


def _read_yaml(text: str, file: str | None) -> tuple[Any, Lines]:
    try:
        return _YamlReader(file).read(yaml.parse(text, Loader=yaml.SafeLoader))
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else None
        _refuse(f"not valid YAML: {error.problem or error.context}.", file, line)
    except yaml.YAMLError as error:
        _refuse(f"not valid YAML: {error}.", file)


class _YamlReader:
    """Builds data from YAML's events without recursion; plain scalars follow YAML 1.2's core schema.

    PyYAML's own constructors follow YAML 1.1, where ``1e-4`` is a string and ``no`` is false.
    """

    def __init__(self, file: str | None) -> None:
        self.file = file
        self.lines: Lines = {}
        self.root: list[Any] = []
        # Each open collection: (container, its path, the key that waits for its value)
        self.open: list[tuple[Any, tuple[str | int, ...], list[str]]] = [(self.root, (), [])]

    def read(self, events: Iterator[yaml.Event]) -> tuple[Any, Lines]:
        for event in events:
            self._take(event)
        if len(self.root) > 1:
            _refuse("the file holds several YAML documents; a spec is one.", self.file)
        return (self.root[0] if self.root else None), self.lines

    def _take(self, event: yaml.Event) -> None:
        line = event.start_mark.line + 1 if event.start_mark else None
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            _refuse("anchors and aliases are not read in a spec.", self.file, line, hint="write the value out")
        if isinstance(event, yaml.ScalarEvent):
            self._scalar(event, line)
        elif isinstance(event, yaml.MappingStartEvent):
            self._start({}, event, line)
        elif isinstance(event, yaml.SequenceStartEvent):
            self._start([], event, line)
        elif isinstance(event, yaml.MappingEndEvent | yaml.SequenceEndEvent):
            self.open.pop()

    def _start(self, container: Any, event: yaml.Event, line: int | None) -> None:
        self._no_tag(getattr(event, "tag", None), line)
        if len(self.open) > MAX_DEPTH:
            _refuse(f"the spec is nested deeper than {MAX_DEPTH} levels.", self.file, line)
        path = self._put(container, line)
        self.open.append((container, path, []))

    def _scalar(self, event: yaml.ScalarEvent, line: int | None) -> None:
        self._no_tag(event.tag, line)
        container, path, pending = self.open[-1]
        if isinstance(container, dict) and not pending:
            if event.value in container:
                _refuse(f"key {event.value!r} is given twice.", self.file, line, _dotted((*path, event.value)))
            if event.implicit[0] and not isinstance(self._plain(event.value, line), str):
                _refuse(f"key {event.value} is not a string.", self.file, line, _dotted(path), f"write '{event.value}'")
            pending.append(event.value)
            return
        self._put(self._plain(event.value, line) if event.implicit[0] else event.value, line)

    def _put(self, value: Any, line: int | None) -> tuple[str | int, ...]:
        container, path, pending = self.open[-1]
        if isinstance(container, dict):
            if not pending:
                _refuse("a mapping's key is not a string.", self.file, line, _dotted(path))
            key: str | int = pending.pop()
            container[key] = value
        else:
            key = len(container)
            container.append(value)
        here = path if container is self.root else (*path, key)
        if line is not None:
            self.lines[here] = line
        if len(self.lines) > MAX_ITEMS:
            _refuse(f"the spec holds more than {MAX_ITEMS} values.", self.file, line)
        return here

    def _no_tag(self, tag: str | None, line: int | None) -> None:
        if tag not in (None, "!"):
            _refuse(f"tag {tag} is not read in a spec: it is data only.", self.file, line, hint="write a plain value")

    def _plain(self, text: str, line: int | None) -> Any:
        if text in _CONSTANTS:
            return _CONSTANTS[text]
        if _NOT_FINITE.fullmatch(text):
            _refuse(f"{text} is not a number that a spec may hold.", self.file, line)
        if _INT.fullmatch(text) and len(text) <= 20:
            return int(text)
        if _BASED_INT.fullmatch(text) and len(text) <= 20:
            return int(text, 0)
        return float(text) if _FLOAT.fullmatch(text) and len(text) <= 400 else text


def check_plain(
    data: Any, lines: Mapping[tuple[str | int, ...], int], file: str | None, *, max_items: int = MAX_ITEMS
) -> None:
    """Refuse what a spec may not hold: other keys than strings, numbers that are not finite or too large, objects.

    Args:
        data: mappings, lists and scalars.
        lines: line of each value, as far as known.
        file: name for errors.
        max_items: most values.

    Raises:
        SpecError: with the path of the value.
    """
    stack: list[tuple[tuple[str | int, ...], Any]] = [((), data)]
    count = 0
    while stack:
        path, value = stack.pop()
        count += 1
        if len(path) > MAX_DEPTH:
            _refuse(f"the spec is nested deeper than {MAX_DEPTH} levels.", file, lines.get(path[:1]), _dotted(path[:3]))
        if count > max_items:
            _refuse(f"the spec holds more than {max_items} values.", file)
        if isinstance(value, dict):
            for key in value:
                if not isinstance(key, str):
                    _refuse(f"key {key!r} is not a string.", file, lines.get(path), _dotted(path))
                _check_unicode(key, path, lines.get(path), file)
            stack.extend(((*path, key), item) for key, item in value.items())
        elif isinstance(value, list | tuple):
            stack.extend(((*path, i), item) for i, item in enumerate(value))
        else:
            _check_scalar(value, path, lines.get(path), file)


def _check_scalar(value: Any, path: tuple[str | int, ...], line: int | None, file: str | None) -> None:
    if value is None or isinstance(value, bool):
        return
    if isinstance(value, str):
        _check_unicode(value, path, line, file)
    elif isinstance(value, int):
        if abs(value) >= 2**63:
            _refuse(f"{_dotted(path)} is {_short(value)}, which does not fit 64 bits.", file, line, _dotted(path))
    elif isinstance(value, float):
        if not math.isfinite(value):
            _refuse(f"{_dotted(path)} is {value}, not a finite number.", file, line, _dotted(path))
    else:
        _refuse(f"{_dotted(path)} is a {type(value).__name__}; a spec is plain data.", file, line, _dotted(path))


def _check_unicode(text: str, path: tuple[str | int, ...], line: int | None, file: str | None) -> None:
    # JSON and TOML can write half of a surrogate pair, which is no character.
    if _HALF.search(text):
        _refuse(f"{_dotted(path) or 'a key'} holds {text!r}, which is not Unicode text.", file, line, _dotted(path))


def _short(value: int) -> str:
    # str() of a very long integer raises; its bit length does not.
    return str(value) if value.bit_length() < 200 else f"a number of {value.bit_length()} bits"


def _dotted(path: tuple[str | int, ...]) -> str:
    return ".".join(str(part) for part in path)
