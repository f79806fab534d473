"""No part of a model makes tensors on another device than that of its input, in training and in decoding."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("pretended_device.py")
NAMES = (
    "mix",
    *(f"train {name}" for name in ("learned positions", "llama", "alibi", "window and sinks")),
    *(f"decode {name}" for name in ("static", "sliding_window", "paged", "int8")),
)


@pytest.fixture(scope="module")
def complaints():
    """What went wrong on a device that is not there, by name; nothing = an empty text."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT)],
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_everything_is_run(complaints):
    assert tuple(complaints) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_models_stay_on_the_device_that_they_are_on(name, complaints):
    assert complaints[name] == ""
