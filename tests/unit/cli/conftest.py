"""Plugins for the verbs to list."""

from __future__ import annotations

import pytest
from transom.cli import list as list_verb
from transom.cli import show as show_verb
from transom.registry.registry import Registry


@pytest.fixture
def install(site, monkeypatch):
    """Give `site.install`; the verbs see what it installs, as if this process had just started."""
    registry = Registry()
    monkeypatch.setattr(list_verb, "default_registry", lambda: registry)
    monkeypatch.setattr(show_verb, "default_registry", lambda: registry)
    return site.install
