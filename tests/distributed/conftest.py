"""Processes that several tests share, and what they run."""

from __future__ import annotations

import sys
from pathlib import Path

# The processes import what they run from here.
sys.path.insert(0, str(Path(__file__).parent))
