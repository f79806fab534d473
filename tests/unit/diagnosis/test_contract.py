"""What is wrong with an imported object, beside its signature."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import pytest
from transom.diagnosis.contract import object_complaints
from transom.registry.card import read_card
from transom.registry.registry import default_registry
from transom.slots import SLOTS


class Fits:
    def __init__(self, config, hidden_size, eps): ...

    def forward(self, x, /): ...


class Wide(Fits):
    def __init__(self, config, width, eps): ...


class Late(Fits):
    def supports(self, request): ...


class Number(Fits):
    supports = 3


class Greedy(Fits):
    @classmethod
    def parts(cls, request, more): ...

    @dataclass
    class Submodules: ...


class Alone(Fits):
    @classmethod
    def parts(cls, request): ...


class Untyped(Fits):
    class Options: ...

    def __init__(self, config, hidden_size, eps, *, options=None): ...


class Typed(Fits):
    class Options(msgspec.Struct): ...

    def __init__(self, config, hidden_size, eps, *, options=None): ...


class Deaf(Fits):
    class Options(msgspec.Struct): ...


@pytest.fixture
def card(tmp_path, make_card):
    """Give a function that reads a card's only section."""

    def make(**fields):
        (tmp_path / "transom.toml").write_text(make_card("norm.fast", **fields))
        return read_card(tmp_path / "transom.toml", distribution="acme").sections["norm", "fast"]

    return make


@pytest.mark.parametrize(
    ("builder", "complaints"),
    [
        (Fits, []),
        (Typed, []),
        (3, ["is of type int, which cannot be called"]),
        (Wide, ["does not accept `hidden_size`", "requires `width`, which callers do not pass"]),
        (Late, ["has `supports` that cannot be called with a request alone: it should be a class method"]),
        (Number, ["has `supports` of type int, which cannot be called"]),
        (Greedy, ["has `parts` that cannot be called with a request alone: it should be a class method"]),
        (Alone, ["has `parts` but no dataclass `Submodules` to receive them"]),
        (Deaf, ["does not accept `options`"]),
        (Untyped, ["has `Options` that is neither a dataclass nor a msgspec.Struct"]),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_object_complaints_name_every_convention_that_is_broken(builder, complaints):
    assert list(object_complaints(builder, SLOTS["norm"], None)) == complaints


def test_object_complaints_compare_options_with_the_card(card):
    slot = SLOTS["norm"]
    assert object_complaints(Fits, slot, card(options={})) == ("has no `Options`, which its card promises",)
    other = "has other `Options` than its card refers to, transom.specs.train_spec:TrainSpec"
    gone = "has options on its card that cannot be imported: ModuleNotFoundError: No module named 'acme_gone'"
    assert object_complaints(Typed, slot, card(options="acme_gone:Options")) == (gone,)
    assert object_complaints(Typed, slot, card(options="transom.specs.train_spec:TrainSpec")) == (other,)
    assert object_complaints(Typed, slot, card(options=None)) == ()


def test_every_implementation_of_core_keeps_the_conventions():
    registry = default_registry()
    for implementation in registry.implementations():
        if implementation.is_core:
            slot = registry.slot(implementation.slot)
            assert object_complaints(implementation.load(), slot, implementation.card) == (), implementation.ref
