"""Options of a spec for places that a call gives to somebody else: where they still hold, and what is said of them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, final

import msgspec

if TYPE_CHECKING:
    from transom.specs.spec import ModelSpec
    from transom.specs.use import Rule

__all__ = ["IdleOptions", "without_idle"]


@final
class IdleOptions:
    """Collects, place by place, which entries of a spec's `options` hold, and which a call's `use` took the place from.

    Example:
        >>> from transom.specs.use import Rule
        >>> options = Rule("norm", {"a": 1}, "options.norm in a.yaml", "a.yaml", 3, 0, ("norm",))
        >>> use = Rule("layers.*.norm", ("torch_norm",), "--use layers.*.norm=torch_norm", "", None, 1, ())
        >>> found = IdleOptions()
        >>> found.hold(options, "final_layernorm")
        >>> found.drop(options, "layers.0.norm", use)
        >>> next(found.told())
        'options.norm in a.yaml has no effect at layers.*.norm: --use layers.*.norm=torch_norm'
        >>> found.still_held()
        {'norm': ('final_layernorm',)}
    """

    def __init__(self) -> None:
        self._held: dict[str, list[str]] = {}
        self._idle: dict[tuple[str, str], list[str]] = {}
        self._patterns: dict[str, None] = {}

    def hold(self, rule: Rule[Any], path: str) -> None:
        """Say that an entry holds at a place."""
        self._held.setdefault(rule.pattern, []).append(path)

    def drop(self, rule: Rule[Any], path: str, use: Rule[Any]) -> None:
        """Say that an entry would hold at a place, had the call not named another there."""
        self._patterns[rule.pattern] = None
        self._idle.setdefault((rule.where, use.where), []).append(path or "the model")

    def told(self) -> Iterator[str]:
        """Yield a line for each entry and each entry of `use` that made it idle."""
        for (options, use), paths in self._idle.items():
            places = dict.fromkeys(re.sub(r"\.\d+(?=\.|$)", ".*", path) for path in paths)
            yield f"{options} has no effect at {', '.join(places)}: {use}"

    def still_held(self) -> dict[str, tuple[str, ...]]:
        """Give the entries that are idle somewhere, each with the places where it holds."""
        return {pattern: tuple(self._held.get(pattern, ())) for pattern in self._patterns}


def without_idle(spec: ModelSpec, held: Mapping[str, tuple[str, ...]]) -> ModelSpec:
    """Leave out of a spec's `options` what has no effect beside a call's `use`, which the spec is to take in.

    Args:
        spec: the user's.
        held: the entries that are idle somewhere, each with the places where it holds, as a plan made with that `use`
            tells them: the entry is written anew for those.

    Returns:
        the spec that means the same under that `use`.
    """
    if not held:
        return spec
    options: dict[str, dict[str, Any]] = {}
    for pattern, value in spec.options.items():
        of = pattern.partition("/")[2]
        here = [pattern] if pattern not in held else [f"{path}/{of}" if of else path for path in held[pattern]]
        options |= dict.fromkeys(here, value)
    return msgspec.structs.replace(spec, options=options).with_origin(spec.source, spec.lines(), spec.names())
