"""The page on testing plugins says the truth."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from transom.registry.implementation import Implementation
from transom.testing import cases_for
from transom.testing.closeness import TOLERANCES
from transom.testing.report import AREAS, run_case

PAGE = (Path(__file__).parents[3] / "docs" / "how-to" / "test-a-plugin.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def _block(start: str) -> str:
    (text,) = [text for _, text in BLOCKS if text.startswith(start)]
    return text


@pytest.fixture
def acme_norm(tmp_path, monkeypatch):
    """Write the norm of the page to disk."""
    for name in ("__init__.py", "transom.toml"):
        path = tmp_path / "acme_norm" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(_block(f"# acme-norm/acme_norm/{name}"))
    monkeypatch.syspath_prepend(str(tmp_path))
    yield Implementation("norm", "acme_norm", "acme-norm", "0.1.0", "acme_norm:AcmeNorm")
    sys.modules.pop("acme_norm", None)


def _words(text: str) -> str:
    """Replace what differs between processors: the digits behind the first."""
    return re.sub(r"(\d)\.\d+", r"\1.", text)


def test_example_of_a_failure_is_what_the_kit_says(acme_norm):
    head, shows, detail = _block("failed agreement/").splitlines()
    (case,) = [case for case in cases_for(acme_norm) if case.id == head.split()[1]]
    outcome = run_case(case)
    assert (outcome.status, f"  should show: {case.shows}") == ("failed", shows)
    assert _words(f"  {outcome.detail}") == _words(detail)


def test_example_fails_in_no_other_way(acme_norm):
    outcomes = [
        run_case(case) for case in cases_for(acme_norm) if case.area in ("card", "refused", "declared", "agreement")
    ]
    failed = {outcome.case.name for outcome in outcomes if outcome.status == "failed"}
    assert failed == {"rmsnorm_small", "rmsnorm_eps", "rmsnorm_zeros"}


def test_example_from_python_runs():
    exec(_block("from transom.registry.registry"), {})


def test_example_of_a_test_runs(acme_norm, monkeypatch):
    from transom.testing import CaseSkipped

    monkeypatch.setattr("transom.list_implementations", lambda: (acme_norm,))
    names: dict = {}
    exec(_block("# test_conformance.py"), names)
    readable, on_cuda = (next(c for c in names["CASES"] if c.id == name) for name in ("card/readable", "card/cuda"))
    names["test_conformance"](readable)
    with pytest.raises((CaseSkipped, pytest.skip.Exception)):
        names["test_conformance"](on_cuda)


def test_areas_are_those_of_the_kit():
    shown = dict(re.findall(r"^\| `(\w+)` \| (\D+?) \|$", PAGE, re.MULTILINE))
    assert shown == dict(AREAS)


def test_tolerances_are_those_of_the_kit():
    shown = re.findall(r"^  \| `(\w+)` \| (\S+) \| (\S+) \|$", PAGE, re.MULTILINE)
    assert shown == [(dtype, f"{one:g}", f"{other:g}") for dtype, (one, other) in TOLERANCES.items()]
