"""The benchmarks are a package beside the tests, which nothing installs."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2]))
