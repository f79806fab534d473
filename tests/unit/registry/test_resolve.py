"""Names to a choice, with the verdict of every one tried."""

from __future__ import annotations

import logging
import pickle
import re
import sys
from dataclasses import replace

import pytest
from transom.errors import (
    AmbiguousNameError,
    PluginImportError,
    PolicyError,
    ResolutionError,
    SpecError,
    UnknownImplementationError,
    UnknownSlotError,
)
from transom.registry.policy import Policy
from transom.registry.registry import Registry
from transom.registry.resolve import Attempt, auto_order, resolve
from transom.registry.scan import index_of, scan
from transom.slots import SLOTS, BuildContext
from transom.slots.norm import NormRequest

REQUEST = NormRequest(context=BuildContext(), features=frozenset({"rmsnorm"}), hidden_size=64, eps=1e-5)


@pytest.fixture
def registry(site, make_card):
    """Three norms: one for CUDA only, one that cannot be imported, one that serves; and core's name for a fourth."""
    good = {"features": ["rmsnorm"]}
    site.install("acme-cuda", {"norm": {"cuda": "Fast"}}, card=make_card("norm.cuda", devices=["cuda"], **good))
    site.install("acme-bad", {"norm": {"bad": "Fast"}}, card=make_card("norm.bad", **good), code="import libacme_gone")
    site.install("acme-good", {"norm": {"good": "Fast"}}, card=make_card("norm.good", **good))
    site.install("acme-bare", {"norm": {"bare": "Fast"}})
    return Registry(scan([str(site.root)]))


def _resolve(registry, asked, request=REQUEST, **options):
    return resolve("norm", asked, request, asked_by="use.norm in tiny.yaml", registry=registry, **options)


@pytest.mark.parametrize(
    ("asked", "names", "stages"),
    [
        ("good", ("good",), ["ok"]),
        ("acme-good/good", ("acme-good/good",), ["ok"]),
        ("cuda | good", ("cuda", "good"), ["hardware", "ok"]),
        (["absent", "cuda", "bad", "good", "bare"], ("absent", "cuda", "bad", "good", "bare"),
         ["missing", "hardware", "broken", "ok"]),
    ],
)  # fmt: skip
def test_resolve_takes_the_first_that_can_serve(registry, asked, names, stages):
    resolution = _resolve(registry, asked)
    assert resolution.chosen.ref == "acme-good/good"
    assert (resolution.slot, resolution.asked) == ("norm", names)
    assert [verdict.stage for verdict in resolution.verdicts] == stages
    assert resolution.verdict.ok
    assert resolution.refused == resolution.verdicts[:-1]


def test_resolve_imports_nothing_but_what_is_tried_to_the_end(registry):
    _resolve(registry, "cuda | good | bare")
    assert "acme_good.parts" in sys.modules
    assert not {"acme_cuda", "acme_bare", "acme_bad"} & set(sys.modules)


def test_resolve_logs_every_refusal_once(registry, caplog):
    with caplog.at_level(logging.INFO, "transom"):
        for _ in range(3):
            _resolve(registry, "absent | cuda | bad | good")
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("INFO", "norm absent is passed over (missing): no norm is named 'absent'. Try: "
                 "Core itself is not installed as a distribution here: pip install transom.   All: transom list norm"),
        ("INFO", "norm acme-cuda/cuda is passed over (hardware): it runs on cuda, not on cpu. Try: "
                 "build for cuda on a machine that has it, or name another implementation"),
        ("WARNING", "norm acme-bad/bad is passed over (broken): it cannot be imported: ModuleNotFoundError: "
                    "No module named 'libacme_gone'. Try: see its traceback: transom doctor"),
    ]  # fmt: skip


def test_resolve_keeps_the_traceback_of_what_it_passed_over(registry):
    _resolve(registry, "bad | good")
    (problem,) = [problem for problem in registry.problems() if problem.kind == "import"]
    assert problem.distribution == "acme-bad"
    assert "import libacme_gone" in problem.traceback


def test_resolve_raises_when_a_single_name_cannot_serve(registry):
    with pytest.raises(ResolutionError) as caught:
        _resolve(registry, "cuda")
    assert str(caught.value).splitlines() == [
        "norm 'cuda' cannot serve.",
        "  Asked by:   use.norm in tiny.yaml",
        "  Available:  bad (acme-bad 1.0), good (acme-good 1.0)",
        "  Failed:     acme-cuda/cuda: it runs on cuda, not on cpu (hardware)",
        "  Try:        build for cuda on a machine that has it, or name another implementation",
        "              acme-bad/bad or acme-good/good, which can serve by what its card declares",
    ]
    assert caught.value.slot == "norm"
    assert isinstance(caught.value.resolution, Attempt)
    assert [verdict.stage for verdict in caught.value.resolution.verdicts] == ["hardware"]


def test_resolve_raises_when_none_of_a_chain_can_serve(registry):
    with pytest.raises(ResolutionError, match="norm: none of absent, cuda can serve") as caught:
        _resolve(registry, "absent | cuda", policy=Policy(allow=("acme-cuda",)))
    assert caught.value.available == ()
    assert [line.split(":")[0] for line in caught.value.failed] == ["absent", "acme-cuda/cuda"]
    assert caught.value.resolution.asked == ("absent", "cuda")


def test_resolve_chains_the_import_error_of_a_single_name(registry):
    with pytest.raises(ResolutionError, match="norm 'bad' cannot serve") as caught:
        _resolve(registry, "bad")
    assert isinstance(caught.value.__cause__, PluginImportError)
    assert isinstance(caught.value.__cause__.__cause__, ModuleNotFoundError)
    assert caught.value.failed == (
        "acme-bad/bad: it cannot be imported: ModuleNotFoundError: No module named 'libacme_gone' (broken)",
    )
    assert "see its traceback: transom doctor" in caught.value.hint


def test_resolve_repeats_the_card_s_hint(site, make_card):
    card = make_card("norm.fast", requires=["no-such-lib>=2"], install="pip install 'acme-norm[fast]'")
    site.install("acme-norm", {"norm": {"fast": "Fast"}}, card=card)
    with pytest.raises(ResolutionError) as caught:
        _resolve(Registry(scan([str(site.root)])), "fast")
    assert caught.value.hint == "pip install 'acme-norm[fast]'"
    assert caught.value.failed == ("acme-norm/fast: it requires no-such-lib>=2, which is not installed (requires)",)


def test_resolve_raises_on_a_broken_import_in_a_chain_when_strict(registry, monkeypatch):
    with pytest.raises(PluginImportError, match=re.escape("norm bad (acme-bad 1.0) cannot be imported")):
        _resolve(registry, "bad | good", policy=Policy(strict=True))
    monkeypatch.setenv("TRANSOM_STRICT", "1")
    with pytest.raises(PluginImportError):
        _resolve(registry, "bad | good")
    monkeypatch.setenv("TRANSOM_STRICT", "0")
    assert _resolve(registry, "bad | good").chosen.name == "good"


def test_resolve_minds_other_refusals_no_more_when_strict(registry):
    assert _resolve(registry, "absent | cuda | good", policy=Policy(strict=True)).chosen.name == "good"


def test_resolve_reads_the_policy_from_the_environment(registry, monkeypatch):
    monkeypatch.setenv("TRANSOM_PLUGINS_DENY", "acme-good")
    assert _resolve(registry, "good | bare").verdicts[0].stage == "policy"
    monkeypatch.setenv("TRANSOM_STRICT", "perhaps")
    with pytest.raises(PolicyError):
        _resolve(registry, "good")


def test_resolve_warns_once_of_patterns_that_match_nothing(registry, caplog):
    policy = Policy(allow=("acme-good", "acne-*"))
    for _ in range(2):
        _resolve(registry, "good", policy=policy)
    expected = "TRANSOM_PLUGINS_ALLOW has 'acne-*', which matches no installed plugin."
    assert [(r.levelname, r.getMessage()) for r in caplog.records] == [("WARNING", expected)]


def test_resolve_does_not_call_a_pattern_idle_where_it_did_not_look_at_everything(site, registry, caplog):
    locked = Registry(index_of(["acme-good"], [str(site.root)]))
    assert _resolve(locked, "good", policy=Policy(deny=("acme-cuda",))).chosen.name == "good"
    assert caplog.records == []


@pytest.mark.parametrize(
    ("asked", "error"),
    [
        ("zzz", UnknownImplementationError),
        ("acme-good/zzz", UnknownImplementationError),
        ("a || b", SpecError),
        ([], SpecError),
    ],
)
def test_resolve_lets_errors_of_names_pass(registry, asked, error):
    with pytest.raises(error) as caught:
        _resolve(registry, asked)
    assert caught.value.asked_by == "use.norm in tiny.yaml"


@pytest.mark.parametrize("asked", ["good", "good | bare", "absent | good"])
def test_resolve_raises_on_an_ambiguous_bare_name_even_in_a_chain(site, registry, asked):
    site.install("other-good", {"norm": {"good": "Fast"}})
    registry = Registry(scan([str(site.root)]))
    with pytest.raises(AmbiguousNameError):
        _resolve(registry, asked)
    assert _resolve(registry, "other-good/good").chosen.distribution == "other-good"


def test_resolve_raises_on_an_unknown_slot(registry):
    with pytest.raises(UnknownSlotError) as caught:
        resolve("nrm", "good", REQUEST, asked_by="a test", registry=registry)
    assert caught.value.asked_by == "a test"


def test_resolve_puts_core_s_order_in_the_place_of_auto(site, make_card):
    site.install("transom", {"norm": {"torch_norm": "acme_core.parts:Fast"}}, code=None)
    site.install("acme-core", {"norm": {"plugin": "Fast"}})
    registry = Registry(scan([str(site.root)]))
    for asked, verdicts in [("auto", 1), ("absent | auto", 2), ("auto | torch_norm | plugin", 1)]:
        resolution = _resolve(registry, asked)
        assert resolution.chosen.ref == "transom/torch_norm"
        assert resolution.asked == tuple(asked.split(" | "))
        assert len(resolution.verdicts) == verdicts


def test_auto_order_is_the_slot_s_default():
    assert auto_order(SLOTS["norm"]) == ("torch_norm",)
    assert auto_order(replace(SLOTS["norm"], default=None)) == ()


def test_resolve_has_nothing_to_try_where_a_slot_has_no_default(registry, monkeypatch):
    monkeypatch.setitem(registry._slots, "norm", replace(SLOTS["norm"], default=None))
    with pytest.raises(ResolutionError, match="norm has no default, and nothing else was asked for") as caught:
        _resolve(registry, "auto")
    assert caught.value.resolution.verdicts == ()


def test_resolve_warns_once_of_a_deprecated_choice(site, make_card, caplog):
    card = (
        make_card("norm.fast", features=["rmsnorm"])
        + '\n[norm.fast.deprecated]\nmessage = "it goes"\nreplacement = "new"'
    )
    site.install("acme-norm", {"norm": {"fast": "Fast"}}, card=card)
    registry = Registry(scan([str(site.root)]))
    for _ in range(2):
        assert _resolve(registry, "fast").verdict.ok
    expected = "acme-norm/fast is deprecated: it goes; use new"
    assert [(r.levelname, r.getMessage()) for r in caplog.records] == [("WARNING", expected)]


def test_resolve_serves_what_the_program_registered(registry):
    def build(config, hidden_size, eps):
        return None

    with registry.override("norm", "good", build):
        resolution = _resolve(registry, "good")
        assert resolution.chosen.load() is build
        assert _resolve(registry, "acme-good/good").chosen.load() is not build
    assert _resolve(registry, "good").chosen.ref == "acme-good/good"


def test_resolve_does_not_catch_what_building_raises(site):
    site.install(
        "acme-norm", {"norm": {"fast": "Fast"}}, code="def Fast(config, hidden_size, eps): raise OSError('gpu')"
    )
    builder = _resolve(Registry(scan([str(site.root)])), "fast | good").chosen.load()
    with pytest.raises(OSError, match="gpu"):
        builder(None, 1, 1e-5)


def test_resolution_rests_on_the_card_where_nothing_else_was_asked(registry, site, make_card):
    assert _resolve(registry, "good").rests_on_card
    # What a refusal says may name what the card does not tell of.
    assert not _resolve(registry, "cuda | good").rests_on_card
    code = "def Fast(config, hidden_size, eps): ...\nFast.supports = lambda request: ()"
    card = make_card("norm.asks", features=["rmsnorm"])
    site.install("acme-asks", {"norm": {"asks": "Fast"}}, card=card, code=code)
    assert not _resolve(Registry(scan([str(site.root)])), "asks").rests_on_card


def test_resolution_pickles(registry):
    resolution = _resolve(registry, "cuda | bad | good")
    copy = pickle.loads(pickle.dumps(resolution))
    assert copy == resolution
    assert copy.chosen.load() is resolution.chosen.load()


def test_resolution_error_pickles(registry):
    with pytest.raises(ResolutionError) as caught:
        _resolve(registry, "bad | cuda")
    copy = pickle.loads(pickle.dumps(caught.value))
    assert str(copy) == str(caught.value)
    assert copy.resolution == caught.value.resolution


@pytest.fixture
def config(tmp_path, monkeypatch):
    """Give a function that writes the user's config file."""

    def write(text):
        path = tmp_path / f"config{len(text)}.toml"
        path.write_text(text)
        monkeypatch.setenv("TRANSOM_CONFIG", str(path))
        return path

    return write


def test_auto_order_is_the_user_s_where_the_config_says_one(config):
    config('[auto]\nnorm = ["fast", "torch_norm"]\nlinear = "a | b"')
    assert auto_order(SLOTS["norm"]) == ("fast", "torch_norm")
    assert auto_order(SLOTS["row_linear"]) == ("a", "b")
    assert auto_order(SLOTS["loss"]) == ("cross_entropy",)


def test_auto_that_cannot_serve_names_the_config_among_who_asked(config):
    path = config('[auto]\nnorm = ["gone_norm"]')
    with pytest.raises(UnknownImplementationError, match="no norm is named 'gone_norm'") as caught:
        resolve("norm", "auto", REQUEST, asked_by="use.norm in my.yaml")
    assert caught.value.asked_by == f"use.norm in my.yaml, auto.norm in {path}"
