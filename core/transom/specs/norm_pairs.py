"""Norms that feed one linear, or one MLP, alone: whether one module fills both places, and what is asked for there."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

from transom.errors import SpecError
from transom.slots.norm_linear import SEPARATE
from transom.specs.node import Node

if TYPE_CHECKING:
    from transom.registry.registry import Registry
    from transom.registry.resolve import Resolution
    from transom.slots import Part
    from transom.specs.use import Rule, Rules

__all__ = ["NormPairs", "NormPlace"]


@dataclass(frozen=True)
class NormPlace:
    """The place of a norm that feeds one other place alone.

    Args:
        path: of the norm.
        part: what it must serve.
    """

    path: str
    part: Part


@final
class NormPairs:
    """Decides which norms are one module with what they feed.

    An entry of `use` for the slot ``norm_linear`` puts a norm and the linear that it feeds into one module, wherever
    there are such two; so does an entry for the linear's path that names an implementation of that slot. An entry that
    is narrower than it, or was given later, and fills one of the two places by its own slot, keeps them apart.

    Args:
        use: the entries.
        registry: where names are looked up.
        locked: paths and slots of a lock's places.
    """

    def __init__(
        self, use: Rules[tuple[str, ...]], registry: Registry, locked: Container[tuple[str, str]] = ()
    ) -> None:
        self._use = use
        self._locked = locked
        found = registry.implementations("norm_linear")
        self._names = {SEPARATE, *(each.name for each in found), *(each.ref for each in found)}
        self._taken: dict[str, Node] = {}

    def asked(self, path: str, norm: NormPlace) -> tuple[tuple[str, ...], tuple[str, ...], str]:
        """Say what is asked for at a linear that one norm feeds.

        Args:
            path: of the linear.
            norm: the place of the norm.

        Returns:
            the names to try, none where the two places are filled by their own slots; the names that were asked for,
            `SEPARATE` among them; and who asked.

        Raises:
            SpecError: entries contradict each other, or `SEPARATE` is not the last name.
        """
        rule = self._rule(path, norm)
        asked, asked_by = ((SEPARATE,), "the default of slot norm_linear") if rule is None else (rule.value, rule.place)
        if (path, "norm_linear") in self._locked:
            return asked, asked, asked_by
        if SEPARATE in asked and (path, "column_linear") in self._locked:
            return (), asked, asked_by
        if SEPARATE in asked[:-1]:
            raise SpecError(
                f"names after {SEPARATE!r} would never be tried: {' | '.join(asked)}.",
                asked_by=asked_by,
                hint=f"write {SEPARATE} last",
                path=asked_by,
                file=None,
                line=None,
            )
        return tuple(name for name in asked if name != SEPARATE), asked, asked_by

    def is_of_one_place(self, rule: Rule[tuple[str, ...]]) -> bool:
        """Whether an entry does not name implementations of norm_linear at a path."""
        return bool(rule.slots) or not self._is_of_two(rule)

    def take(self, norm: NormPlace, path: str, resolution: Resolution, asked_by: str) -> None:
        """Say that what fills a place fills that of the norm before it too.

        Args:
            norm: the place of the norm.
            path: of the place that takes it in.
            resolution: who fills it.
            asked_by: who asked for that.

        Raises:
            SpecError: an entry fills the norm's place by its path, and would have no effect.
        """
        rule = self._use.find(norm.path, "norm")
        if rule is not None and not rule.slots and rule.tier == 0:
            raise SpecError(
                f"{norm.path} is filled by {resolution.chosen.ref}, at {path}, which brings its norm along, so "
                f"use.{rule.pattern} would have no effect.",
                asked_by=rule.place,
                hint=f"another name at {path}, or leave the entry out",
                path=f"use.{rule.pattern}",
                file=rule.source,
                line=rule.line,
            )
        self._taken[norm.path] = Node(
            path=norm.path,
            slot=norm.part.slot,
            request=norm.part.request,
            asked_by=asked_by,
            resolution=resolution,
            within=path,
        )

    def taken(self, path: str) -> Node | None:
        """Return the node of a norm that another place took in; `None` = it has a module of its own."""
        return self._taken.get(path)

    def _rule(self, path: str, norm: NormPlace) -> Rule[tuple[str, ...]] | None:
        """Find the entry that puts two places into one module; `None` = none, or another keeps them apart."""
        rule = self._use.find(path, "norm_linear", accept=lambda each: bool(each.slots) or self._is_of_two(each))
        if rule is None or not rule.slots:
            return rule
        own = (self._use.find(path, "column_linear", accept=self.is_of_one_place), self._use.find(norm.path, "norm"))
        return None if any(each is not None and each.specificity > rule.specificity for each in own) else rule

    def _is_of_two(self, rule: Rule[tuple[str, ...]]) -> bool:
        """Whether the names of an entry for a path are those of norm_linear: its first tells."""
        return rule.value[0] in self._names
