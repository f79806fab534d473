"""What is said of one distribution; whole reports of faulty ones are in tests/discovery."""

from __future__ import annotations

import pytest
from transom.diagnosis import check
from transom.diagnosis.check import (
    check_distribution,
    contract_findings,
    entries_of,
    import_findings,
    requirement_findings,
)
from transom.diagnosis.finding import Finding
from transom.diagnosis.probe import Outcome, Session
from transom.registry.registry import Registry
from transom.registry.scan import Entry, scan

NORM = Entry("transom.norm", "fast", "acme_norm.parts:Fast", "acme-norm", "1.0", "")
HINT = "do it where it is needed, in the module's constructor or forward, and undo it"


def _metadata(name: str, *requires: str) -> str:
    lines = "".join(f"Requires-Dist: {each}\n" for each in requires)
    return f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n{lines}"


@pytest.fixture
def install(site, make_card):
    """Give a function that installs `acme-norm` and returns a registry that sees it alone."""

    def make(*requires: str, card: str | None = "", points=None, **fields):
        text = make_card("norm.fast", **fields) if card == "" else card
        metadata = _metadata("acme-norm", *(requires or ("transom>=0.1",)))
        site.install("acme-norm", points or {"norm": {"fast": "Fast"}}, card=text, metadata=metadata)
        return Registry(scan([str(site.root)]))

    return make


@pytest.fixture
def session(monkeypatch):
    """Give a function that sets what the probe of this test answers."""

    def answer(*outcomes: Outcome, error: str | None = None) -> None:
        monkeypatch.setattr(check, "probe", lambda entries, **_: Session(outcomes, error=error))

    return answer


def test_requirements_that_are_met_are_not_told(install):
    install("transom>=0.1", "torch", "absent; python_version < '3'")
    assert list(requirement_findings("acme-norm")) == []
    assert list(requirement_findings("transom")) == []


def test_requirements_are_told_with_which_side_to_upgrade(install):
    install("transom>=99", "no-such-package>=3; python_version > '3'", "a b c")
    skew, absent, nonsense = requirement_findings("Acme_Norm")
    assert (skew.what, skew.hint) == (
        "requires transom>=99, but 0.1.0 is installed",
        "upgrade Acme_Norm or transom",
    )
    assert absent.what.startswith("requires no-such-package>=3")
    assert absent.hint == "pip install 'no-such-package>=3'"
    assert nonsense.what == "requires 'a b c', which is no requirement"
    assert {each.level for each in (skew, absent, nonsense)} == {"wrong"}


def test_distribution_that_does_not_say_which_transom_it_needs_is_noted(install):
    install("torch")
    (note,) = requirement_findings("acme-norm")
    assert (note.level, note.what) == ("note", "does not say which transom it was written for")
    assert note.hint == 'dependencies = ["transom>=0.1.0"]'


@pytest.mark.parametrize(("api", "hint"), [("0.9", "upgrade acme-norm"), ("2.0", "upgrade transom")])
def test_contract_of_another_version_is_told(install, api, hint):
    registry = install(api=api)
    (finding,) = contract_findings(registry.get("norm", "fast"), registry)
    assert finding.what == f"it is written for norm contract {api}, this transom has 1.0"
    assert (finding.hint, finding.where) == (hint, "[transom.norm] fast")
    assert list(contract_findings(Registry().get("norm", "torch_norm"), Registry())) == []


def test_contract_of_what_declares_nothing_is_not_told(install):
    registry = install(card=None)
    assert list(contract_findings(registry.get("norm", "fast"), registry)) == []


def test_entries_are_those_of_groups_that_there_are(install):
    points = {"norm": {"fast": "Fast"}, "nrom": {"slow": "Fast"}, "hooks": {"h": "Fast"}, "bundles": {"b": "b"}}
    registry = install(points=points)
    assert {(e.group, e.name) for e in entries_of("ACME.norm", registry)} == {
        ("transom.norm", "fast"),
        ("transom.hooks", "h"),
        ("transom.bundles", "b"),
    }
    assert entries_of("acme-other", registry) == ()


def test_import_that_fails_is_wrong_and_keeps_its_traceback():
    failed = Outcome(NORM, "failed", "it cannot be imported: OSError: no disk", "Traceback ...")
    assert list(import_findings([failed], ())) == [
        Finding("wrong", "acme-norm", "[transom.norm] fast", failed.what, traceback="Traceback ...")
    ]


def test_import_that_fails_for_want_of_a_requirement_is_a_note(install):
    registry = install(requires=["no-such-package>=3"])
    failed = Outcome(NORM, "failed", "it cannot be imported: ModuleNotFoundError: No module named 'x'")
    (note,) = import_findings([failed], [registry.get("norm", "fast")])
    assert (note.level, note.what) == (
        "note",
        f"{failed.what}; it requires no-such-package>=3, which is not installed",
    )


def test_complaints_about_what_was_imported_are_wrong():
    outcome = Outcome(NORM, "ok", complaints=("a:B has no forward", "a:B is odd"))
    assert [(f.level, f.what) for f in import_findings([outcome], ())] == [
        ("wrong", "a:B has no forward"),
        ("wrong", "a:B is odd"),
    ]


def test_distribution_without_a_fault_has_nothing_said_of_it(install, session):
    session(Outcome(NORM, "ok"))
    assert check_distribution("acme-norm", install()) == ()


def test_what_an_import_changes_and_prints_is_wrong(install, session):
    session(Outcome(NORM, "ok", changes=("the default dtype of torch, from a to b",), printed="\nhello\nyou\n"))
    changes, prints = check_distribution("acme-norm", install())
    assert (changes.what, changes.hint) == (
        "importing acme_norm.parts changes the default dtype of torch, from a to b",
        HINT,
    )
    assert prints.what == "importing acme_norm.parts prints 'hello'"


def test_card_that_is_wrong_is_told_with_what_was_meant(install, session, make_card):
    session()
    card = make_card("norm.fast").rstrip() + '\nmode = ["infer"]\n'
    (finding,) = (f for f in check_distribution("acme-norm", install(card=card)) if f.where.endswith("transom.toml"))
    assert (finding.level, finding.hint) == ("wrong", "modes?")


def test_distribution_without_a_card_is_told_what_to_write(install, session):
    session(Outcome(NORM, "ok"))
    (finding,) = check_distribution("acme-norm", install(card=None))
    assert finding.what == "declares nothing: there is no card beside acme_norm/__init__.py"
    assert finding.hint == "transom.toml with a section [norm.fast]; see transom schema card"


def test_replacement_and_requirement_that_are_not_here_are_noted(install, session, make_card):
    session(Outcome(NORM, "ok"))
    card = make_card("norm.fast", requires=["no-such-package>=3"], install="pip install it")
    registry = install(card=f'{card}\n[norm.fast.deprecated]\nmessage = "old"\nreplacement = "acme-new/new"\n')
    notes = check_distribution("acme-norm", registry)
    assert [(note.level, note.what) for note in notes] == [
        ("note", "requires no-such-package>=3, which is not installed"),
        ("note", "names a replacement that is not here: acme-new is not installed: no norm named 'new'"),
    ]
    assert notes[0].hint == "pip install it"


def test_bundle_whose_file_is_missing_is_told(install, session):
    session(Outcome(NORM, "ok"))
    registry = install(points="[transom.norm]\nfast = acme_norm.parts:Fast\n[transom.bundles]\nbig = acme_norm:big\n")
    (finding,) = check_distribution("acme-norm", registry)
    assert finding.where == "[transom.bundles] big"
    assert finding.what == "bundle 'big' of acme-norm has no file big.toml in package acme_norm"


def test_process_that_cannot_start_is_told(install, session):
    session(error="it ended the process with 1")
    (finding,) = check_distribution("acme-norm", install())
    assert finding.what == "nothing can be imported: it ended the process with 1"
