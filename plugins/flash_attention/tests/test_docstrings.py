"""Every example in a docstring runs and says the truth."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest
import transom_flash_attention as package

# Those that call into FlashAttention, or only say what is told to it, have nothing to show.
WITHOUT = {
    f"transom_flash_attention.{name}" for name in ("attention", "call", "fa2", "fa3", "fa4", "operators", "versions")
}
MODULES = [
    found.name for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}.") if found.name not in WITHOUT
]


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples_run(name: str) -> None:
    report: list[str] = []
    runner = doctest.DocTestRunner()
    for test in doctest.DocTestFinder().find(importlib.import_module(name), name):
        runner.run(test, out=report.append)
    assert runner.tries > 0
    assert not runner.failures, "".join(report)
