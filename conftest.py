"""What holds for every test, those of the plugins included."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# How fast the machine is today says nothing about the code.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")

# Whose tests have to reach every line of theirs. Tracing takes others twice their time, most of it in libraries.
MEASURED = [Path(__file__).parent / "tests" / "unit" / room for room in ("registry", "specs")]


@pytest.hookimpl(trylast=True)  # items of the conformance kit come with another hook
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Measure coverage, where it is asked for, by the tests of the rooms that promise it."""
    if not config.pluginmanager.hasplugin("_cov"):
        return
    for item in items:
        if not any(item.path.is_relative_to(room) for room in MEASURED):
            item.add_marker("no_cover")
