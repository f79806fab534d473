"""What was found, and whether it is wrong."""

from __future__ import annotations

import pytest
from transom.cli.findings import summary
from transom.diagnosis.finding import Finding
from transom.registry.scan import Problem


@pytest.mark.parametrize(
    ("kind", "is_wrong"), [("metadata", True), ("card", True), ("shadowed", True), ("name", False)]
)
def test_finding_of_a_problem_is_wrong_unless_it_stops_nothing(kind, is_wrong):
    finding = Finding.of(Problem(kind, "acme", "there", "is so", "trace"))
    assert finding.is_wrong is is_wrong
    assert (finding.distribution, finding.where, finding.what, finding.traceback) == ("acme", "there", "is so", "trace")
    assert str(finding) == "acme: is so (there)"


@pytest.mark.parametrize(
    ("levels", "text"),
    [
        ((), "Nothing is wrong."),
        (("note",), "Nothing is wrong; 1 note."),
        (("wrong", "note", "note"), "1 thing is wrong; 2 notes."),
        (("wrong", "wrong"), "2 things are wrong."),
    ],
)
def test_summary_counts(levels, text):
    assert summary([Finding(level, "acme", "", "x") for level in levels]) == text
