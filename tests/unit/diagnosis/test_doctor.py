"""What is said of a whole installation; imports are stood in for, as tests/discovery makes them in earnest."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
from transom.diagnosis import doctor
from transom.diagnosis.doctor import diagnose
from transom.diagnosis.probe import Outcome, Session
from transom.registry.registry import Registry
from transom.registry.scan import scan

MACHINE = {"torch": "2.0", "devices": [{"type": "cpu", "name": "cpu"}]}
METADATA = "Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\nRequires-Dist: transom\n"


@pytest.fixture
def probed(monkeypatch):
    """Stand in for imports: what fails is told here by name; give the refs that were imported and asked."""
    seen: dict[str, set[str]] = {"imported": set(), "asked": set(), "failing": set()}

    def probe(entries, *, limit, with_devices=False, ask=(), server):
        seen["imported"] |= {entry.name for entry in entries}
        seen["asked"] |= set(ask)
        outcomes = [
            Outcome(entry, "failed", "it cannot be imported: OSError: no disk")
            if entry.name in seen["failing"]
            else Outcome(entry, "ok", seconds=0.5)
            for entry in entries
        ]
        return Session(tuple(outcomes), MACHINE if with_devices else {})

    monkeypatch.setattr(doctor, "probe", probe)
    monkeypatch.setattr(doctor, "fork_server", nullcontext)
    return seen


@pytest.fixture
def examine(site, probed, tmp_path, monkeypatch):
    """Give a function that diagnoses what is installed, under a user's config."""

    def run(config: str = ""):
        (tmp_path / "config.toml").write_text(config)
        monkeypatch.setenv("TRANSOM_CONFIG", str(tmp_path / "config.toml"))
        return diagnose(Registry(scan([str(site.root)])))

    return run


def _install(site, name: str, card: str | None, points=None):
    points = points or {"norm": {name: "Fast"}}
    site.install(f"acme-{name}", points, card=card, metadata=METADATA.format(name=f"acme-{name}"))


def _said(found):
    return [(f.level, f.distribution, f.what) for f in found.findings]


def test_diagnose_says_nothing_of_what_is_well(site, examine, make_card):
    _install(site, "good", make_card("norm.good"))
    found = examine()
    assert found.is_healthy
    assert found.findings == ()
    (good,) = found.distributions
    assert (good.name, good.version, good.forbidden) == ("acme-good", "1.0", None)
    assert [outcome.status for outcome in good.outcomes] == ["ok"]
    assert [(each.slot, each.name, each.missing) for each in good.promises] == [("norm", "good", ())]


def test_diagnose_notes_variables_that_nothing_reads(site, examine, make_card, monkeypatch):
    _install(site, "good", make_card("norm.good"))
    monkeypatch.setenv("TRANSOM_DENY", "acme-*")
    monkeypatch.setenv("TRANSOM_GREY_MOON_PHASE", "1")
    monkeypatch.setenv("TRANSOM_PLUGINS_DENY", "")
    found = examine()
    assert found.is_healthy
    assert [(f.level, f.where, f.what, f.hint) for f in found.findings] == [
        ("note", "environment", "TRANSOM_DENY is set, which nothing reads", "TRANSOM_PLUGINS_DENY?"),
        (
            "note",
            "environment",
            "TRANSOM_GREY_MOON_PHASE is set, which nothing reads",
            "Transom reads TRANSOM_PLUGINS_ALLOW, TRANSOM_CONFIG, TRANSOM_PLUGINS_DENY, TRANSOM_STRICT",
        ),
    ]


def test_diagnose_puts_what_is_wrong_before_notes(site, examine, make_card, probed):
    probed["failing"].add("bad")
    _install(site, "bad", make_card("norm.bad"))
    _install(site, "bare", None)
    found = examine()
    assert not found.is_healthy
    assert _said(found) == [
        ("wrong", "acme-bad", "it cannot be imported: OSError: no disk"),
        ("note", "acme-bare", "declares nothing; only its own supports() is asked"),
    ]


def test_diagnose_notes_once_all_that_keeps_a_promise_from_holding_here(site, examine, make_card):
    _install(site, "far", make_card("norm.far", requires=["no-such>=2"], devices=["abacus"], install="pip install it"))
    (note,) = examine().findings
    assert (note.level, note.hint) == ("note", "pip install it; on a machine with abacus")
    assert note.what == (
        "cannot serve here: it requires no-such>=2, which is not installed (requires); "
        "it runs on abacus; this machine has cpu (hardware)"
    )


def test_diagnose_does_not_import_what_the_policy_forbids(site, examine, make_card, probed):
    _install(site, "evil", make_card("norm.evil", api="9.0"))
    found = examine('[policy]\ndeny = ["acme-evil", "acme-gone"]\n')
    assert probed["imported"] == set()
    assert [level for level, _, _ in _said(found)] == ["note", "note"]
    texts = " ".join(what for _, _, what in _said(found))
    assert "may not be chosen and was not imported: " in texts
    assert "'acme-gone'" in texts
    assert found.environment["policy"]["deny"] == ["acme-evil", "acme-gone"]


@pytest.mark.parametrize(
    ("config", "level", "what", "hint"),
    [
        ('[auto]\nnorm = ["good", "gone"]', "note", "no norm is named 'gone'; it is passed over", None),
        ('[auto]\nnrom = ["good"]', "wrong", "no slot is named 'nrom'", "norm?"),
        ('hooks = ["gone"]', "wrong", "no hook is named 'gone'", None),
        ("hoks = []", "wrong", "the user's config is wrong: Object contains unknown field `hoks`", "hooks?"),
    ],
)
def test_diagnose_reads_the_user_s_config(site, examine, make_card, config, level, what, hint):
    _install(site, "good", make_card("norm.good"))
    (finding,) = examine(config).findings
    assert (finding.level, finding.what) == (level, what)
    assert hint is None or finding.hint == hint


def test_diagnose_asks_the_hooks_that_the_user_names_and_no_others(site, examine, probed):
    _install(site, "hooks", None, {"hooks": {"one": "Fast", "two": "Fast"}})
    found = examine('hooks = [{hook = "two", options = {a = 1}}]')
    assert (probed["imported"], probed["asked"]) == ({"one", "two"}, {"acme-hooks/two"})
    assert found.is_healthy


def test_diagnose_reports_a_policy_that_is_nonsense(site, examine, make_card, monkeypatch):
    _install(site, "good", make_card("norm.good"))
    monkeypatch.setenv("TRANSOM_STRICT", "perhaps")
    (finding,) = examine().findings
    assert finding.level == "wrong"
    assert "TRANSOM_STRICT" in finding.what


def test_diagnose_says_when_torch_cannot_be_imported(site, monkeypatch, examine):
    monkeypatch.setattr(doctor, "probe", lambda entries, **_: Session(error="it ended the process with 1"))
    (finding,) = examine().findings
    assert (finding.level, finding.what) == ("wrong", "torch cannot be imported: it ended the process with 1")


def test_diagnosis_is_plain_data(site, examine, make_card):
    import json

    _install(site, "good", make_card("norm.good"))
    data = json.loads(json.dumps(examine().to_dict()))
    assert data["is_healthy"] is True
    assert data["environment"]["devices"] == MACHINE["devices"]
    assert data["distributions"][0]["outcomes"][0]["entry"]["name"] == "good"
    assert data["distributions"][0]["promises"][0]["holds"] is True
