"""A Transformer Engine to test with: a stand-in of plain torch, or what a real but unfit installation leaves behind."""

from __future__ import annotations

import importlib
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from transom.registry.implementation import Implementation
from transom.registry.verdict import unmet_requirements
from transom_te_linear.installation import import_failure

STAND_IN = Path(__file__).parent / "stand_in"
DISTRIBUTIONS = ("transformer_engine", "transformer_engine_torch", "transformer_engine_cu13")

PLACES = {
    "column_linear": ("te_linear", "linear:TeColumnLinear"),
    "row_linear": ("te_linear", "linear:TeRowLinear"),
    "norm": ("te_norm", "norm:TeNorm"),
    "norm_linear": ("te_layernorm_linear", "norm_linear:TeNormLinear"),
    "activation": ("te_activation", "activation:TeActivation"),
    "core_attention": ("te_attention", "attention:TeAttention"),
    "mlp": ("te_layernorm_mlp", "mlp:TeNormMLP"),
}
"""What fills each slot, and where it is."""

Install = Callable[..., Path]


def _forget() -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "transformer_engine"]:
        del sys.modules[name]
    import_failure.cache_clear()
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
def install(site: Path) -> Install:
    """Give a function that installs distributions, the first with the stand-in's code, or with other code."""

    def make(*names: str, version: str = "2.20.2", code: str | None = None) -> Path:
        for name in names or DISTRIBUTIONS:
            info = site / f"{name}-{version}.dist-info"
            info.mkdir()
            text = f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: {version}\n"
            (info / "METADATA").write_text(text, encoding="utf-8")
        if code is None:
            shutil.copytree(STAND_IN, site, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            (site / "transformer_engine" / "pytorch").mkdir(parents=True)
            (site / "transformer_engine" / "__init__.py").write_text("")
            (site / "transformer_engine" / "pytorch" / "__init__.py").write_text(code)
        _forget()
        return site

    return make


def implementation_on_the_cpu(slot: str) -> Implementation:
    """Give an implementation with a card that declares the CPU and float32, where the stand-in runs."""
    name, value = PLACES[slot]
    found = Implementation(slot, name, "transom-te-linear", "0.1.0", f"transom_te_linear.{value}")
    dtypes = ("float32", *(dtype for dtype in found.card.dtypes if dtype != "float32"))
    card = msgspec.structs.replace(
        found.card, devices=("cpu",), min_compute_capability=None, dtypes=dtypes, requires=()
    )
    found.__dict__["_card"] = (card, None)
    return found


@pytest.fixture
def on_the_cpu() -> Callable[[str], Implementation]:
    """Give `implementation_on_the_cpu`."""
    return implementation_on_the_cpu
