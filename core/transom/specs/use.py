"""Who fills which place: the entries of `use` and `options`, from the most specific to the least."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Generic, NoReturn, TypeVar

from transom.errors import SpecError, UnknownSlotError
from transom.slots import SLOT_ALIASES

__all__ = ["Assignments", "Layer", "Rule", "Rules", "named"]

_HINTS = {
    "activation": "config.use_te_activation_func: true makes MLPs use the activation slot",
    "norm_linear": (
        "it needs a norm that feeds a linear alone: config.pre_layernorm, and neither fp32_residual_connection nor "
        "layernorm among recompute_modules"
    ),
}
"""What to do about an entry for a slot that a model has no place for."""
T = TypeVar("T")


class Assignments(dict[str, str]):
    """Entries of `use` as they were given to the option ``--use``, which messages quote."""


def named(use: Mapping[str, str | Sequence[str]], source: str) -> dict[str, str]:
    """Say what messages call each entry of `use`.

    Args:
        use: the entries.
        source: where they were written, unless they are `Assignments`.

    Example:
        >>> named({"mlp": "mlp"}, "a.yaml"), named(Assignments(mlp="mlp"), "")
        ({'mlp': 'use.mlp in a.yaml'}, {'mlp': '--use mlp=mlp'})
    """
    if isinstance(use, Assignments):
        return {pattern: f"--use {pattern}={value}" for pattern, value in use.items()}
    return {pattern: f"use.{pattern} in {source}" for pattern in use}


@dataclass(frozen=True)
class Layer(Generic[T]):
    """Entries that were written in one place: a spec, a bundle, a call.

    Args:
        entries: by pattern.
        source: the place.
        names: what messages call an entry, where that is not ``use.PATTERN in SOURCE``.
        lines: line of each entry, as far as known.
    """

    entries: Mapping[str, T]
    source: str
    names: Mapping[str, str] = field(default_factory=dict)
    lines: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Rule(Generic[T]):
    """One entry of `use` or `options`.

    Args:
        pattern: a slot's name, an alias of slots, or a glob over module paths: ``*`` is one component (or part of
            one), ``**`` any number. An entry of `options` may name an implementation behind a slash: it holds where
            that one is chosen.
        value: what the entry says.
        where: what messages call it.
        source: where it was written.
        line: of the source, where that is known.
        layer: 0 for the spec's entries, 1 for those of a call or a command line, which win at equal specificity.
        tier: 0 for all of these; negative for a preset's, over which they win however specific it is.
    """

    pattern: str
    value: T
    where: str
    source: str
    line: int | None
    layer: int
    slots: tuple[str, ...]
    tier: int = 0

    @cached_property
    def target(self) -> str:
        """The pattern without the implementation that it names."""
        return self.pattern.partition("/")[0]

    @cached_property
    def of(self) -> str | None:
        """The implementation that it is for; `None` = any."""
        return self.pattern.partition("/")[2] or None

    def matches(self, path: str, slot: str) -> bool:
        """Whether the entry speaks of the node at ``path`` in ``slot``."""
        if self.slots:
            return slot in self.slots
        return self._regex.fullmatch(path) is not None

    @property
    def place(self) -> str:
        """What messages call it, and its line."""
        return self.where if self.line is None else f"{self.where}, line {self.line}"

    @property
    def is_unknown_word(self) -> bool:
        """Whether it can only have been meant for a slot, and there is none of this name."""
        return not self.slots and self.target.isidentifier()

    @cached_property
    def _regex(self) -> re.Pattern[str]:
        # Runs of ** mean what one means, and would cost time that grows with their number.
        every = self.target.split(".")
        components = [c for c, before in zip(every, ["", *every], strict=False) if (c, before) != ("**", "**")]
        text = "".join(r"(?:[^.]+\.)*" if c == "**" else _component(c) + r"\." for c in components)
        # The last component has no dot after it; a final ** takes one component or more.
        return re.compile(text + "[^.]+" if components[-1] == "**" else text.removesuffix(r"\."))

    @cached_property
    def specificity(self) -> tuple[int, int, int, int, int]:
        """How narrow it is: exact paths over globs, globs with more literal components first, paths over slots."""
        named = int(self.of is not None)
        if self.slots:
            return (self.tier, 0, 0 if self.target in SLOT_ALIASES else 1, named, self.layer)
        components = self.target.split(".")
        literal = sum("*" not in c and "?" not in c for c in components)
        return (self.tier, 2 if literal == len(components) else 1, literal, named, self.layer)


def _component(glob: str) -> str:
    """Translate one component; once the text after a star is found, no later place of it is tried."""
    first, *others = (re.escape(text).replace(r"\?", "[^.]") for text in re.split(r"\*+", glob))
    if not others:
        return first
    return first + "".join(f"(?>[^.]*?{text})" for text in others[:-1]) + "[^.]*" + others[-1]


class Rules(Generic[T]):
    """The entries of one kind (`use` or `options`), of the spec and of the call together.

    Args:
        kind: ``"use"`` or ``"options"``, for messages.
        layers: the spec's entries, and those of the call.
        slots: the known slots' names.
        presets: those of each bundle, the later over the earlier. They may speak of places that a model lacks.
    """

    def __init__(
        self,
        kind: str,
        layers: Sequence[Layer[T]],
        slots: Iterable[str],
        *,
        presets: Sequence[Layer[T]] = (),
    ) -> None:
        self.kind = kind
        self.known = tuple(slots)
        ranked = [(i - len(presets), 0, preset) for i, preset in enumerate(presets)]
        ranked += [(0, i, layer) for i, layer in enumerate(layers)]
        self.rules = [rule for tier, rank, layer in ranked for rule in self._of(layer, tier, rank)]
        self.matched: set[int] = set()
        self._by_slot: dict[str, list[tuple[int, Rule[T]]]] = {}

    def _of(self, layer: Layer[T], tier: int, rank: int) -> Iterator[Rule[T]]:
        known = set(self.known)
        for pattern, value in layer.entries.items():
            where = layer.names.get(pattern, f"{self.kind}.{pattern} in {layer.source}")
            line = layer.lines.get(pattern)
            slots = _slots(pattern.partition("/")[0], known)
            yield Rule(pattern, value, where, layer.source, line, rank, slots, tier)

    def presets(self, path: str, slot: str) -> dict[str, list[T]]:
        """Return what presets say of a node, by where they were written."""
        said: dict[str, list[T]] = {}
        for rule in self.rules:
            if rule.tier < 0 and rule.matches(path, slot):
                said.setdefault(rule.source, []).append(rule.value)
        return said

    def find(
        self,
        path: str,
        slot: str,
        *,
        asked: Iterable[str] = (),
        chosen: Iterable[str] = (),
        idle: Callable[[Rule[T]], bool] = lambda rule: False,
        accept: Callable[[Rule[T]], bool] = lambda rule: True,
    ) -> Rule[T] | None:
        """Find the most specific entry for a node.

        Args:
            path: of the node.
            slot: of the node.
            asked: names that were asked for there, of which an entry may speak.
            chosen: names of the one that was chosen, for which such an entry holds.
            idle: which entries speak of the node but do not hold there.
            accept: which entries are meant; others are as if they were not there.

        Raises:
            SpecError: two equally specific entries say different things.
        """
        spoken = self._by_slot.get(slot)
        if spoken is None:
            spoken = self._by_slot[slot] = self._speaking_of(slot)
        if not spoken:
            return None
        found: list[tuple[tuple[int, int, int, int, int], int]] = []
        holding, spoken_of = {None, *chosen}, {None, *chosen, *asked}
        for i, rule in spoken:
            if rule.of in spoken_of and rule.matches(path, slot) and accept(rule):
                self.matched.add(i)
                if rule.of in holding and not idle(rule):
                    found.append((rule.specificity, i))
        if not found:
            return None
        best = max(key for key, _ in found)
        first, *others = (self.rules[i] for key, i in found if key == best)
        for other in others:
            if other.value != first.value:
                raise SpecError(
                    f"two entries of {self.kind} are equally specific for {path} and differ.",
                    failed=[f"{rule.place}: {_show(rule.value)}" for rule in (first, other)],
                    hint=f"an entry for {path!r} itself",
                    path=f"{self.kind}.{first.pattern}",
                    file=first.source,
                    line=first.line,
                )
        return first

    def _speaking_of(self, slot: str) -> list[tuple[int, Rule[T]]]:
        """Give the entries that may speak of nodes in a slot: those for it, and all for paths."""
        return [(i, rule) for i, rule in enumerate(self.rules) if not rule.slots or slot in rule.slots]

    def check_all_matched(self, nodes: Iterable[tuple[str, str]]) -> None:
        """Refuse an entry that spoke of no node: a misspelt path must not be silently without effect.

        Args:
            nodes: path and slot of every node, looked at only for an error.

        Raises:
            SpecError: with the nearest paths.
            UnknownSlotError: the entry is a single word and no slot's name.
        """
        for i, rule in enumerate(self.rules):
            if i in self.matched or (rule.tier < 0 and not rule.is_unknown_word):
                continue
            places = list(nodes)
            self._explain_unmatched(rule, [path for path, _ in places if path], sorted({slot for _, slot in places}))

    def _explain_unmatched(self, rule: Rule[T], paths: Sequence[str], slots: Sequence[str]) -> NoReturn:
        if rule.is_unknown_word:
            known = [*self.known, *SLOT_ALIASES]
            near = difflib.get_close_matches(rule.target, [*known, *paths], n=1)
            raise UnknownSlotError(
                f"no slot is named {rule.target!r}.",
                asked_by=rule.place,
                available=known,
                hint=f"{near[0]}?" if near else "a slot's name, or a path such as layers.*.mlp",
                slot=rule.target,
            )
        what = f"no part of the model is in slot {rule.target!r}" if rule.slots else f"nothing is at {rule.target!r}"
        if rule.of is not None and (not rule.slots or set(rule.slots) & set(slots)):
            what = f"nothing at {rule.target!r} is asked to be {rule.of!r}"
        near = [] if rule.slots else difflib.get_close_matches(rule.target, paths, n=3)
        raise SpecError(
            f"{what}, so {self.kind}.{rule.pattern} would have no effect.",
            asked_by=rule.place,
            available=slots if rule.slots else near or _shape(paths),
            hint=_HINTS.get(rule.target, "remove the entry") if rule.slots else "transom plan prints every path",
            path=f"{self.kind}.{rule.pattern}",
            file=rule.source,
            line=rule.line,
        )


def _slots(pattern: str, known: set[str]) -> tuple[str, ...]:
    if pattern in SLOT_ALIASES:
        return SLOT_ALIASES[pattern]
    return (pattern,) if pattern in known else ()


def _shape(paths: Sequence[str]) -> list[str]:
    """Distinct paths with layer numbers as ``*``, few enough to print."""
    return list(dict.fromkeys(re.sub(r"\.\d+(?=\.|$)", ".*", path) for path in paths))[:24]


def _show(value: Any) -> str:
    return " | ".join(value) if isinstance(value, list | tuple) else str(value)
