"""Sphinx configuration: Markdown pages through MyST, the furo theme; built with ``make docs``, warnings as errors."""

project = "Transom"
author = "The Transom developers"
extensions = ["myst_parser"]
html_theme = "furo"
html_title = "Transom"
exclude_patterns = ["_build"]
myst_heading_anchors = 3
