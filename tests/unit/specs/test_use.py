"""Which entry of `use` speaks of which node."""

from __future__ import annotations

import pytest
from transom.errors import SpecError, UnknownSlotError
from transom.slots import SLOTS
from transom.specs.use import Assignments, Layer, Rules, named

NODES = [
    ("", "model"),
    ("embedding.word_embeddings", "embedding"),
    ("layers.0", "layer"),
    ("layers.0.mlp", "mlp"),
    ("layers.0.mlp.linear_fc1", "column_linear"),
    ("layers.0.mlp.linear_fc2", "row_linear"),
    ("layers.1.mlp", "mlp"),
    ("layers.1.mlp.linear_fc1", "column_linear"),
    ("layers.10.mlp", "mlp"),
    ("final_layernorm", "norm"),
]


def rules(*layers: dict[str, str]) -> Rules[str]:
    return Rules(
        "use", [Layer(entries, name) for entries, name in zip(layers, ("a.yaml", "the call"), strict=False)], SLOTS
    )


@pytest.mark.parametrize(
    ("entries", "path", "slot", "value"),
    [
        ({"mlp": "x"}, "layers.0.mlp", "mlp", "x"),
        ({"mlp": "x"}, "layers.0", "layer", None),
        ({"linear": "x"}, "layers.0.mlp.linear_fc1", "column_linear", "x"),
        ({"linear": "x"}, "layers.0.mlp.linear_fc2", "row_linear", "x"),
        ({"linear": "x", "row_linear": "y"}, "layers.0.mlp.linear_fc2", "row_linear", "y"),
        ({"mlp": "x", "layers.0.mlp": "y"}, "layers.0.mlp", "mlp", "y"),
        ({"mlp": "x", "layers.0.mlp": "y"}, "layers.10.mlp", "mlp", "x"),
        ({"layers.*.mlp": "x"}, "layers.10.mlp", "mlp", "x"),
        ({"layers.*.mlp": "x", "layers.1.mlp": "y"}, "layers.1.mlp", "mlp", "y"),
        ({"layers.1?.mlp": "x"}, "layers.10.mlp", "mlp", "x"),
        ({"layers.1?.mlp": "x"}, "layers.1.mlp", "mlp", None),
        ({"layers.*": "x"}, "layers.0.mlp", "mlp", None),
        ({"layers.**": "x"}, "layers.0.mlp", "mlp", "x"),
        ({"layers.**": "x"}, "layers.0", "layer", "x"),
        ({"**.linear_fc1": "x"}, "layers.0.mlp.linear_fc1", "column_linear", "x"),
        ({"**.linear_*": "x", "layers.**.linear_fc1": "y"}, "layers.0.mlp.linear_fc1", "column_linear", "y"),
        ({"final_layernorm": "x", "norm": "y"}, "final_layernorm", "norm", "x"),
    ],
)
def test_find_takes_the_most_specific_entry(entries: dict[str, str], path: str, slot: str, value: str | None) -> None:
    rule = rules(entries).find(path, slot)
    assert (rule.value if rule else None) == value


def test_find_prefers_the_calls_entry_at_equal_specificity() -> None:
    both = rules({"mlp": "spec", "layers.0.mlp": "exact"}, {"mlp": "call"})
    assert both.find("layers.1.mlp", "mlp").value == "call"
    assert both.find("layers.0.mlp", "mlp").value == "exact"


def test_find_prefers_the_calls_alias_over_the_specs_alias() -> None:
    assert rules({"linear": "spec"}, {"linear": "call"}).find("x", "row_linear").value == "call"


def test_find_refuses_equally_specific_entries_that_differ() -> None:
    clash = rules({"layers.*.mlp": "x", "layers.0.*": "y"})
    with pytest.raises(SpecError) as caught:
        clash.find("layers.0.mlp", "mlp")
    text = str(caught.value)
    assert "two entries of use are equally specific for layers.0.mlp" in text
    assert "use.layers.*.mlp in a.yaml: x" in text
    assert "use.layers.0.* in a.yaml: y" in text


def test_find_shows_both_lines_of_entries_that_contradict_each_other() -> None:
    layer = Layer({"layers.*.mlp": "x", "layers.0.*": "y"}, "a.yaml", lines={"layers.*.mlp": 7, "layers.0.*": 9})
    with pytest.raises(SpecError) as caught:
        Rules("use", [layer], SLOTS).find("layers.0.mlp", "mlp")
    assert caught.value.failed == ("use.layers.*.mlp in a.yaml, line 7: x", "use.layers.0.* in a.yaml, line 9: y")
    assert (caught.value.file, caught.value.line) == ("a.yaml", 7)


def test_assignments_are_named_as_they_were_given() -> None:
    given = Assignments({"layers.7.mlp": "a | b"})
    assert named(given, "the call") == {"layers.7.mlp": "--use layers.7.mlp=a | b"}
    with pytest.raises(SpecError, match=r"nothing is at .layers\.7\.mlp.") as caught:
        walk(Rules("use", [Layer(given, "the call", named(given, "the call"))], SLOTS))
    assert caught.value.asked_by == "--use layers.7.mlp=a | b"


def test_find_accepts_equally_specific_entries_that_agree() -> None:
    assert rules({"layers.*.mlp": "x", "layers.0.*": "x"}).find("layers.0.mlp", "mlp").value == "x"


def walk(these: Rules[str]) -> None:
    for path, slot in NODES:
        these.find(path, slot)
    these.check_all_matched(NODES)


@pytest.mark.parametrize(
    "pattern", ["mlp", "linear", "layers.0.mlp", "layers.*.mlp", "**.linear_fc1", "final_layernorm"]
)
def test_check_all_matched_accepts_entries_that_spoke(pattern: str) -> None:
    walk(rules({pattern: "x"}))


def test_check_all_matched_names_the_nearest_path() -> None:
    with pytest.raises(SpecError) as caught:
        walk(rules({"layers.7.mlp": "x"}))
    assert "nothing is at 'layers.7.mlp', so use.layers.7.mlp would have no effect" in str(caught.value)
    assert "layers.0.mlp" in caught.value.available


def test_check_all_matched_refuses_a_slot_that_the_model_does_not_have() -> None:
    with pytest.raises(SpecError) as caught:
        walk(rules({"activation": "x"}))
    assert "no part of the model is in slot 'activation'" in str(caught.value)
    assert "use_te_activation_func" in caught.value.hint


def test_check_all_matched_takes_a_single_word_for_a_slot() -> None:
    with pytest.raises(UnknownSlotError) as caught:
        walk(rules({"core_atention": "x"}))
    assert caught.value.slot == "core_atention"
    assert caught.value.hint == "core_attention?"
    assert "core_attention" in caught.value.available


@pytest.mark.parametrize(
    ("pattern", "path", "fits"),
    [
        ("layers.0.0", "layers.0.0", True),
        ("**.**.mlp", "mlp", True),
        ("**.**", "layers.0", True),
        ("**", "mlp", True),
        ("a**b", "axxb", True),
        ("*a*a*", "banana", True),
        ("*a*ab", "bananab", True),
        ("a*a", "a", False),
        ("layers.[0].mlp", "layers.0.mlp", False),
    ],
)
def test_matches_reads_a_glob(pattern: str, path: str, fits: bool) -> None:
    assert (rules({pattern: "x"}).find(path, "other") is not None) == fits


def test_matches_takes_no_time_for_many_stars() -> None:
    hard = rules({"*a" * 40 + "b": "x", ".".join(["**", "*"] * 40): "x"})
    assert hard.find("a" * 60, "other") is None


def test_find_holds_an_entry_of_an_implementation_where_that_is_chosen() -> None:
    made = Rules("options", [Layer({"mlp": 1, "mlp/fast": 2, "layers.*.mlp/acme/slow": 3}, "here")], SLOTS)
    asked = ("fast", "slow")
    assert made.find("layers.0.mlp", "mlp", asked=asked, chosen=("fast", "acme/fast")).value == 2
    assert made.find("layers.0.mlp", "mlp", asked=asked, chosen=("slow", "acme/slow")).value == 3
    assert made.find("layers.0.mlp", "mlp", asked=asked, chosen=("mlp", "transom/mlp")).value == 1
    made.check_all_matched([("layers.0.mlp", "mlp")])


def test_check_all_matched_takes_an_entry_for_an_implementation_that_was_asked_for_and_refused() -> None:
    made = Rules("options", [Layer({"mlp/fast": 1}, "here")], SLOTS)
    assert made.find("layers.0.mlp", "mlp", asked=("fast", "mlp"), chosen=("mlp", "transom/mlp")) is None
    made.check_all_matched([("layers.0.mlp", "mlp")])


def test_check_all_matched_refuses_an_entry_for_an_implementation_that_nobody_asks_for() -> None:
    made = Rules("options", [Layer({"mlp/fats": 1}, "here")], SLOTS)
    made.find("layers.0.mlp", "mlp", asked=("fast",), chosen=("fast", "acme/fast"))
    with pytest.raises(SpecError) as caught:
        made.check_all_matched([("layers.0.mlp", "mlp")])
    assert "nothing at 'mlp' is asked to be 'fats', so options.mlp/fats would have no effect" in str(caught.value)
