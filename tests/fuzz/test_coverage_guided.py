"""The coverage-guided fuzzing runs, where atheris is installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


def test_readers_survive_inputs_that_grow_towards_what_was_not_reached(tmp_path):
    pytest.importorskip("atheris")
    script = Path(__file__).parent / "coverage_guided.py"
    command = [sys.executable, str(script), "-runs=2000", "-seed=1", f"-artifact_prefix={tmp_path}/"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    assert list(tmp_path.iterdir()) == []
