"""An Apex to test with: a stand-in of plain torch, or what a real but unfit installation leaves on the path."""

from __future__ import annotations

import importlib
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from transom.registry.verdict import unmet_requirements
from transom_apex_norm.installation import missing

STAND_IN = Path(__file__).parent / "stand_in"
NAMES = ("apex", "fused_layer_norm_cuda", "fast_layer_norm")


def _forget() -> None:
    for name in [name for name in sys.modules if name.split(".")[0] in NAMES]:
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
def apex(site: Path) -> Path:
    """A site directory with an Apex that serves."""
    shutil.copytree(STAND_IN, site, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    install_metadata(site, "0.1")
    importlib.invalidate_caches()
    return site


def install_metadata(site: Path, version: str) -> None:
    """Write the metadata of a distribution called apex."""
    info = site / f"apex-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: apex\nVersion: {version}\n", encoding="utf-8")
