"""One implementation: data until it is asked for its builder."""

from __future__ import annotations

import pickle
import re
import sys

import pytest
from transom.errors import CardError, PluginImportError
from transom.registry.implementation import Implementation, import_object
from transom.registry.registry import default_registry
from transom.slots import SLOTS


def _implementation(value="acme_norm.parts:Fast", slot="norm"):
    return Implementation(slot, "fast", "acme-norm", "2.0", value)


def test_implementation_names_itself():
    plugin = _implementation("acme_norm.parts : Fast")
    assert (plugin.ref, plugin.label, plugin.module) == ("acme-norm/fast", "fast (acme-norm 2.0)", "acme_norm.parts")
    assert not plugin.is_core
    registered = Implementation("norm", "mine", "registered", "", "x:y", print)
    assert (registered.ref, registered.label) == ("registered/mine", "mine (registered)")
    assert not registered.is_core
    assert Implementation("norm", "a", "Transom", "1", "x:y").is_core
    assert not Implementation("norm", "a", "transom", "1", "x:y", print).is_core


def test_card_is_the_section_of_slot_and_name(site, make_card):
    site.install("acme-norm", card=make_card("norm.fast", api="1.7"))
    assert _implementation().card.api == "1.7"
    assert _implementation(slot="loss").card is None
    assert _implementation().card_error is None
    assert _implementation().card_file == site.root / "acme_norm" / "transom.toml"


def test_card_is_none_where_there_is_no_file(site):
    site.install("acme-norm")
    assert (_implementation().card, _implementation().card_error, _implementation().card_file) == (None, None, None)
    registered = Implementation("norm", "torch_norm", "registered", "", "transom.transformer.norm:TorchNorm", print)
    assert (registered.card, registered.card_file) == (None, None)


def test_card_error_is_kept_and_not_raised(site):
    site.install("acme-norm", card="card = 3")
    plugin = _implementation()
    assert plugin.card is None
    assert isinstance(plugin.card_error, CardError)
    assert plugin.card_error.distribution == "acme-norm"


def test_load_gives_what_the_entry_point_refers_to(site):
    site.install("acme-norm", code="class Outer:\n    class Inner: pass")
    plugin = _implementation("acme_norm.parts:Outer.Inner [extra]")
    assert plugin.failure is None
    assert plugin.load() is sys.modules["acme_norm.parts"].Outer.Inner
    assert plugin.load() is plugin.load()
    assert plugin.failure is None


def test_load_gives_the_registered_builder_without_importing():
    assert Implementation("norm", "mine", "registered", "", "nowhere:nothing", print).load() is print


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import libacme_missing", "ModuleNotFoundError: No module named 'libacme_missing'"),
        ("raise ImportError('libacme.so not found')", "ImportError: libacme.so not found"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("raise GeneratorExit", "GeneratorExit: "),
        ("1 +", "SyntaxError: invalid syntax (parts.py, line 1)"),
        ("x = 1", "AttributeError: module 'acme_norm.parts' has no attribute 'Fast'"),
        ("class E(Exception):\n    def __str__(self): raise ValueError\nraise E", "E"),
    ],
)
def test_load_wraps_whatever_an_import_raises(site, code, reason):
    site.install("acme-norm", code=code)
    plugin = _implementation()
    what = f"norm fast (acme-norm 2.0) cannot be imported: {reason}"
    with pytest.raises(PluginImportError, match=f"^{re.escape(what)}") as caught:
        plugin.load()
    error = caught.value
    assert (error.slot, error.name, error.asked_by) == ("norm", "fast", "acme_norm.parts:Fast")
    assert error.reason == f"it cannot be imported: {reason}"
    assert type(error.__cause__).__name__ == reason.partition(":")[0]
    assert error.traceback.startswith("Traceback (most recent call last):")
    assert plugin.failure is error


def test_load_does_not_execute_a_module_that_failed_again(site):
    site.install(
        "acme-norm", code="import sys\nsys.acme_norm_tries = getattr(sys, 'acme_norm_tries', 0) + 1\nraise OSError"
    )
    plugin = _implementation()
    for _ in range(3):
        with pytest.raises(PluginImportError):
            plugin.load()
    assert sys.acme_norm_tries == 1
    del sys.acme_norm_tries


def test_load_lets_the_user_interrupt(site):
    site.install("acme-norm", code="raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        _implementation().load()


def test_import_object_says_for_whom():
    what = "the hook lora (acme 1) cannot be imported: ModuleNotFoundError"
    with pytest.raises(PluginImportError, match=re.escape(what)) as caught:
        import_object("no_such_module_here:x", "the hook lora (acme 1)", slot="hooks", name="lora")
    assert (caught.value.slot, caught.value.name) == ("hooks", "lora")


def test_load_for_accepts_what_fits_the_slot(site):
    site.install("acme-norm")
    assert _implementation().load_for(SLOTS["norm"]) is sys.modules["acme_norm.parts"].Fast


@pytest.mark.parametrize(
    ("code", "complaint"),
    [
        ("Fast = 3", "is of type int, which cannot be called"),
        ("def Fast(config, hidden_size): ...", "does not accept `eps`"),
        (
            "class Fast:\n    def __init__(self, config, hidden_size, eps): ...\n    def forward(self): ...",
            "makes a module whose forward takes no argument number 1 (`x`)",
        ),
        (
            "class Fast:\n    def __init__(self, config, hidden_size, eps): ...\n    def forward(self, x, /): ...\n"
            "    @classmethod\n    def parts(cls, request): ...",
            "has `parts` but no dataclass `Submodules` to receive them",
        ),
    ],
)
def test_load_for_refuses_what_does_not_fit_the_slot(site, code, complaint):
    site.install("acme-norm", code=code)
    what = f"norm fast (acme-norm 2.0) does not fit its slot: acme_norm.parts:Fast {complaint}."
    with pytest.raises(PluginImportError, match=re.escape(what)) as caught:
        _implementation().load_for(SLOTS["norm"])
    assert caught.value.reason == f"its builder {complaint}"
    assert caught.value.hint == "see the contract, transom.slots.norm.NormBuilder"
    assert (caught.value.slot, caught.value.name, caught.value.traceback) == ("norm", "fast", None)


def test_implementation_pickles_without_what_it_imported(site, make_card):
    site.install("acme-norm", card=make_card("norm.fast"))
    plugin = _implementation()
    plugin.load()
    assert plugin.card is not None
    copy = pickle.loads(pickle.dumps(plugin))
    assert copy == plugin
    assert hash(copy) == hash(plugin)
    assert set(vars(copy)) == {"slot", "name", "distribution", "version", "value", "builder"}
    assert copy.load() is plugin.load()


def test_implementation_of_core_is_reached_like_a_plugin():
    norm = default_registry().get("norm", "torch_norm")
    assert (norm.distribution, norm.value) == ("transom", "transom.transformer.norm:TorchNorm")
    assert norm.is_core
