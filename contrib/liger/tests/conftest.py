"""A Liger Kernel to test with: a stand-in of plain torch, or what is left of one that does not load."""

from __future__ import annotations

import importlib
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from transom.registry.verdict import unmet_requirements
from transom_liger.installation import missing

STAND_IN = Path(__file__).parent / "stand_in"


def _forget() -> None:
    for name in [name for name in sys.modules if name.split(".")[0] in ("liger_kernel", "triton")]:
        del sys.modules[name]
    missing.cache_clear()
    unmet_requirements.cache_clear()
    importlib.invalidate_caches()


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A site directory that holds what a test puts there, first on the path."""
    _forget()
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    _forget()


@pytest.fixture
def liger(site: Path) -> Path:
    """A site directory with a Liger Kernel that serves."""
    shutil.copytree(STAND_IN, site, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    install_metadata(site, "liger-kernel", "0.8.5")
    install_metadata(site, "triton", "3.6.0")
    importlib.invalidate_caches()
    return site


def install_metadata(site: Path, name: str, version: str) -> None:
    """Write the metadata of a distribution."""
    info = site / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", encoding="utf-8")
