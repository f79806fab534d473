"""Maps turn tensors by rules, lazily, and back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pytest
import torch
from torch import Tensor
from transom.checkpoint.layout_map import LayoutMap, Rule, fill
from transom.checkpoint.layout_operations import Add, Concat, Interleave, Reverse, Split, Stack, Transpose
from transom.errors import CheckpointError

RULES = [
    Rule("wte", "embedding"),
    Rule("h.{layer}.qkv", "layers.{layer}.qkv", Transpose(), Split(3), Interleave(2, (1, 1, 1))),
    Rule(["h.{layer}.gate", "h.{layer}.up"], "layers.{layer}.fc1", Concat(2)),
    Rule("experts", "layers.{layer}.expert", Reverse(Stack(2))),
]


def theirs() -> dict[str, Tensor]:
    found = {"wte": torch.randn(5, 2), "experts": torch.randn(2, 3)}
    for i in range(2):
        found |= {f"h.{i}.qkv": torch.randn(2, 12), f"h.{i}.gate": torch.randn(3, 2), f"h.{i}.up": torch.randn(3, 2)}
    return found


class Watched(Mapping[str, Tensor]):
    """Tensors that tell which of them were looked up."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors, self.seen = tensors, []

    def __getitem__(self, name: str) -> Tensor:
        self.seen.append(name)
        return self.tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def __contains__(self, name: object) -> bool:
        return name in self.tensors


def test_map_names_what_it_makes_in_the_order_of_its_rules() -> None:
    found = LayoutMap(RULES, {"layer": 2}).forward(theirs())
    assert list(found) == [
        "embedding",
        "layers.0.qkv",
        "layers.1.qkv",
        "layers.0.fc1",
        "layers.1.fc1",
        "layers.0.expert",
        "layers.1.expert",
    ]
    assert len(found) == 7


def test_map_is_undone_bit_for_bit() -> None:
    layout, before = LayoutMap(RULES, {"layer": 2}), theirs()
    after = layout.backward(layout.forward(before))
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_map_makes_tensors_when_they_are_looked_up_and_those_of_one_rule_once() -> None:
    watched = Watched({"whole": torch.arange(4)})
    found = LayoutMap([Rule("whole", ["first", "second"], Split(2))]).forward(watched)
    assert set(found) == {"first", "second"}
    assert "first" in found
    assert watched.seen == []
    assert [found["first"].tolist(), found["second"].tolist()] == [[0, 1], [2, 3]]
    assert watched.seen == ["whole"]


def test_map_passes_what_no_rule_names() -> None:
    other = torch.ones(1)
    found = LayoutMap(RULES, {"layer": 2}).forward(theirs() | {"other": other})
    assert found["other"] is other


def test_map_makes_nothing_of_a_part_of_what_a_rule_needs() -> None:
    found = LayoutMap(RULES, {"layer": 2}).forward({"h.0.gate": torch.ones(3, 2)})
    assert list(found) == ["h.0.gate"]
    with pytest.raises(KeyError):
        found["layers.0.fc1"]


def test_maps_compose() -> None:
    first = LayoutMap([Rule("a", "b", Transpose())])
    second = LayoutMap([Rule("b", ["c", "d"], Split(2))])
    tensor = torch.randn(3, 4)
    found = second.forward(first.forward({"a": tensor}))
    assert torch.equal(found["d"], tensor.T[2:])
    assert torch.equal(first.backward(second.backward(found))["a"], tensor)


def test_prefixed_puts_names_below_a_module() -> None:
    layout = LayoutMap([Rule(["gate", "up"], "fc1", Concat(2))]).prefixed("mlp.")
    assert set(layout.forward({"mlp.gate": torch.ones(1), "mlp.up": torch.ones(1)})) == {"mlp.fc1"}
    assert set(LayoutMap([Rule("a", "b")]).prefixed("x.", "y.").forward({"x.a": torch.ones(1)})) == {"y.b"}


def test_of_moments_adds_no_constants() -> None:
    layout = LayoutMap([Rule("gamma", "weight", Add(1), Transpose())])
    moments = torch.randn(2, 3)
    assert torch.equal(layout.of_moments().forward({"gamma": moments})["weight"], moments.T)
    assert torch.equal(layout.forward({"gamma": moments})["weight"], (moments + 1).T)


def test_map_runs_on_outlines() -> None:
    outlines = {name: tensor.to("meta") for name, tensor in theirs().items()}
    found = LayoutMap(RULES, {"layer": 2}).forward(outlines)
    assert found["layers.1.qkv"].is_meta
    assert found["layers.1.qkv"].shape == (12, 2)


def test_map_says_which_tensors_do_not_fit() -> None:
    found = LayoutMap([Rule(["gate", "up"], "fc1", Concat(2))]).forward({"gate": torch.ones(2, 3), "up": torch.ones(2)})
    with pytest.raises(CheckpointError, match=r"^fc1 cannot be made of gate \[2, 3\], up \[2\]: ") as caught:
        found["fc1"]
    assert caught.value.names == ("fc1",)


def test_map_says_when_operations_give_another_number_of_tensors() -> None:
    found = LayoutMap([Rule("whole", ["a", "b", "c"], Split(2))]).forward({"whole": torch.ones(4)})
    with pytest.raises(CheckpointError, match="2 tensors come out, and 3 are named"):
        found["a"]


@pytest.mark.parametrize("turn", [lambda tensors: tensors, lambda tensors: LayoutMap([]).forward(tensors)])
def test_fill_puts_what_a_lookup_gives_into_any_place(turn) -> None:
    layout, given = LayoutMap(RULES, {"layer": 2}), theirs()
    forward = layout.forward(given)
    backward = layout.backward({name: forward[name] for name in forward})
    for turned in (given, forward, backward):
        for name in turned:
            place = torch.zeros_like(turned[name], dtype=torch.float64)
            fill(place, turn(turned), name)
            assert torch.equal(place, turned[name].double())


def test_fill_refuses_parts_that_do_not_fill_their_place() -> None:
    layout = LayoutMap([Rule(["a", "b"], "ab", Concat(2))])
    wrong = "ab cannot be made of a [1, 2], b [3, 2]: [1, 2] does not fill a place of [2, 2]."
    with pytest.raises(CheckpointError) as caught:
        fill(torch.zeros(4, 2), layout.forward({"a": torch.ones(1, 2), "b": torch.ones(3, 2)}), "ab")
    assert caught.value.what == wrong
    assert caught.value.names == ("ab",)


class Joined:
    """An operation of somebody's own, which says where its parts go."""

    def forward(self, tensors: list[Tensor]) -> list[Tensor]:
        return [torch.cat(tensors)]

    def backward(self, tensors: list[Tensor]) -> list[Tensor]:
        return list(tensors[0].chunk(2))

    def fill(self, place: Tensor, tensors: list[Tensor]) -> list[Tensor]:
        for part, tensor in zip(place.chunk(2), tensors, strict=True):
            part.copy_(tensor)
        return [place]


def test_fill_asks_the_last_operation_whoever_wrote_it(monkeypatch) -> None:
    layout, place = LayoutMap([Rule(["a", "b"], "ab", Transpose(), Joined())]), torch.zeros(4, 3)
    canonical = layout.forward({"a": torch.arange(6.0).view(3, 2), "b": torch.ones(3, 2)})
    expected = canonical["ab"]
    monkeypatch.setattr(torch, "cat", None)  # which would take memory
    fill(place, canonical, "ab")
    assert torch.equal(place, expected)
