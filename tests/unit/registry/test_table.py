"""An index sorted by slot and name."""

from __future__ import annotations

from transom.registry.scan import Entry, Index, Problem
from transom.registry.table import Table
from transom.slots import SLOTS


def _entry(name, distribution="acme-norm", slot="norm"):
    return Entry(f"transom.{slot}", name, "acme.parts:Fast", distribution, "1.0", "/site")


def _table(*entries, problems=()):
    return Table.of(Index(entries, problems))


def test_table_has_every_slot_even_without_implementations():
    assert set(_table().implementations) == set(SLOTS)


def test_table_puts_core_first_then_names_in_order():
    table = _table(_entry("b"), _entry("a"), _entry("z", "transom"), _entry("b", "acme-attn"))
    assert [[c.ref for c in found] for found in table.implementations["norm"].values()] == [
        ["transom/z"],
        ["acme-norm/a"],
        ["acme-attn/b", "acme-norm/b"],
    ]


def test_table_notes_names_that_several_distributions_have():
    table = _table(_entry("b"), _entry("b", "acme-attn"), _entry("only"))
    assert table.problems == (
        Problem("name", "acme-norm", "[transom.norm] b", "shares its name, use it as acme-norm/b"),
        Problem("name", "acme-attn", "[transom.norm] b", "shares its name, use it as acme-attn/b"),
    )


def test_table_does_not_blame_core_for_a_name_that_a_plugin_takes():
    table = _table(_entry("torch_norm", "transom"), _entry("torch_norm"))
    assert [c.ref for c in table.implementations["norm"]["torch_norm"]] == [
        "transom/torch_norm",
        "acme-norm/torch_norm",
    ]
    assert [(p.kind, p.distribution) for p in table.problems] == [("name", "acme-norm")]


def test_table_notes_a_slot_that_does_not_exist():
    table = _table(_entry("a", slot="nrm"), _entry("b", slot="quite_other"))
    assert [p.what for p in table.problems] == [
        "registers 'a' for a slot that does not exist, 'nrm'; 'norm' was meant?",
        "registers 'b' for a slot that does not exist, 'quite_other'",
    ]


def test_table_knows_the_slots_of_plugins():
    router = _entry("router", slot="slots")
    table = _table(router, _entry("top2", slot="router"))
    assert table.slots == {"router": (router,)}
    assert [c.ref for c in table.implementations["router"]["top2"]] == ["acme-norm/top2"]
    assert table.problems == ()


def test_table_ignores_a_plugin_s_slot_with_a_name_that_is_taken():
    table = _table(*(_entry(name, slot="slots") for name in ("norm", "linear", "hooks")))
    assert table.slots == {}
    assert [p.what for p in table.problems] == [
        f"defines a slot {name!r}, a name that core has taken; it is ignored" for name in ("norm", "linear", "hooks")
    ]


def test_table_leaves_hooks_and_bundles_alone():
    table = _table(_entry("lora", slot="hooks"), _entry("fast", slot="bundles"))
    assert table.problems == ()
    assert set(table.implementations) == set(SLOTS)


def test_table_keeps_the_problems_of_the_index():
    problem = Problem("metadata", "x", "y", "z")
    assert _table(problems=(problem,)).problems == (problem,)
