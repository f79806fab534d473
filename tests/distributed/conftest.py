"""Processes that several tests share, and what they run."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

# The processes import what they run from here.
sys.path.insert(0, str(Path(__file__).parent))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what takes minutes unless it is asked for: ``-m slow``."""
    if "slow" in config.option.markexpr:
        return
    for item in items:
        if item.path.parent == Path(__file__).parent and item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.skip(reason="takes minutes: -m slow"))
