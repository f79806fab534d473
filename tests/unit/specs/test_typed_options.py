"""Options as somebody wrote them, made a plugin's own."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec
import pytest
from transom.errors import PluginImportError, SpecError
from transom.specs.typed_options import Written, typed_options


@dataclass(frozen=True)
class Rank:
    rank: int
    places: list[str] = field(default_factory=lambda: ["mlp"])


class Scale(msgspec.Struct):
    by: float = 1.0


class Plain: ...


def _read(declared, data, lines=None):
    written = Written(data, "options.layers.*.mlp", "options.layers.*.mlp in a.yaml", "a.yaml")
    written = written.at(("options", "layers.*.mlp"), lines or {})
    return typed_options(declared, written, "acme/lora", slot="mlp", name="acme/lora")


def test_typed_options_are_of_the_plugin_s_own_type():
    assert _read(Rank, {"rank": 8}) == Rank(8, ["mlp"])
    assert _read(Scale, {"by": 2}) == Scale(by=2.0)
    assert _read(Scale, {}) == Scale()


@pytest.mark.parametrize(
    ("data", "path", "what"),
    [
        ({"rank": "8"}, "rank", "options.layers.*.mlp.rank: expected `int`, got `str`."),
        ({"rnk": 8}, "rnk", "no field is named 'rnk' in options.layers.*.mlp."),
        ({}, "rank", "options.layers.*.mlp.rank is missing."),
        ({"rank": 8, "places": [1]}, "places.0", "options.layers.*.mlp.places.0: expected `str`, got `int`."),
    ],
)
def test_typed_options_tell_the_path_of_what_is_wrong(data, path, what):
    with pytest.raises(SpecError) as caught:
        _read(Rank, data)
    assert caught.value.what == f"options of acme/lora: {what}"
    assert caught.value.path == f"options.layers.*.mlp.{path}"
    assert (caught.value.file, caught.value.line) == ("a.yaml", None)
    assert caught.value.asked_by == "options.layers.*.mlp in a.yaml"


def test_typed_options_tell_the_line_where_it_is_known():
    lines = {("options",): 3, ("options", "layers.*.mlp"): 4, ("options", "layers.*.mlp", "rank"): 5, ("use",): 9}
    with pytest.raises(SpecError) as caught:
        _read(Rank, {"rank": "8"}, lines)
    assert (caught.value.line, caught.value.asked_by) == (5, "options.layers.*.mlp.rank, line 5, a.yaml")
    with pytest.raises(SpecError) as caught:
        _read(Rank, {"rnk": 8}, lines)
    assert caught.value.line == 4


def test_options_for_what_takes_none_are_refused():
    with pytest.raises(SpecError, match=r"^acme/lora takes no options\.") as caught:
        _read(None, {"rank": 8}, {("options", "layers.*.mlp"): 4})
    assert (caught.value.path, caught.value.line) == ("options.layers.*.mlp", 4)
    assert caught.value.hint == "remove the entry, or name one that does"


@pytest.mark.parametrize(
    ("declared", "why"), [(Plain, "Plain is neither a dataclass nor a msgspec.Struct"), (3, "issubclass")]
)
def test_options_that_cannot_be_made_of_data_are_the_plugin_s_fault(declared, why):
    with pytest.raises(PluginImportError, match="the options of acme/lora cannot be read: ") as caught:
        _read(declared, {"rank": 8})
    assert why in caught.value.reason
    assert (caught.value.slot, caught.value.name, caught.value.hint) == ("mlp", "acme/lora", "report it to its authors")
