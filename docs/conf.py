"""Sphinx configuration: Markdown pages through MyST, the furo theme; built with ``make docs``, warnings as errors."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_extensions"))

project = "Transom"
author = "The Transom developers"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "slot_pages"]
html_theme = "furo"
html_title = "Transom"
exclude_patterns = ["_build"]
default_role = "literal"
myst_heading_anchors = 3
autodoc_typehints = "none"
# Docstrings name errors by their class alone; they are all on one page.
nitpick_ignore_regex = [("py:exc", r"\w+Error")]
# Attributes of Protocols are of types that other projects document.
nitpick_ignore = [("py:class", "Tensor")]
