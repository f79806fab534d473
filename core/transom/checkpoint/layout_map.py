"""From one set of names and layouts of weights to another, and back: data, which turns tensors only when asked for."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, final

from transom.checkpoint.layout_operations import Add, Fills, Operation
from transom.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["LayoutMap", "Rule", "fill"]

Step = Callable[[Sequence["Tensor"]], list["Tensor"]]
_NUMBER = re.compile(r"\{(\w+)\}")


@final
@dataclass(frozen=True)
class Rule:
    """Which tensors become which.

    A name may hold ``{layer}`` or another number in braces. A number on both sides makes a rule for each of its values.
    One that stands on one side alone makes the tensors of all its values come together, in order: ``Stack`` joins them.

    Args:
        there: names in the other layout, one or several.
        here: names in the canonical layout.
        operations: from there to here, in order; none = only the names differ.

    Example:
        >>> from transom.checkpoint.layout_operations import Concat
        >>> rule = Rule(("gate.weight", "up.weight"), "linear_fc1.weight", Concat(2))
        >>> rule.there, rule.here
        (('gate.weight', 'up.weight'), ('linear_fc1.weight',))
    """

    there: tuple[str, ...]
    here: tuple[str, ...]
    operations: tuple[Operation, ...]

    def __init__(self, there: str | Sequence[str], here: str | Sequence[str], *operations: Operation) -> None:
        object.__setattr__(self, "there", (there,) if isinstance(there, str) else tuple(there))
        object.__setattr__(self, "here", (here,) if isinstance(here, str) else tuple(here))
        object.__setattr__(self, "operations", operations)

    def expanded(self, numbers: Mapping[str, int]) -> Iterator[Rule]:
        """Give the rule for every value of its numbers, which count from 0 to below what ``numbers`` says."""
        there, here = _numbers_in(self.there), _numbers_in(self.here)
        shared = [name for name in there if name in here]
        for values in product(*(range(numbers[name]) for name in shared)):
            known = dict(zip(shared, values, strict=True))
            yield Rule(_filled(self.there, known, numbers), _filled(self.here, known, numbers), *self.operations)

    def forward(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Turn the tensors of ``there`` into those of ``here``."""
        return self._run(self.there, self.here, [operation.forward for operation in self.operations], tensors)

    def backward(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Turn the tensors of ``here`` into those of ``there``."""
        return self._run(self.here, self.there, [op.backward for op in reversed(self.operations)], tensors)

    def fill(self, place: Tensor, tensors: Sequence[Tensor]) -> None:
        """Put the one tensor that `forward` makes where it belongs, without memory for it where its last step can."""
        *before, last = self.operations or (None,)
        if isinstance(last, Fills):
            self._run(self.there, self.here, [*(each.forward for each in before), partial(last.fill, place)], tensors)
        else:
            (tensor,) = self.forward(tensors)
            place.copy_(tensor)

    @staticmethod
    def _run(
        given: Sequence[str], wanted: Sequence[str], steps: Sequence[Step], tensors: Sequence[Tensor]
    ) -> list[Tensor]:
        found = list(tensors)
        try:
            for step in steps:
                found = step(found)
            if len(found) != len(wanted):
                raise ValueError(f"{len(found)} tensors come out, and {len(wanted)} are named")
        except (ValueError, RuntimeError, IndexError) as error:
            shapes = ", ".join(f"{name} {list(t.shape)}" for name, t in zip(given, tensors, strict=True))
            raise CheckpointError(
                f"{' and '.join(wanted)} cannot be made of {shapes}: {str(error).splitlines()[0]}.",
                names=tuple(wanted),
            ) from error
        return found


@final
@dataclass(frozen=True)
class LayoutMap:
    """Names and layouts of weights in two worlds: there, and here, where they are canonical.

    A plugin's module that has other parameters than the reference implementation has a method ``layout_map()`` that
    returns one; checkpoints and optimizer states of every model with that module are then canonical. The same maps
    bring checkpoints of other libraries here and back.

    What no rule names passes as it is. Tensors are turned one rule at a time, when they are asked for.

    Args:
        rules: what becomes what.
        numbers: how many values each number in the rules' names has: ``{"layer": 32}``.

    Example:
        >>> import torch
        >>> from transom.checkpoint.layout_operations import Concat
        >>> layout = LayoutMap([Rule(("gate.weight", "up.weight"), "linear_fc1.weight", Concat(2))])
        >>> canonical = layout.forward({"gate.weight": torch.zeros(3, 2), "up.weight": torch.ones(3, 2)})
        >>> canonical["linear_fc1.weight"].shape
        torch.Size([6, 2])
        >>> sorted(layout.backward(canonical))
        ['gate.weight', 'up.weight']
    """

    rules: tuple[Rule, ...]
    numbers: Mapping[str, int] = field(default_factory=dict)

    def __init__(self, rules: Sequence[Rule], numbers: Mapping[str, int] | None = None) -> None:
        object.__setattr__(self, "rules", tuple(rules))
        object.__setattr__(self, "numbers", dict(numbers or {}))

    def forward(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Bring tensors into the canonical layout.

        Args:
            tensors: by their names there; looked up only when a result is.

        Returns:
            the tensors by their names here. A rule whose tensors are not all given makes none.

        Raises:
            CheckpointError: when looked up: shapes do not allow it.
        """
        rules = self.expanded()
        return _Turned(tensors, [_Move(rule.there, rule.here, rule.forward, rule.fill) for rule in rules])

    def backward(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Bring tensors out of the canonical layout: `forward` the other way round."""
        return _Turned(tensors, [_Move(rule.here, rule.there, rule.backward) for rule in self.expanded()])

    def prefixed(self, there: str = "", here: str | None = None) -> LayoutMap:
        """Return the map with something before every name: ``here`` before the canonical ones, `None` = the same."""
        here = there if here is None else here
        rules = [
            Rule([there + name for name in rule.there], [here + name for name in rule.here], *rule.operations)
            for rule in self.rules
        ]
        return LayoutMap(rules, self.numbers)

    def of_moments(self) -> LayoutMap:
        """Return the map of what belongs to the weights, as an optimizer's moments do: constants are not added."""
        rules = [
            Rule(rule.there, rule.here, *(step for step in rule.operations if not isinstance(step, Add)))
            for rule in self.rules
        ]
        return LayoutMap(rules, self.numbers)

    def expanded(self) -> Iterator[Rule]:
        """Give every rule for every value of its numbers."""
        for rule in self.rules:
            yield from rule.expanded(self.numbers)


def fill(place: Tensor, tensors: Mapping[str, Tensor], name: str) -> None:
    """Copy a tensor to where it belongs; of what a `LayoutMap` turned, each byte once where operations allow it.

    Args:
        place: of its shape; it keeps its dtype and device.
        tensors: by name.
        name: of the tensor.

    Raises:
        CheckpointError: as when the name is looked up.

    Example:
        >>> import torch
        >>> from transom.checkpoint.layout_operations import Concat
        >>> layout = LayoutMap([Rule(("gate.weight", "up.weight"), "linear_fc1.weight", Concat(2))])
        >>> place = torch.empty(2, 1)
        >>> canonical = layout.forward({"gate.weight": torch.zeros(1, 1), "up.weight": torch.ones(1, 1)})
        >>> fill(place, canonical, "linear_fc1.weight")
        >>> place.tolist()
        [[0.0], [1.0]]
    """
    if isinstance(tensors, _Turned):
        tensors.fill(place, name)
    else:
        place.copy_(tensors[name])


@dataclass(frozen=True)
class _Move:
    """A rule in one direction: what it takes, what it makes, and how; or how it fills the place of what it makes."""

    given: tuple[str, ...]
    wanted: tuple[str, ...]
    run: Step
    fill: Callable[[Tensor, Sequence[Tensor]], None] | None = None


class _Turned(Mapping[str, "Tensor"]):
    """Tensors that rules make when they are looked up; those of the last rule are kept, since they come together."""

    def __init__(self, source: Mapping[str, Tensor], moves: Sequence[_Move]) -> None:
        self._source = source
        possible = [move for move in moves if all(name in source for name in move.given)]
        self._moves = {name: move for move in possible for name in move.wanted}
        used = {name for move in possible for name in move.given}
        as_they_are = (name for name in source if name not in used and name not in self._moves)
        self._names = dict.fromkeys([*self._moves, *as_they_are])
        self._last: tuple[_Move, dict[str, Tensor]] | None = None

    def __getitem__(self, name: str) -> Tensor:
        move = self._moves.get(name)
        if move is None:
            return self._source[name]
        if self._last is None or self._last[0] is not move:
            self._last = None  # before more memory is asked for
            made = move.run([self._source[each] for each in move.given])
            self._last = (move, dict(zip(move.wanted, made, strict=True)))
        return self._last[1][name]

    def fill(self, place: Tensor, name: str) -> None:
        """Copy a tensor to its place, by the rule itself where that makes this one alone."""
        move = self._moves.get(name)
        if move is None:
            fill(place, self._source, name)
        elif move.fill is not None and len(move.wanted) == 1:
            move.fill(place, [self._source[each] for each in move.given])
        else:
            place.copy_(self[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._names


def _numbers_in(names: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(number for name in names for number in _NUMBER.findall(name)))


def _filled(names: Sequence[str], known: Mapping[str, int], numbers: Mapping[str, int]) -> list[str]:
    """Fill numbers in; those that are not known take all their values in turn."""
    open_ones = [number for number in _numbers_in(names) if number not in known]
    found = []
    for values in product(*(range(numbers[number]) for number in open_ones)):
        filling = {**known, **dict(zip(open_ones, values, strict=True))}
        found += [name.format_map(filling) for name in names]
    return found
