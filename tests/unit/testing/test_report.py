from __future__ import annotations

import pytest
from transom.registry.implementation import Implementation
from transom.testing import Case, CaseSkipped, ConformanceError, Report, run_cases
from transom.testing.report import AREAS, run_case

NORM = Implementation("norm", "fast", "acme-norm", "1.0", "acme_norm.parts:Fast")


def _raising(error):
    def check():
        raise error

    return check


def _cases() -> list[Case]:
    return [
        Case("module", "right", "right is right", lambda: None),
        Case("agreement", "wrong", "wrong is right", _raising(ConformanceError("it is wrong"))),
        Case("agreement", "absent", "absence is right", _raising(CaseSkipped("it is absent"))),
    ]


@pytest.mark.parametrize(
    ("check", "status", "detail"),
    [
        (lambda: None, "passed", ""),
        (_raising(ConformanceError("it is wrong")), "failed", "it is wrong"),
        (_raising(CaseSkipped("it is absent")), "skipped", "it is absent"),
    ],
    ids=["passed", "failed", "skipped"],
)
def test_run_case_says_what_came_out(check, status, detail):
    outcome = run_case(Case("module", "x", "x", check))
    assert (outcome.status, outcome.detail) == (status, detail)
    assert outcome.seconds >= 0


def test_run_case_fails_with_a_traceback_when_the_implementation_raises():
    outcome = run_case(Case("module", "x", "x", _raising(KeyError("moon"))))
    assert outcome.status == "failed"
    assert outcome.detail.startswith("Traceback")
    assert outcome.detail.endswith("KeyError: 'moon'")


def test_run_cases_tells_each_outcome_as_it_comes():
    told = []
    report = run_cases(NORM, _cases(), on_outcome=told.append)
    assert report.outcomes == tuple(told)
    assert [outcome.case.name for outcome in told] == ["right", "wrong", "absent"]
    assert [outcome.case.name for outcome in report.failed] == ["wrong"]
    assert [outcome.case.name for outcome in report.skipped] == ["absent"]


@pytest.mark.parametrize(
    ("kept", "conforms"),
    [(["right"], True), (["right", "absent"], True), (["right", "wrong"], False), (["absent"], False), ([], False)],
    ids=["all pass", "some skipped", "one fails", "all skipped", "none"],
)
def test_report_conforms_when_something_passes_and_nothing_fails(kept, conforms):
    report = run_cases(NORM, [case for case in _cases() if case.name in kept])
    assert report.conforms is conforms


def test_report_counts_by_area_in_their_order():
    counts = run_cases(NORM, _cases()).by_area()
    assert list(counts) == [area for area in AREAS if area in counts] == ["agreement", "module"]
    assert counts["agreement"] == {"failed": 1, "skipped": 1}


def test_report_counts_an_area_of_a_slot_of_its_own_last():
    counts = run_cases(NORM, [Case("routing", "even", "loads are even", lambda: None), *_cases()]).by_area()
    assert list(counts) == ["agreement", "module", "routing"]
    assert counts["routing"] == {"passed": 1}


def test_report_as_data():
    import torch
    from transom import __version__

    data = run_cases(NORM, _cases()).to_dict()
    assert data["slot"], data["ref"] == ("norm", "acme-norm/fast")
    assert data["conforms"] is False
    assert data["environment"]["transom"] == __version__
    assert data["environment"]["torch"] == torch.__version__
    wrong = data["cases"][1]
    assert (wrong["case"], wrong["shows"], wrong["status"]) == ("agreement/wrong", "wrong is right", "failed")
    assert wrong["detail"] == "it is wrong"


def test_report_as_markdown_has_a_row_an_area():
    report = run_cases(NORM, _cases())
    lines = report.to_markdown().splitlines()
    assert lines[0] == "### `fast` (norm), acme-norm 1.0: **1 cases fail**"
    assert f"| agreement | {AREAS['agreement']} | 0 | 1 | 1 |" in lines
    assert f"| module | {AREAS['module']} | 1 | 0 | 0 |" in lines
    assert Report(NORM, report.outcomes[:1]).to_markdown().splitlines()[0].endswith("1.0: conforms")
