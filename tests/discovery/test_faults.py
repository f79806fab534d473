"""Faulty distributions, really installed: each refuses or is noted, and none affects another's name."""

from __future__ import annotations

import json

import pytest

RESOLVE = """
import json, logging, sys
from transom.errors import TransomError
from transom.registry.registry import default_registry
from transom.registry.resolve import resolve
from transom.slots import BuildContext
from transom.slots.norm import NormRequest

request = NormRequest(context=BuildContext(), features=frozenset({"rmsnorm"}), hidden_size=8, eps=1e-5)
registry = default_registry()

def told(asked):
    try:
        found = resolve("norm", asked, request, asked_by="a test")
    except TransomError as error:
        return {"error": type(error).__name__, "text": str(error)}
    return {"chosen": found.chosen.ref, "stages": [v.stage for v in found.verdicts], "reason": found.verdicts[0].reason}

out = {asked: told(asked) for asked in sys.argv[1:] or ("good", "bad | good", "bad")}
out["names"] = sorted({c.ref for c in registry.implementations("norm")})
out["slots"] = len(registry.implementations())
out["problems"] = [[p.kind, p.distribution, p.what, p.traceback] for p in registry.problems()]
out["torch"] = "torch" in sys.modules
print(json.dumps(out))
"""

GOOD_BODY = "class Fast:\n    def __init__(self, config, hidden_size, eps): ...\n"


@pytest.fixture
def good(site, make_card):
    """A plugin that works, beside the faulty one."""
    site.install("acme-good", {"norm": {"good": "Fast"}}, card=make_card("norm.good", features=["rmsnorm"]))
    return site


@pytest.fixture
def bad_card(make_card):
    return make_card("norm.bad", features=["rmsnorm"])


BROKEN = {
    "import error": ("import libacme_gone", "ModuleNotFoundError: No module named 'libacme_gone'"),
    "exit": ("import sys\nsys.exit('bye')", "SystemExit: bye"),
    "syntax error": ("def", "SyntaxError: invalid syntax"),
    "endless recursion": ("def f(): f()\nf()", "RecursionError: maximum recursion depth exceeded"),
    "warning as an error": (
        "import warnings\nwarnings.simplefilter('error')\nwarnings.warn('old')",
        "UserWarning: old",
    ),
    "missing attribute": ("class Quick: ...", "AttributeError: module 'acme_bad.parts' has no attribute 'Fast'"),
    "wrong type": ("Fast = {'eps': 1}", "its builder is of type dict, which cannot be called"),
    "a module": ("import json as Fast", "its builder is of type module, which cannot be called"),
    "wrong builder": (
        "class Fast:\n    def __init__(self, config, width, eps): ...",
        "its builder does not accept `hidden_size`; requires `width`, which callers do not pass",
    ),
    "wrong forward": (
        GOOD_BODY + "    def forward(self, x, scale): ...",
        "its builder makes a module whose forward requires `scale`, which callers do not pass",
    ),
}


@pytest.mark.parametrize(("code", "reason"), BROKEN.values(), ids=BROKEN)
def test_broken_plugin_is_passed_over_in_a_chain_and_refused_alone(good, bad_card, code, reason):
    good.install("acme-bad", {"norm": {"bad": "Fast"}}, card=bad_card, code=code)
    out = good.run(RESOLVE)
    assert out["good"]["chosen"] == out["bad | good"]["chosen"] == "acme-good/good"
    assert out["bad | good"]["stages"] == ["broken", "ok"]
    assert reason in out["bad | good"]["reason"]
    assert out["bad"]["error"] == "ResolutionError"
    assert reason in out["bad"]["text"]
    assert {"acme-bad/bad", "acme-good/good", "transom/torch_norm"} <= set(out["names"])


def test_broken_import_keeps_its_traceback(good, bad_card):
    good.install("acme-bad", {"norm": {"bad": "Fast"}}, card=bad_card, code="\n\nimport libacme_gone")
    (problem,) = [p for p in good.run(RESOLVE)["problems"] if p[0] == "import"]
    assert problem[1] == "acme-bad"
    assert 'parts.py", line 3, in <module>' in problem[3]


@pytest.mark.parametrize(("strict", "error"), [("1", "PluginImportError"), ("yes", "PluginImportError"), ("0", None)])
def test_broken_import_raises_in_a_chain_only_when_strict(good, bad_card, strict, error):
    good.install("acme-bad", {"norm": {"bad": "Fast"}}, card=bad_card, code="import libacme_gone")
    assert good.run(RESOLVE, TRANSOM_STRICT=strict)["bad | good"].get("error") == error


def test_broken_import_is_told_once_as_a_warning(good, bad_card):
    good.install("acme-bad", {"norm": {"bad": "Fast"}}, card=bad_card, code="import libacme_gone")
    done = good.run_raw(
        "import logging; logging.basicConfig(level='INFO')\n" + RESOLVE, "bad | good", "good | bad", "bad"
    )
    lines = [line for line in done.stderr.splitlines() if "acme-bad/bad" in line]
    assert [line.split(":")[0] for line in lines] == ["WARNING"], done.stderr


@pytest.mark.parametrize("code", ["import os\nos.abort()", "import time\ntime.sleep(3600)", "import os\nos._exit(9)"])
def test_plugin_that_would_stop_the_process_harms_nobody_who_does_not_name_it(good, bad_card, code):
    good.install("acme-bad", {"norm": {"bad": "Fast"}, "loss": {"bad": "Fast"}}, card=bad_card, code=code)
    done = good.run_raw(RESOLVE, "good", "good | bad")
    assert done.returncode == 0, done.stderr
    out = json.loads(done.stdout.splitlines()[-1])
    assert out["good"]["chosen"] == out["good | bad"]["chosen"] == "acme-good/good"
    assert "acme-bad/bad" in out["names"]


CARDS = {
    "not toml": ("card = 1\n[norm.bad", "its card is broken: the card of acme-bad is not TOML: "),
    "not utf-8": (b"card = 1\n# \xff", "its card is broken: the card of acme-bad is not UTF-8: "),
    "empty": ("", "its card is broken: card in the card of acme-bad has no version."),
    "of a later version": ("card = 2", "its card is broken: card in the card of acme-bad is of version 2."),
    "unknown key": (
        "card = 1\n[norm.bad]\ncolour = 1",
        "its card is broken: norm.bad in the card of acme-bad is wrong: ",
    ),
    "wrong type": (
        "card = 1\n[norm]\nbad = 1",
        "norm.bad in the card of acme-bad is wrong: Expected `object`, got `int`",
    ),
}


@pytest.mark.parametrize(("card", "reason"), CARDS.values(), ids=CARDS)
def test_broken_card_refuses_its_own_distribution_and_no_other(good, card, reason):
    good.install("acme-bad", {"norm": {"bad": "Fast"}}, card=card, code="raise SystemExit")
    out = good.run(RESOLVE)
    assert out["bad | good"]["chosen"] == "acme-good/good"
    assert out["bad | good"]["stages"] == ["api", "ok"]
    assert reason in out["bad | good"]["reason"]
    assert out["bad"]["error"] == "ResolutionError"
    assert [p[1] for p in out["problems"] if p[0] == "card"] == ["acme-bad"]


@pytest.mark.parametrize(
    "card", [None, "card = 1\n[norm.other]\napi='1.0'\ndevices=['any']\ndtypes=['any']\nmodes=['infer']"]
)
def test_undeclared_plugin_is_asked_itself(good, card):
    code = GOOD_BODY + "    @classmethod\n    def supports(cls, request): return ['eps'] if request.eps < 1e-6 else []"
    good.install("acme-bad", {"norm": {"bad": "Fast"}}, card=card, code=code)
    out = good.run(RESOLVE)
    assert out["bad"]["chosen"] == "acme-bad/bad"
    complaints = [p[2] for p in out["problems"] if p[1] == "acme-bad"]
    contradictions = [
        "has no section [norm.bad], which the entry point promises",
        "has a section [norm.other], for which there is no entry point",
    ]
    assert complaints == ([] if card is None else contradictions)


@pytest.mark.parametrize(
    ("api", "hint"),
    [("0.9", "upgrade acme-bad"), ("1.99", "upgrade transom"), ("2.0", "upgrade transom")],
)
def test_plugin_for_another_contract_says_which_side_to_upgrade(good, make_card, api, hint):
    card = make_card("norm.bad", api=api, features=["rmsnorm"])
    good.install("acme-bad", {"norm": {"bad": "Fast"}}, card=card, code="raise SystemExit")
    out = good.run(RESOLVE)
    assert out["bad | good"]["stages"] == ["api", "ok"]
    assert hint in out["bad"]["text"]


def test_two_distributions_with_one_name_make_only_its_bare_use_an_error(good, bad_card):
    for name in ("acme-bad", "other-bad"):
        good.install(name, {"norm": {"bad": "Fast"}}, card=bad_card)
    out = good.run(RESOLVE, "good", "bad", "bad | good", "other-bad/bad", "acme_bad/bad | good")
    assert out["good"]["chosen"] == "acme-good/good"
    assert out["bad"]["error"] == out["bad | good"]["error"] == "AmbiguousNameError"
    assert "write acme-bad/bad or other-bad/bad" in out["bad"]["text"]
    assert out["other-bad/bad"]["chosen"] == "other-bad/bad"
    assert out["acme_bad/bad | good"]["chosen"] == "acme-bad/bad"
    assert {p[1] for p in out["problems"] if p[0] == "name"} == {"acme-bad", "other-bad"}


def test_plugin_cannot_shadow_core_s_name(good, make_card):
    good.install("acme-bad", {"norm": {"torch_norm": "Fast"}}, card=make_card("norm.torch_norm", features=["rmsnorm"]))
    code = 'print(json.dumps([registry.get("norm", n).value for n in ("torch_norm", "acme-bad/torch_norm")]))'
    assert good.run(RESOLVE + code) == ["transom.transformer.norm:TorchNorm", "acme_bad.parts:Fast"]


def test_same_distribution_twice_on_the_path_is_taken_once(good, tmp_path, bad_card):
    other = type(good)(tmp_path / "other")
    good.install("acme-bad", {"norm": {"bad": "Fast"}}, card=bad_card, version="1.0")
    other.install("acme-bad", {"norm": {"bad": "Fast", "older": "Fast"}}, card=bad_card, version="0.5")
    out = good.run(f"import sys; sys.path.append({str(other.root)!r})\n" + RESOLVE)
    assert out["bad"]["chosen"] == "acme-bad/bad"
    assert "acme-bad/older" not in out["names"]
    assert [p[0] for p in out["problems"] if p[1] == "acme-bad"] == ["shadowed"]


def test_stale_egg_info_is_noted_and_not_believed(good, bad_card):
    good.install("acme-bad", {"norm": {"gone": "Gone"}}, version="9.0", kind="egg-info", code=None)
    good.install("acme-bad", {"norm": {"bad": "Fast"}}, card=bad_card)
    out = good.run(RESOLVE)
    assert out["bad"]["chosen"] == "acme-bad/bad"
    assert "acme-bad/gone" not in out["names"]
    assert [p[0] for p in out["problems"] if p[1] == "acme-bad"] == ["shadowed"]


def test_metadata_that_are_not_utf8_are_noted_and_their_plugin_still_serves(good, bad_card):
    metadata = b"Name: acme-bad\nVersion: 1.0\nAuthor: Andr\xe9\n"
    good.install("acme-bad", {"norm": {"bad": "Fast"}}, card=bad_card, metadata=metadata)
    out = good.run(RESOLVE)
    assert out["bad"]["chosen"] == "acme-bad/bad"
    assert [p[0] for p in out["problems"] if p[1] == "acme-bad"] == ["metadata"]


@pytest.mark.parametrize("text", [b"[console_scripts]\nno equals sign\n= x\n", b"\xff\xfe[transom.norm]", b"]]\n[[["])
def test_malformed_entry_points_of_another_package_stop_nothing(good, bad_card, text):
    good.install("unrelated", text)
    good.install("acme-bad", {"norm": {"bad": "Fast"}}, card=bad_card)
    out = good.run(RESOLVE)
    assert (out["good"]["chosen"], out["bad"]["chosen"]) == ("acme-good/good", "acme-bad/bad")


def test_malformed_entry_point_of_a_plugin_costs_that_entry_alone(good, bad_card):
    good.install("acme-bad", "[transom.norm]\noops\nbad = acme_bad.parts:Fast\n", card=bad_card)
    out = good.run(RESOLVE)
    assert out["bad"]["chosen"] == "acme-bad/bad"
    expected = "is not of the form name = module:attribute: [transom.norm] oops"
    assert [p[2] for p in out["problems"] if p[1] == "acme-bad"] == [expected]


def test_entry_point_of_a_package_that_is_gone_is_broken(good):
    good.install("acme-bad", {"norm": {"bad": "Fast"}}, code=None)
    out = good.run(RESOLVE)
    assert out["bad | good"]["stages"] == ["broken", "ok"]
    assert "No module named 'acme_bad'" in out["bad"]["text"]


@pytest.mark.parametrize(
    ("environment", "stages"),
    [
        ({"TRANSOM_PLUGINS_DENY": "acme-b*"}, ["policy", "ok"]),
        ({"TRANSOM_PLUGINS_ALLOW": "acme_good"}, ["policy", "ok"]),
        ({"TRANSOM_PLUGINS_ALLOW": "acme-*"}, ["ok"]),
    ],
)
def test_policy_keeps_a_plugin_from_being_imported(good, bad_card, environment, stages):
    good.install("acme-bad", {"norm": {"bad": "Fast"}}, card=bad_card, code=GOOD_BODY + "print('imported')")
    done = good.run_raw(RESOLVE, "bad | good", **environment)
    assert json.loads(done.stdout.splitlines()[-1])["bad | good"]["stages"] == stages
    assert ("imported" in done.stdout) == (stages == ["ok"])


@pytest.mark.parametrize("value", ["perhaps", "2", "None"])
def test_policy_that_is_nonsense_raises(good, value):
    out = good.run(RESOLVE, TRANSOM_STRICT=value)
    assert out["good"]["error"] == "PolicyError"
    assert f"TRANSOM_STRICT is {value!r}, which is neither true nor false." in out["good"]["text"]
