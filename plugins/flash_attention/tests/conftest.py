"""FlashAttentions to test with: stand-ins of plain matrices, or what a real but unfit installation leaves behind."""

from __future__ import annotations

import importlib
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from transom.registry.verdict import unmet_requirements
from transom_flash_attention import versions

STAND_IN = Path(__file__).parent / "stand_in"
NAMES = ("flash_attn", "fa3_fwd_interface", "flash_math")
DISTRIBUTIONS = {2: ("flash_attn", "2.8.3"), 3: ("fa3_fwd", "0.0.3"), 4: ("flash_attn_4", "4.0.0b36")}

Install = Callable[..., Path]


def forget() -> None:
    """Let everything be found out anew."""
    for name in [name for name in sys.modules if name.split(".")[0] in NAMES]:
        del sys.modules[name]
    versions._import_failure.cache_clear()
    unmet_requirements.cache_clear()
    importlib.invalidate_caches()


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A site directory that holds what a test puts there, first on the path."""
    forget()
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    forget()


@pytest.fixture
def install(site: Path) -> Install:
    """Give a function that installs stand-ins of versions of FlashAttention; `version` is that of the distribution."""

    def make(*numbers: int, version: str | None = None, code: bool = True) -> Path:
        for number in numbers:
            name, known = DISTRIBUTIONS[number]
            info = site / f"{name}-{version or known}.dist-info"
            info.mkdir()
            text = f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: {version or known}\n"
            (info / "METADATA").write_text(text, encoding="utf-8")
            for folder in ("shared", f"fa{number}") if code else ():
                shutil.copytree(
                    STAND_IN / folder, site, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__")
                )
        forget()
        return site

    return make
