"""Draws the plan that the front page and the README show; the picture lies beside the pages, for both.

`python docs/_extensions/plan_picture.py` draws it anew.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import ClassVar

import transom
from rich.console import Console
from rich.highlighter import RegexHighlighter
from rich.terminal_theme import TerminalTheme
from rich.theme import Theme

PICTURE = Path(__file__).parents[1] / "plan.svg"
RECIPE = "tiny-llama"
USE = {"core_attention": "flash_attention | torch_dot_product"}

_COLUMNS = 126

_COLOURS = TerminalTheme(
    background=(27, 31, 36),
    foreground=(205, 212, 219),
    normal=[
        (27, 31, 36),
        (235, 110, 100),
        (125, 200, 140),
        (225, 180, 90),
        (110, 165, 240),
        (200, 150, 230),
        (95, 200, 210),
        (205, 212, 219),
    ],
)

# Without fonts from elsewhere: the picture is complete by itself.
_SVG = """<svg viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg" role="img" aria-label="A plan">
  <style>
    .{unique_id}-matrix {{ font-family: ui-monospace, Menlo, Consolas, monospace; font-size: {char_height}px;
      line-height: {line_height}px; }}
    .{unique_id}-title {{ font-size: 18px; font-weight: bold; font-family: sans-serif; }}
    {styles}
  </style>
  <defs><clipPath id="{unique_id}-clip-terminal"><rect width="{terminal_width}" height="{terminal_height}"/></clipPath>
  {lines}
  </defs>
  {chrome}
  <g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
    {backgrounds}
    <g class="{unique_id}-matrix">{matrix}</g>
  </g>
</svg>
"""


class _PlanLines(RegexHighlighter):
    base_style = "plan."
    highlights: ClassVar[list[str]] = [
        r"(?P<tree>^[│├└─ ]+)",
        r" (?P<slot>\w+): (?P<name>\w+) (?P<from>\(.*\))$",
        r"(?P<refused>not [\w/-]+ .*$)",
        r"(?P<asked>asked for .*$)",
        r"^(?P<title>[\w-]+): ",
        r"^(?P<sum>Total|Memory):",
    ]


def picture() -> str:
    """Draw the plan of a recipe as a terminal shows it, in SVG."""
    colours = {"tree": "white dim", "slot": "blue", "name": "bold green", "from": "white dim"}
    colours |= {"refused": "yellow", "asked": "magenta", "title": "bold", "sum": "bold"}
    theme = Theme({f"plan.{name}": style for name, style in colours.items()})
    console = Console(record=True, width=_COLUMNS, file=io.StringIO(), theme=theme, highlighter=_PlanLines())
    for line in str(transom.plan(RECIPE, use=USE)).splitlines():
        console.print(line, markup=False, no_wrap=True, overflow="ellipsis")
    title = " ".join(["transom plan", RECIPE, *(f'--use "{slot}={names}"' for slot, names in USE.items())])
    return console.export_svg(title=title, theme=_COLOURS, code_format=_SVG, unique_id="plan")


if __name__ == "__main__":
    PICTURE.write_text(picture(), encoding="utf-8")
