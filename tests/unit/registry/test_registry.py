"""Names to implementations."""

from __future__ import annotations

import logging
import re
import sys
import threading

import pytest
import transom
from transom.errors import (
    AmbiguousNameError,
    DuplicateNameError,
    PluginImportError,
    PolicyError,
    RegistryError,
    UnknownImplementationError,
    UnknownSlotError,
)
from transom.registry import registry as module
from transom.registry.registry import Registry, default_registry
from transom.registry.scan import Entry, Index, Problem
from transom.slots import SLOTS

SLOT_CODE = """
from transom.slots import Slot
from transom.slots.norm import Norm, NormBuilder, NormRequest
ROUTER = Slot("router", "architecture", (1, 0), "sends tokens", NormRequest, NormBuilder, Norm)
MISNAMED = Slot("other", "architecture", (1, 0), "sends tokens", NormRequest, NormBuilder, Norm)
"""


def _entry(name, distribution="acme-norm", slot="norm", version="1.0", value="acme_norm.parts:Fast"):
    return Entry(f"transom.{slot}", name, value, distribution, version, "/site")


CORE = _entry("torch_norm", "transom")


def _registry(*entries, problems=()):
    return Registry(Index(entries, tuple(problems)))


def _builder(config, hidden_size, eps):
    return None


@pytest.mark.parametrize("ref", ["fast", "acme-norm/fast", "Acme_Norm/fast"])
def test_get_finds_bare_and_qualified_names(ref):
    assert _registry(_entry("fast")).get("norm", ref).ref == "acme-norm/fast"


def test_get_gives_core_s_name_to_core_and_the_plugin_s_by_its_qualified_one():
    registry = _registry(_entry("torch_norm"), CORE)
    assert registry.get("norm", "torch_norm").ref == "transom/torch_norm"
    assert registry.get("norm", "acme-norm/torch_norm").ref == "acme-norm/torch_norm"


def test_get_raises_when_a_bare_name_is_several_distributions():
    registry = _registry(_entry("fast"), _entry("fast", "other-norm", version="3.1"), _entry("slow", "other-norm"))
    with pytest.raises(AmbiguousNameError, match=r"norm 'fast' is registered by 2 distributions\.") as caught:
        registry.get("norm", "fast", asked_by="use.norm")
    error = caught.value
    assert (error.slot, error.name, error.asked_by) == ("norm", "fast", "use.norm")
    assert error.candidates == ("acme-norm/fast", "other-norm/fast")
    assert error.available == ("acme-norm/fast (1.0)", "other-norm/fast (3.1)")
    assert error.hint == "write acme-norm/fast or other-norm/fast"
    assert registry.get("norm", "other-norm/fast").version == "3.1"
    assert registry.get("norm", "slow").ref == "other-norm/slow"


def test_get_says_what_an_unknown_name_may_have_meant():
    registry = _registry(
        CORE, _entry("fast"), _entry("twin"), _entry("twin", "b"), _entry("dot", "transom", "core_attention")
    )
    with pytest.raises(UnknownImplementationError) as caught:
        registry.get("norm", "torch_nrm", asked_by="use.norm in tiny.yaml")
    assert str(caught.value).splitlines() == [
        "no norm is named 'torch_nrm'.",
        "  Asked by:   use.norm in tiny.yaml",
        "  Available:  torch_norm (transom 1.0), fast (acme-norm 1.0), acme-norm/twin (1.0), b/twin (1.0)",
        "  Try:        torch_norm?   All: transom list norm",
    ]
    assert (caught.value.slot, caught.value.name) == ("norm", "torch_nrm")


def test_get_says_for_which_slot_a_name_is():
    registry = _registry(CORE, _entry("dot_product", "transom", "core_attention"))
    with pytest.raises(UnknownImplementationError, match=r"dot_product is for core_attention\."):
        registry.get("norm", "dot_product")


@pytest.mark.parametrize(
    ("ref", "what"),
    [
        ("acme-norm/slow", "acme-norm registers no norm named 'slow'."),
        ("absent/slow", "absent is not installed: no norm named 'slow'."),
        ("slow", "no norm is named 'slow'."),
    ],
)
def test_get_says_whether_the_distribution_or_the_name_is_missing(ref, what):
    with pytest.raises(UnknownImplementationError, match=re.escape(what)):
        _registry(CORE, _entry("fast")).get("norm", ref)


def test_get_says_what_failed_to_load(site):
    site.install("acme-norm", code="raise ImportError('libacme.so not found')")
    unreadable = Problem("metadata", "acme-attn", "/site/acme_attn", "cannot be read")
    shadowed = Problem("shadowed", "acme-x", "/site/acme_x", "is hidden by another copy")
    registry = _registry(CORE, _entry("fast"), problems=[unreadable, shadowed])
    with pytest.raises(PluginImportError):
        registry.get("norm", "fast").load()
    with pytest.raises(UnknownImplementationError) as caught:
        registry.get("norm", "zzz")
    assert caught.value.failed == (
        "fast (acme-norm 1.0): it cannot be imported: ImportError: libacme.so not found",
        "acme-attn: cannot be read (/site/acme_attn)",
    )


def test_get_says_when_core_itself_is_not_installed():
    with pytest.raises(UnknownImplementationError, match="Core itself is not installed as a distribution here"):
        _registry(_entry("fast")).get("norm", "torch_norm")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("nrm", "norm?   All: transom list"),
        ("linear", "it stands for several slots: column_linear, row_linear"),
        ("zzz", "All: transom list"),
        ("hooks", "All: transom list"),
    ],
)
@pytest.mark.parametrize("ask", ["get", "slot", "implementations", "register"])
def test_registry_refuses_an_unknown_slot(name, hint, ask):
    registry = _registry(CORE)
    arguments = {"get": ("fast",), "register": ("fast", _builder)}.get(ask, ())
    if (ask, name) == ("implementations", "linear"):
        assert registry.implementations("linear") == ()
        return
    with pytest.raises(UnknownSlotError, match=f"no slot is named {name!r}.") as caught:
        getattr(registry, ask)(name, *arguments)
    assert (caught.value.slot, caught.value.hint) == (name, hint)
    assert caught.value.available == (*SLOTS, "linear")


def test_implementations_lists_by_slot():
    registry = _registry(
        CORE,
        _entry("a", slot="row_linear"),
        _entry("a", slot="column_linear"),
        _entry("fast"),
    )
    assert [c.name for c in registry.implementations("norm")] == ["torch_norm", "fast"]
    assert [c.slot for c in registry.implementations("linear")] == ["column_linear", "row_linear"]
    assert [c.slot for c in registry.implementations()] == ["column_linear", "row_linear", "norm", "norm"]


def test_slots_are_core_s():
    slots = _registry().slots
    assert dict(slots) == dict(SLOTS)
    assert len(slots) == len(SLOTS)
    assert "norm" in slots
    assert slots.get("zzz") is None


def test_slot_of_a_plugin_is_listed_without_import_and_imported_when_asked_for(site):
    site.install("acme-router", {"slots": {"router": "ROUTER"}, "router": {"top2": "Top2"}}, code=SLOT_CODE)
    registry = Registry()
    assert "router" in registry.slots
    assert len(registry.slots) == len(SLOTS) + 1
    assert list(registry.slots)[-1] == "router"
    assert [c.ref for c in registry.implementations("router")] == ["acme-router/top2"]
    assert registry.get("router", "top2").value == "acme_router.parts:Top2"
    assert "acme_router" not in sys.modules
    assert registry.slot("router") is sys.modules["acme_router.parts"].ROUTER
    assert registry.slots["router"] is registry.slot("router")
    registry.register("router", "mine", _builder)
    assert registry.get("router", "mine").load() is _builder


@pytest.mark.parametrize(
    ("attribute", "what"),
    [
        ("MISNAMED", "is wrong: acme_router.parts:MISNAMED is a slot named 'other'."),
        ("Norm", "is wrong: acme_router.parts:Norm is of type _ProtocolMeta, not a Slot."),
        ("GONE", "cannot be imported: AttributeError"),
    ],
)
def test_slot_of_a_plugin_must_be_a_slot_of_that_name(site, attribute, what):
    site.install("acme-router", {"slots": {"router": attribute}}, code=SLOT_CODE)
    with pytest.raises(PluginImportError, match=re.escape(f"the slot router (acme-router 1.0) {what}")) as caught:
        Registry().slot("router")
    assert (caught.value.slot, caught.value.name) == ("router", "router")
    assert caught.value.reason.startswith("it ")


def test_slot_of_a_plugin_is_not_imported_against_the_policy(site, monkeypatch):
    site.install("acme-router", {"slots": {"router": "ROUTER"}}, code=SLOT_CODE)
    monkeypatch.setenv("TRANSOM_PLUGINS_DENY", "acme-*")
    what = "the slot router (acme-router 1.0) may not be imported: TRANSOM_PLUGINS_DENY has 'acme-*'."
    with pytest.raises(PolicyError, match=re.escape(what)) as caught:
        Registry().slot("router")
    assert caught.value.distribution == "acme-router"
    assert "acme_router" not in sys.modules


def test_slot_that_two_plugins_define_is_nobody_s():
    registry = _registry(_entry("router", "a", "slots"), _entry("router", "b", "slots", "2.0"))
    with pytest.raises(AmbiguousNameError, match=r"a slot 'router' is defined by 2 distributions\.") as caught:
        registry.slot("router", asked_by="use.router")
    assert caught.value.candidates == caught.value.available == ("a 1.0", "b 2.0")
    assert (caught.value.slot, caught.value.name, caught.value.hint) == ("router", "router", "uninstall all but one")


def test_register_makes_a_name_available():
    registry = _registry(CORE)
    made = registry.register("norm", "mine", _builder)
    assert registry.get("norm", "mine") is registry.get("norm", "registered/mine") is made
    assert made.load() is _builder
    assert made.value == f"{__name__}:_builder"
    assert [c.name for c in registry.implementations("norm")] == ["torch_norm", "mine"]


@pytest.mark.parametrize("name", ["torch_norm", "fast", "mine"])
def test_register_refuses_a_name_that_is_taken(name):
    registry = _registry(CORE, _entry("fast"))
    registry.register("norm", "mine", _builder)
    before = registry.get("norm", name)
    with pytest.raises(DuplicateNameError, match=f"norm '{name}' is taken.") as caught:
        registry.register("norm", name, _builder)
    assert (caught.value.slot, caught.value.name, caught.value.available) == ("norm", name, (before.label,))
    assert caught.value.hint == "replace=True, or another name"
    assert registry.get("norm", name) is before


def test_register_replaces_when_told_to_and_leaves_the_qualified_name():
    registry = _registry(CORE)
    registry.register("norm", "torch_norm", _builder, replace=True)
    assert registry.get("norm", "torch_norm").load() is _builder
    assert registry.get("norm", "transom/torch_norm").value == CORE.value


@pytest.mark.parametrize("name", ["auto", "a b", "a/b", ""])
def test_register_refuses_a_name_that_cannot_be_asked_for(name):
    with pytest.raises(RegistryError, match=re.escape(f"{name!r} cannot be a name.")) as caught:
        _registry().register("norm", name, _builder)
    assert (caught.value.slot, caught.value.name) == ("norm", name)


def test_register_refuses_a_builder_that_callers_cannot_call():
    what = (
        "norm 'mine' cannot be registered: the builder does not accept `eps`; requires `epsilon`, which callers do not"
    )
    with pytest.raises(RegistryError, match=re.escape(what)) as caught:
        _registry().register("norm", "mine", lambda config, hidden_size, epsilon: None)
    assert caught.value.complaints == ("does not accept `eps`", "requires `epsilon`, which callers do not pass")
    assert caught.value.hint == "see the contract, transom.slots.norm.NormBuilder"
    assert (caught.value.slot, caught.value.name) == ("norm", "mine")


def test_override_lasts_as_long_as_its_block():
    registry = _registry(CORE)
    registry.register("norm", "mine", _builder)
    with registry.override("norm", "torch_norm", _builder) as made, registry.override("norm", "mine", print_norm):
        assert registry.get("norm", "torch_norm") is made
        assert registry.get("norm", "mine").load() is print_norm
    assert registry.get("norm", "torch_norm").is_core
    assert registry.get("norm", "mine").load() is _builder


def test_override_ends_when_its_block_raises():
    registry = _registry(CORE)
    with pytest.raises(ZeroDivisionError), registry.override("norm", "torch_norm", _builder):
        raise ZeroDivisionError
    assert registry.get("norm", "torch_norm").is_core


def test_override_changes_nothing_when_the_builder_does_not_fit():
    registry = _registry(CORE)
    with (
        pytest.raises(RegistryError, match="does not accept `hidden_size`"),
        registry.override("norm", "torch_norm", len),
    ):
        raise AssertionError("the block must not be entered")
    assert registry.get("norm", "torch_norm").is_core


def print_norm(config, hidden_size, eps):
    return None


def test_problems_gathers_metadata_names_cards_and_imports(site, make_card):
    site.install("acme-norm", {"norm": {"fast": "Fast"}}, card=make_card("norm.slow"), code="raise OSError('disk')")
    site.install("acme-bad", "[transom.norm]\nbad\n")
    site.install("acme-twin", {"norm": {"torch_norm": "Fast"}})
    registry = Registry()
    with pytest.raises(PluginImportError):
        registry.get("norm", "fast").load()
    mine = [p for p in registry.problems() if p.distribution.startswith("acme")]
    assert [(p.kind, p.distribution) for p in mine] == [
        ("entry point", "acme-bad"),
        ("name", "acme-twin"),
        ("card", "acme-norm"),
        ("card", "acme-norm"),
        ("import", "acme-norm"),
    ]
    assert mine[-1].what == "norm fast (acme-norm 1.0) cannot be imported: OSError: disk"
    assert mine[-1].where == "norm fast"
    assert 'parts.py", line 1' in mine[-1].traceback


def test_tell_once_logs_a_message_once(caplog):
    registry = _registry()
    with caplog.at_level(logging.INFO, "transom"):
        registry.tell_once(logging.INFO, "100% new")
        registry.tell_once(logging.INFO, "100% new")
        registry.tell_once(logging.WARNING, "other")
    assert [(r.levelno, r.getMessage()) for r in caplog.records] == [
        (logging.INFO, "100% new"),
        (logging.WARNING, "other"),
    ]


def test_registry_scans_once_and_only_when_asked(monkeypatch):
    scans = []
    monkeypatch.setattr(module, "scan", lambda: scans.append(1) or Index((CORE,)))
    registry = Registry()
    assert scans == []
    threads = [threading.Thread(target=registry.get, args=("norm", "torch_norm")) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    registry.implementations()
    assert scans == [1]


def test_registry_serves_many_threads_at_once():
    registry = _registry(CORE)
    errors: list[BaseException] = []

    def work(number):
        try:
            for turn in range(50):
                registry.register("norm", f"n{number}_{turn}", _builder)
                with registry.override("norm", f"o{number}", _builder):
                    assert registry.get("norm", f"o{number}").load() is _builder
                registry.implementations("norm")
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(registry.implementations("norm")) == 1 + 8 * 50


def test_module_functions_act_on_the_default_registry(monkeypatch):
    fresh = _registry(CORE)
    monkeypatch.setattr(module, "_DEFAULT", fresh)
    assert default_registry() is fresh
    assert [c.ref for c in transom.list_implementations("norm")] == ["transom/torch_norm"]
    made = transom.register("norm", "mine", _builder)
    assert fresh.get("norm", "mine") is made
    with transom.override("norm", "torch_norm", print_norm):
        assert fresh.get("norm", "torch_norm").load() is print_norm
    assert transom.register("norm", "mine", print_norm, replace=True).load() is print_norm
