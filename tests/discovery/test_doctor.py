"""`transom doctor` in front of faulty distributions, really installed, all at once."""

from __future__ import annotations

import json
import os
import re

import pytest

MAIN = "import sys; from transom.cli.main import main; sys.exit(main())"
FAST = "class Fast:\n    def __init__(self, config, hidden_size, eps): ...\n    def forward(self, x, /): ...\n"
CARD = 'card = 1\n[norm.{name}]\napi = "1.0"\ndevices = ["any"]\ndtypes = ["any"]\nmodes = ["infer"]\n'
HOOKS = """
from transom import hookimpl

class Says:
    @hookimpl
    def transom_doctor(self):
        return ["it is late", "and dark"]

class Silent:
    @hookimpl
    def transom_doctor(self):
        raise AssertionError("nobody asked")

class Empty: ...
"""
SLOT = """
from typing import Protocol
from transom.slots import Request, Slot

class Router(Protocol):
    def forward(self, x): ...

class Builder(Protocol):
    def __call__(self, config): ...

ROUTER = Slot(name="acme_router", kind="kernel", api=(1, 0), summary="routes", request=Request, builder=Builder,
              interface=Router)

class Linear:
    def __init__(self, config): ...
    def forward(self, x): ...
"""

IMPORTS = {
    "error": ("import libacme_gone", "it cannot be imported: ModuleNotFoundError: No module named 'libacme_gone'"),
    "exit": ("import sys\nsys.exit('bye')", "it cannot be imported: SystemExit: bye"),
    "leave": ("import os\nos._exit(9)", "it ended the process with 9 while it was imported"),
    "abort": ("import os\nos.abort()", "it ended the process with SIGABRT while it was imported"),
    "hang": ("import time\nwhile True:\n    time.sleep(3600)", "importing it takes longer than 10 s"),
    "attribute": ("", "it cannot be imported: AttributeError: module 'acme_attribute.parts' has no attribute 'Fast'"),
    "kind": ("Fast = 3", "acme_kind.parts:Fast is of type int, which cannot be called"),
    "builder": (
        FAST.replace("hidden_size", "width"),
        "acme_builder.parts:Fast does not accept `hidden_size`",
    ),
    "forward": (
        FAST.replace("x, /", "x, y, /"),
        "acme_forward.parts:Fast makes a module whose forward requires `y`, which callers do not pass",
    ),
}
CARDS = {
    "toml": ("card = 1\n[", "the card of acme-toml is not TOML: "),
    "version": ("card = 7", "card in the card of acme-version is of version 7."),
    "key": (CARD.format(name="key") + "colour = 1\n", "norm.key in the card of acme-key is wrong: Object contains"),
    "names": (CARD.format(name="other"), "has a section [norm.other], for which there is no entry point"),
    "older": (
        CARD.format(name="older").replace("1.0", "0.3"),
        "it is written for norm contract 0.3, this transom has 1.0",
    ),
    "newer": (
        CARD.format(name="newer").replace("1.0", "2.0"),
        "it is written for norm contract 2.0, this transom has 1.0",
    ),
    "feature": (
        CARD.format(name="feature") + 'features = ["rmsnrom"]\n',
        "[norm.feature] declares 'rmsnrom', which is no feature of norm; 'rmsnorm' was meant?",
    ),
}


def _metadata(name: str, *requires: str) -> str:
    lines = "".join(f"Requires-Dist: {each}\n" for each in requires)
    return f"Metadata-Version: 2.1\nName: acme-{name}\nVersion: 1.0\n{lines}"


def _install(site, name: str, *, card: str | None = "", requires: tuple[str, ...] = ("transom>=0.1",), **kwargs):
    kwargs.setdefault("code", FAST)
    kwargs.setdefault("metadata", _metadata(name, *requires))
    text = CARD.format(name=name) if card == "" else card
    return site.install(f"acme-{name}", kwargs.pop("points", {"norm": {name: "Fast"}}), card=text, **kwargs)


@pytest.fixture(scope="module")
def data(module_site, tmp_path_factory):
    """What the doctor says of an installation that has everything."""
    site = module_site
    for name, (code, _) in IMPORTS.items():
        _install(site, name, code=code)
    for name, (card, _) in CARDS.items():
        _install(site, name, card=card)
    _install(site, "good")
    _install(site, "bare", card=None)
    _install(site, "skew", requires=("transom>=99",))
    _install(site, "silent", requires=())
    unmet = CARD.format(name="unmet") + 'requires = ["no-such-package>=3"]\n'
    _install(site, "unmet", card=unmet, code="import no_such_package")
    _install(site, "cuda", card=CARD.format(name="cuda").replace('devices = ["any"]', 'devices = ["abacus"]'))
    _install(site, "denied", code="raise AssertionError('imported')")
    _install(site, "shared", points={"norm": {"good": "Fast"}}, card=CARD.format(name="good"))
    _install(site, "latin", metadata=_metadata("latin", "transom").encode() + b"Author: Andr\xe9\n")
    _install(site, "points", points="[transom.norm]\noops\npoints = acme_points.parts:Fast\n")
    _install(site, "wild", points={"norms": {"wild": "Fast"}}, card=None)
    _install(site, "slot", points={"slots": {"acme_router": "ROUTER"}, "acme_router": {"fast": "Linear"}}, code=SLOT,
             card=CARD.format(name="fast").replace("norm", "acme_router"))  # fmt: skip
    points = {"hooks": {"says": "Says", "silent": "Silent", "empty": "Empty"}}
    _install(site, "hooks", points=points, card=None, code=HOOKS)
    site.install("unrelated", b"\xff[console_scripts]\nno equals sign\n")
    site.install("acme-good", {"norm": {"gone": "Gone"}}, version="0.1", kind="egg-info", code=None)
    second = type(site)(tmp_path_factory.mktemp("second") / "site")
    _install(second, "good", version="2.0")
    config = site.root.parent / "config.toml"
    config.write_text(
        'hooks = ["says"]\n[auto]\nnorm = ["good", "absent"]\nnorms = ["x"]\n[policy]\ndeny = ["acme-denied"]\n'
    )
    environment = {
        "TRANSOM_CONFIG": str(config),
        "TRANSOM_PLUGINS_ALLOW": "*",
        "PYTHONPATH": os.pathsep.join([str(site.root), str(second.root)]),
        # torch itself reads all entry points when it is imported, and fails where the unrelated package's are malformed
        "TORCH_DEVICE_BACKEND_AUTOLOAD": "0",
    }
    done = site.run_raw(MAIN, "doctor", "--json", "--timeout", "10", **environment)
    assert done.returncode == 1, done.stderr
    return json.loads(done.stdout) | {"config": str(config), "second": str(second.root)}


def _findings(data, name: str, level: str) -> list[dict]:
    return [f for f in data["findings"] if f["distribution"] == name and f["level"] == level]


def _said(data, name: str, level: str = "wrong") -> list[str]:
    return [finding["what"] for finding in _findings(data, name, level)]


@pytest.mark.parametrize("name", IMPORTS)
def test_doctor_reports_what_an_import_does_and_does_not_suffer_it(data, name):
    said = _said(data, f"acme-{name}")
    assert len(said) == (2 if name == "builder" else 1), said
    assert said[0] == IMPORTS[name][1]
    (examined,) = [each for each in data["distributions"] if each["name"] == f"acme-{name}"]
    status = {"hang": "hung", "leave": "died", "abort": "died", "kind": "ok", "builder": "ok", "forward": "ok"}
    assert [outcome["status"] for outcome in examined["outcomes"]] == [status.get(name, "failed")]


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("error", "parts.py\", line 1, in <module>"),
        ("exit", "parts.py\", line 2, in <module>"),
        ("abort", "parts.py\", line 2 in <module>"),
        ("hang", "parts.py\", line 3 in <module>"),
    ],
)  # fmt: skip
def test_doctor_shows_where_an_import_went_wrong(data, name, line):
    (finding,) = _findings(data, f"acme-{name}", "wrong")
    assert line in finding["traceback"]


@pytest.mark.parametrize("name", CARDS)
def test_doctor_reports_what_is_wrong_with_a_card(data, name):
    said = _said(data, f"acme-{name}")
    assert any(what.startswith(CARDS[name][1]) for what in said), said


@pytest.mark.parametrize(("name", "hint"), [("older", "upgrade acme-older"), ("newer", "upgrade transom")])
def test_doctor_says_which_side_of_a_contract_to_upgrade(data, name, hint):
    (finding,) = _findings(data, f"acme-{name}", "wrong")
    assert finding["hint"] == hint


def test_doctor_finds_nothing_wrong_with_what_is_well(data):
    for name in ("transom", "transom-parallel-linear", "transom-torch-dot-product", "acme-slot", "acme-silent"):
        assert _said(data, name) == []
    (router,) = [each for each in data["distributions"] if each["name"] == "acme-slot"]
    outcomes = {(o["entry"]["group"], o["entry"]["name"], o["status"]) for o in router["outcomes"]}
    assert outcomes == {("transom.acme_router", "fast", "ok"), ("transom.slots", "acme_router", "ok")}
    assert [(p["slot"], p["name"], p["holds"]) for p in router["promises"]] == [("acme_router", "fast", True)]


def test_doctor_compares_what_is_required_of_transom(data):
    (finding,) = _findings(data, "acme-skew", "wrong")
    assert finding["what"] == "requires transom>=99, but 0.1.0 is installed"
    assert finding["hint"] == "upgrade acme-skew or transom"
    assert _said(data, "acme-silent", "note") == ["does not say which transom it was written for"]


def test_doctor_notes_promises_that_cannot_be_had_here_without_calling_them_wrong(data):
    assert _said(data, "acme-unmet") == _said(data, "acme-cuda") == []
    unmet = "no-such-package>=3, which is not installed"
    failed = "it cannot be imported: ModuleNotFoundError: No module named 'no_such_package'"
    assert _said(data, "acme-unmet", "note") == [
        f"{failed}; it requires {unmet}",
        f"cannot serve here: it requires {unmet} (requires)",
    ]
    here = ", ".join(sorted({device["type"] for device in data["environment"]["devices"]}))
    assert _said(data, "acme-cuda", "note") == [
        f"cannot serve here: it runs on abacus; this machine has {here} (hardware)"
    ]


def test_doctor_notes_what_declares_nothing(data):
    assert (_said(data, "acme-bare"), _said(data, "acme-bare", "note")) == (
        [],
        ["declares nothing; only its own supports() is asked"],
    )


def test_doctor_imports_nothing_that_the_policy_forbids(data):
    assert _said(data, "acme-denied") == []
    reason = f"policy.deny in {data['config']} has 'acme-denied'"
    assert _said(data, "acme-denied", "note") == [f"may not be chosen and was not imported: {reason}"]
    assert data["environment"]["policy"]["allow_from"] == "TRANSOM_PLUGINS_ALLOW"


def test_doctor_names_copies_that_are_hidden_and_names_that_are_shared(data):
    hidden = {(f["where"], f["what"]) for f in _findings(data, "acme-good", "wrong")}
    (site,) = {each["location"].rpartition("/")[0] for each in data["distributions"] if each["name"] == "acme-good"}
    winner = f"is hidden by another copy, {site}/acme_good-1.0.dist-info"
    assert hidden == {
        (f"{site}/acme_good-0.1.egg-info", winner),
        (f"{data['second']}/acme_good-2.0.dist-info", winner),
    }
    assert _said(data, "acme-shared", "note") == ["shares its name, use it as acme-shared/good"]


def test_doctor_reports_metadata_that_cannot_be_read(data):
    (latin,) = _said(data, "acme-latin")
    assert latin.startswith("cannot be read: UnicodeDecodeError: ")
    assert _said(data, "acme-points") == ["is not of the form name = module:attribute: [transom.norm] oops"]
    wild = "registers 'wild' for a slot that does not exist, 'norms'; 'norm' was meant?"
    assert _said(data, "acme-wild") == [wild]


def test_doctor_says_nothing_of_packages_that_register_nothing(data):
    assert not [f for f in data["findings"] if "unrelated" in (f["distribution"], f["where"])]
    assert "unrelated" not in [each["name"] for each in data["distributions"]]


def test_doctor_asks_the_hooks_that_the_user_s_config_names_and_no_others(data):
    assert sorted(_said(data, "acme-hooks")) == [
        "and dark",
        "it cannot be imported: the hook empty (acme-hooks 1.0) marks no function with transom.hookimpl.",
        "it is late",
    ]


def test_doctor_compares_the_user_s_config_with_what_is_installed(data):
    found = {(f["level"], f["what"], f["where"]) for f in data["findings"] if f["where"].startswith("auto.")}
    assert found == {
        ("wrong", "no slot is named 'norms'", f"auto.norms in {data['config']}"),
        ("note", "no norm is named 'absent'; it is passed over", f"auto.norm in {data['config']}"),
        ("wrong", "norm 'good' is registered by 2 distributions", f"auto.norm in {data['config']}"),
    }


def test_doctor_describes_the_environment(data):
    import torch

    environment = data["environment"]
    assert environment["torch"] == torch.__version__
    assert environment["devices"][0]["type"] == "cpu"
    assert environment["config"] == {"file": data["config"], "is_there": True}
    assert not data["is_healthy"]


def _summary(done) -> str:
    """How it ends; there may be notes about plugins that are installed beside the tests' own."""
    return re.split(r"[;.]", done.stdout.splitlines()[-1])[0]


def test_doctor_survives_a_config_and_a_variable_that_are_wrong(site, tmp_path):
    path = tmp_path / "config.toml"
    path.write_text("hooks = 1")
    done = site.run_raw(MAIN, "doctor", TRANSOM_CONFIG=str(path))
    assert done.returncode == 1, done.stderr
    assert "  transom: hooks in the user's config is wrong: Expected `array`, got `int`" in done.stdout
    assert _summary(done) == "1 thing is wrong"
    path.write_text('hooks = ["gone"]')
    done = site.run_raw(MAIN, "doctor", TRANSOM_CONFIG=str(path), TRANSOM_STRICT="perhaps")
    assert "  transom: no hook is named 'gone' (hooks in" in done.stdout
    assert "  transom: TRANSOM_STRICT is 'perhaps', which is neither true nor false (the environment" in done.stdout
    assert _summary(done) == "2 things are wrong"


def test_doctor_is_content_with_a_healthy_installation(site):
    done = site.run_raw(MAIN, "doctor", TRANSOM_PLUGINS_DENY="nothing-like-this")
    assert done.returncode == 0, done.stdout + done.stderr
    head, *_ = done.stdout.splitlines()
    assert head.startswith("transom 0.1.0, torch ")
    assert "deny      nothing-like-this (from TRANSOM_PLUGINS_DENY)" in done.stdout
    assert "TRANSOM_PLUGINS_DENY has 'nothing-like-this', which matches no installed plugin (policy)" in done.stdout
    assert _summary(done) == "Nothing is wrong"
