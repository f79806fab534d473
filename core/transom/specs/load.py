"""Read a spec from a file, a packaged recipe, a mapping or a `ModelSpec`."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import msgspec

from transom.errors import SpecError
from transom.specs.convert import convert
from transom.specs.read import Lines, read_text
from transom.specs.spec import ModelSpec
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
    if not isinstance(source, str | Path):
        what = f"a spec is a path, a recipe's name, a mapping or a ModelSpec, not {source!r}."
        raise SpecError(what, available=recipe_names(), path="", file=None, line=None)
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
    return convert(data, ModelSpec, source=source, lines=lines).with_origin(source, lines)
