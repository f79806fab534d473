"""The conformance kit: what a plugin's author runs to show that an implementation keeps its slot's contract.

Cases are generated from the implementation's card. Run them with pytest, on the command line, or here::

    pytest --transom-impl acme_attn
    transom check acme_attn --conformance

Importing this package loads neither torch nor the registry.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transom.testing.case import Case as Case
    from transom.testing.case import CaseSkipped as CaseSkipped
    from transom.testing.case import ConformanceError as ConformanceError
    from transom.testing.generate import cases_for as cases_for
    from transom.testing.generate import declaration_cases as declaration_cases
    from transom.testing.report import Outcome as Outcome
    from transom.testing.report import Report as Report
    from transom.testing.report import run_cases as run_cases
    from transom.testing.subject import Subject as Subject

__all__ = [
    "Case",
    "CaseSkipped",
    "ConformanceError",
    "Outcome",
    "Report",
    "Subject",
    "cases_for",
    "declaration_cases",
    "run_cases",
]

_HOMES = {
    "Case": "case",
    "CaseSkipped": "case",
    "ConformanceError": "case",
    "Outcome": "report",
    "Report": "report",
    "Subject": "subject",
    "cases_for": "generate",
    "declaration_cases": "generate",
    "run_cases": "report",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'transom.testing' has no attribute {name!r}")
    value = getattr(import_module(f"transom.testing.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return list(__all__)
