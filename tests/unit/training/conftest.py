"""The toy model, registered under its name."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import transom


def _load_toy():
    spec = importlib.util.spec_from_file_location("toy", Path(__file__).with_name("toy.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def toy_module():
    """Give the module toy.py, which tests cannot import."""
    return _load_toy()


@pytest.fixture
def toy_spec(toy_module, tmp_path):
    """Give a function that makes a spec of the toy; keywords go into its train section."""
    data = toy_module.write_text(tmp_path / "text.txt")
    with transom.override("model", "toy", toy_module.Toy):
        yield lambda **train: toy_module.make_spec(data, **train)
