"""Every example in a docstring runs and says the truth."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest
import transom


def _modules() -> list[str]:
    return ["transom", *(found.name for found in pkgutil.walk_packages(transom.__path__, "transom."))]


def _examples(name: str) -> list[doctest.DocTest]:
    return [test for test in doctest.DocTestFinder().find(importlib.import_module(name), name) if test.examples]


@pytest.mark.parametrize("name", _modules())
def test_docstring_examples_run(name):
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    report: list[str] = []
    for test in _examples(name):
        runner.run(test, out=report.append)
    assert not runner.failures, "".join(report)


def test_docstring_examples_are_found():
    assert {test.name for test in _examples("transom.slots.slot")} == {"transom.slots.slot.Slot"}
