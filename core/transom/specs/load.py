"""Read a spec from a file, a packaged recipe, a mapping or a `ModelSpec`."""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import msgspec

from transom.errors import ConfigError, SpecError
from transom.specs.read import Lines, read_text
from transom.specs.spec import ModelSpec
from transom.specs.train_spec import TrainSpec
from transom.transformer.transformer_config import TransformerConfig

__all__ = ["load_spec", "recipe_names"]

_KINDS = {".yaml": "yaml", ".yml": "yaml", ".toml": "toml", ".json": "json"}


def load_spec(source: str | Path | Mapping[str, Any] | ModelSpec) -> ModelSpec:
    """Read and validate a spec.

    Args:
        source: path of a YAML, TOML or JSON file, the name of a packaged recipe (``tiny-llama``), a mapping of the same
            form, or a `ModelSpec`, which is returned as it is.

    Returns:
        the spec; nothing is imported, resolved or allocated.

    Raises:
        SpecError: no such file or recipe, not well formed, an unknown or missing field, a value of a wrong type; with
            the file, the path within the spec and, for YAML, the line.
        ConfigError: a config that cannot be.

    Example:
        >>> load_spec("tiny-llama").config.num_layers
        4
    """
    if isinstance(source, ModelSpec):
        return source
    if isinstance(source, Mapping):
        # Through JSON, so that a mapping passes the same checks as a file.
        return _convert(_plain(source), {}, "the mapping", None)
    path = _locate(source)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise SpecError(f"cannot read {path}: {reason}.", path="", file=str(path), line=None) from error
    data, lines = read_text(text, _KINDS[path.suffix], file=path.name)
    return _convert(data, lines, path.name, path.stem)


def recipe_names() -> list[str]:
    """Names of the packaged recipes."""
    return sorted(entry.name.removesuffix(".yaml") for entry in _recipes() if entry.name.endswith(".yaml"))


def _recipes() -> list[Any]:
    return list(files("transom").joinpath("recipes").iterdir())


def _locate(source: str | Path) -> Path:
    path = Path(source)
    if path.suffix in _KINDS:
        if path.is_file():
            return path
        near = sorted(p.name for p in path.parent.glob("*") if p.suffix in _KINDS) if path.parent.is_dir() else []
        raise SpecError(f"no spec file {str(path)!r}.", available=near[:12], path="", file=str(path), line=None)
    if path.is_file():
        what = f"{str(path)!r} has no ending that says how to read it."
        raise SpecError(what, hint="name it .yaml, .toml or .json", path="", file=str(path), line=None)
    names = recipe_names()
    if str(source) in names:
        return Path(str(files("transom").joinpath("recipes", f"{source}.yaml")))
    near = difflib.get_close_matches(str(source), names, n=1)
    raise SpecError(
        f"no spec file and no packaged recipe is named {str(source)!r}.",
        available=names,
        hint=f"{near[0]}?" if near else "a path ending in .yaml, .toml or .json, or a recipe's name",
        path="",
        file=str(source),
        line=None,
    )


def _plain(source: Mapping[str, Any]) -> Any:
    def encode(value: Any) -> Any:
        if isinstance(value, TransformerConfig):
            return value.to_dict()
        if isinstance(value, msgspec.Struct):
            return msgspec.to_builtins(value)
        if isinstance(value, Mapping):
            return dict(value)
        raise SpecError(
            f"a {type(value).__name__} stands in the mapping; a spec is plain data.", path="", file=None, line=None
        )

    try:
        text = json.dumps(source, default=encode)
    except (TypeError, ValueError, RecursionError) as error:
        if isinstance(error, SpecError):
            raise
        raise SpecError(f"the mapping is not plain data: {error}.", path="", file=None, line=None) from error
    return read_text(text, "json")[0]


def _convert(data: Any, lines: Lines, source: str, stem: str | None) -> ModelSpec:
    if not isinstance(data, dict):
        what = f"a spec is a mapping, not {'empty' if data is None else f'a {type(data).__name__}'}."
        raise SpecError(what, asked_by=source, hint="see the packaged tiny-llama", path="", file=source, line=None)
    if stem is not None:
        data = {"name": stem} | data
    try:
        spec = msgspec.convert(data, ModelSpec, strict=True)
    except msgspec.ValidationError as error:
        raise _explain(error, lines, source) from error.__cause__ or error
    return spec.with_origin(source, lines)


_KNOWN: Mapping[str, tuple[str, ...]] = {
    "": ModelSpec.__struct_fields__,
    "config": tuple(f.name for f in dataclasses.fields(TransformerConfig)),
    "train": TrainSpec.__struct_fields__,
}


def _explain(error: msgspec.ValidationError, lines: Lines, source: str) -> SpecError:
    text = str(error)
    found = re.search(r" - at `(?:key in )?\$\.?(.*)`$", text)
    path = re.sub(r"\[(\d+|\.\.\.)\]", r".\1", found[1]) if found else ""
    message = text[: found.start()] if found else text
    available: tuple[str, ...] = ()
    hint = None
    unknown = re.search(r"unknown field `(.+)`$", message)
    if unknown:
        available = _KNOWN.get(path, ())
        near = difflib.get_close_matches(unknown[1], available, n=1)
        hint = f"{near[0]}?" if near else None
        message = f"no field is named {unknown[1]!r}" + (f" in {path}" if path else "")
        path = f"{path}.{unknown[1]}".lstrip(".")
    line = _line(lines, path)
    where = ", ".join(filter(None, [path, f"line {line}" if line else None, source]))
    facts: dict[str, Any] = {"path": path, "file": source, "line": line}
    if isinstance(error.__cause__, ConfigError):
        cause = error.__cause__
        facts |= cause.data | {"path": f"config.{cause.data['field']}", "line": _line(lines, f"config.{cause.field}")}
        where = ", ".join(filter(None, [facts["path"], f"line {facts['line']}" if facts["line"] else None, source]))
        return ConfigError(cause.what, asked_by=where, available=cause.available, hint=cause.hint, **facts)
    sentence = (
        message[:1].lower() + message[1:] if unknown else f"{path or 'the spec'}: {message[:1].lower()}{message[1:]}"
    )
    return SpecError(f"{sentence.rstrip('.')}.", asked_by=where, available=available, hint=hint, **facts)


def _line(lines: Lines, path: str) -> int | None:
    parts = tuple(int(p) if p.isdigit() else p for p in path.split(".")) if path else ()
    while parts and parts not in lines:
        parts = parts[:-1]
    return lines.get(parts)
