"""The pytest plugin: ``pytest --transom-impl REF`` adds an implementation's conformance cases to what is collected.

pytest loads this module whenever Transom is installed; it loads nothing else of Transom until the option is given.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from transom.registry.implementation import Implementation
    from transom.testing.case import Case

__all__ = ["ConformanceCase", "ImplementationUnderTest"]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--transom-impl``."""
    parser.getgroup("transom", "conformance of Transom implementations").addoption(
        "--transom-impl",
        action="append",
        default=[],
        metavar="REF",
        help="also run the conformance cases of an implementation: a name, distribution/name, or either behind a slot "
        "and a slash; may be repeated",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Refuse a reference that means nothing before anything is collected."""
    for ref in config.getoption("--transom-impl"):
        _find(ref)


@pytest.hookimpl(tryfirst=True)  # before -k and -m choose among what was collected
def pytest_collection_modifyitems(session: pytest.Session, config: pytest.Config, items: list[pytest.Item]) -> None:
    """Add the cases."""
    for ref in config.getoption("--transom-impl"):
        for implementation in _find(ref):
            parent = ImplementationUnderTest.from_parent(
                session,
                name=implementation.ref,
                nodeid=f"transom:{implementation.slot}/{implementation.ref}",
                path=session.path,
                implementation=implementation,
            )
            items.extend(parent.collect())


class ImplementationUnderTest(pytest.Collector):
    """Collects the cases of one implementation.

    Args:
        implementation: as the registry has it.
        others: what pytest passes to every collector.
    """

    def __init__(self, *, implementation: Implementation, **others: Any) -> None:
        super().__init__(**others)
        self.implementation = implementation

    def collect(self) -> Iterator[ConformanceCase]:
        """Give one item a case."""
        from transom.testing.generate import cases_for

        for case in cases_for(self.implementation):
            yield ConformanceCase.from_parent(self, name=case.id, case=case)


class ConformanceCase(pytest.Item):
    """One case as a test.

    Args:
        case: that it runs.
        others: what pytest passes to every item.
    """

    def __init__(self, *, case: Case, **others: Any) -> None:
        super().__init__(**others)
        self.case = case

    def runtest(self) -> None:
        """Run the case."""
        from transom.testing.case import CaseSkipped

        try:
            self.case.run()
        except CaseSkipped as reason:
            pytest.skip(str(reason))

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """Tell what was expected; only what the implementation itself raised gets a traceback."""
        from transom.testing.case import ConformanceError

        if isinstance(excinfo.value, ConformanceError):
            return f"{self.parent and self.parent.name} should show: {self.case.shows}.\n{excinfo.value}"
        return super().repr_failure(excinfo, style=style)

    def reportinfo(self) -> tuple[Path, int | None, str]:
        """Name the implementation and the case in pytest's headings."""
        return self.path, None, self.nodeid


def _find(ref: str) -> tuple[Implementation, ...]:
    from transom.errors import TransomError
    from transom.registry.find import find
    from transom.registry.registry import default_registry

    try:
        return find(default_registry(), ref, asked_by="--transom-impl")
    except TransomError as error:
        raise pytest.UsageError(str(error)) from error
