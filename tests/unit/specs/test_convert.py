"""Plain data to typed objects: every complaint names the path, the line and what would fit."""

from __future__ import annotations

import dataclasses
from typing import Literal

import msgspec
import pytest
from transom.errors import SpecError
from transom.specs.convert import convert


@dataclasses.dataclass
class Inner:
    size: int
    kind: Literal["even", "odd"] = "even"


class Circle(msgspec.Struct, tag=True):
    radius: float


class Square(msgspec.Struct, tag=True):
    side: float


class Outer(msgspec.Struct, forbid_unknown_fields=True):
    inner: Inner | None = None
    by_name: dict[str, Inner] = {}
    several: list[Inner] = []
    tables: list[dict[str, int]] = []
    pair: tuple[Inner, int] | None = None
    shape: Circle | Square | None = None
    count: int = 1

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"count is {self.count}; it must be 1 or more")
        if self.count > 9:
            raise ValueError("too many of them")


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"inner": {"size": 1}},
        {"by_name": {"a": {"size": 1, "kind": "odd"}}},
        {"several": [{"size": 1}]},
        {"pair": [{"size": 1}, 2]},
        {"shape": {"type": "Square", "side": 1.5}},
    ],
)
def test_convert_reads_what_fits(data):
    assert convert(data, Outer, source="a.yaml") == msgspec.convert(data, Outer)


@pytest.mark.parametrize(
    ("data", "path", "text"),
    [
        ({"iner": {}}, "iner", "no field is named 'iner'."),
        ({"inner": {"size": 1, "sise": 2}}, "inner.sise", "no field is named 'sise' in inner."),
        ({"by_name": {"a.b": {"size": 1, "x": 2}}}, "by_name.a.b.x", "no field is named 'x' in by_name.a.b."),
        ({"several": [{"size": 1}, {"size": 1, "x": 2}]}, "several.1.x", "no field is named 'x' in several.1."),
        ({"pair": [{"size": 1, "x": 2}, 2]}, "pair.0.x", "no field is named 'x' in pair.0."),
        ({"inner": {}}, "inner.size", "inner.size is missing."),
        ({"inner": {"size": "1"}}, "inner.size", "inner.size: expected `int`, got `str`."),
        ({"inner": {"size": 1, "kind": "od"}}, "inner.kind", "inner.kind: invalid enum value 'od'."),
        ({"by_name": {"a": {"size": 1}, "b": {}}}, "by_name.b.size", "by_name.b.size is missing."),
        ({"by_name": {"a": {"size": 1}, "b": 3}}, "by_name.b", "by_name.b: expected `object`, got `int`."),
        ({"by_name": {"...": 3}}, "by_name....", "by_name....: expected `object`, got `int`."),
        ({"tables": [{}, {"a": 1, "b": "x"}]}, "tables.1.b", "tables.1.b: expected `int`, got `str`."),
        ({"several": [{"size": 1}, 2]}, "several.1", "several.1: expected `object`, got `int`."),
        ({"shape": {"type": "Oval"}}, "shape.type", "shape.type: invalid value 'Oval'."),
        ({"count": 0}, "count", "count is 0; it must be 1 or more."),
        ({"count": 10}, "", "a.yaml: too many of them."),
        ([], "", "a.yaml: expected `object`, got `array`."),
    ],
)
def test_convert_says_where_it_does_not_fit(data, path, text):
    with pytest.raises(SpecError) as caught:
        convert(data, Outer, source="a.yaml")
    assert (caught.value.path, caught.value.what, caught.value.file) == (path, text, "a.yaml")


def test_convert_names_what_there_is():
    with pytest.raises(SpecError) as caught:
        convert({"inner": {"size": 1, "kin": "odd"}}, Outer, source="a.yaml")
    assert caught.value.available == ("size", "kind")
    assert caught.value.hint == "kind?"
    with pytest.raises(SpecError) as caught:
        convert({"inner": {"size": 1, "kind": "x"}}, Outer, source="a.yaml")
    assert caught.value.available == ("'even'", "'odd'")


def test_convert_tells_the_line_of_the_value_or_of_what_holds_it():
    lines = {(): 1, ("inner",): 4, ("inner", "kind"): 5}
    with pytest.raises(SpecError) as caught:
        convert({"inner": {"size": "x"}}, Outer, source="a.yaml", lines=lines)
    assert (caught.value.line, caught.value.asked_by) == (4, "inner.size, line 4, a.yaml")
    with pytest.raises(SpecError) as caught:
        convert({"inner": {"size": 1, "kind": "x"}}, Outer, source="a.yaml", lines=lines)
    assert (caught.value.line, caught.value.asked_by) == (5, "inner.kind, line 5, a.yaml")


def test_convert_puts_the_path_under_which_the_data_stands_first():
    with pytest.raises(SpecError) as caught:
        convert({"size": "x"}, Inner, source="a.yaml", under="options.layers.0.mlp")
    assert caught.value.path == "options.layers.0.mlp.size"
    assert caught.value.what == "options.layers.0.mlp.size: expected `int`, got `str`."
