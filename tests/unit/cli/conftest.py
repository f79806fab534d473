"""Installed plugins for the verbs to list: real metadata, cards and modules in a directory on the path."""

from __future__ import annotations

import sys

import pytest
from transom.cli import list as list_verb
from transom.cli import show as show_verb
from transom.registry.registry import Registry


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Give a function that installs a plugin: `install("acme-norm", {"norm": "fast"}, card="...", code="...")`.

    The verbs see it, whatever else is installed, as if this process had just started.
    """
    monkeypatch.syspath_prepend(tmp_path)
    registry = Registry()
    monkeypatch.setattr(list_verb, "default_registry", lambda: registry)
    monkeypatch.setattr(show_verb, "default_registry", lambda: registry)

    def make(distribution: str, names: dict[str, str], *, card: str | None = None, code: str = "") -> None:
        package = distribution.replace("-", "_")
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text(code)
        if card is not None:
            (tmp_path / package / "transom.toml").write_text(card)
        metadata = tmp_path / f"{package}-2.0.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 2.0\n")
        points = "".join(f"[transom.{slot}]\n{name} = {package}:Made\n" for slot, name in names.items())
        (metadata / "entry_points.txt").write_text(points)
        monkeypatch.delitem(sys.modules, package, raising=False)

    return make
