"""The pages of docs/benchmarks: which tables each shows, and what is said before them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.pictures import draw
from benchmarks.report import page
from benchmarks.table import Table

__all__ = ["PAGES", "write_pages"]

_RATIOS = """
Ratios are medians over the rounds of what was measured in the same round; below 1 is faster than what it is compared
with.
"""
_LLAMA = """
A Llama of 32 million parameters: width 512, 8 layers, 8 heads in 4 groups, MLP of 1408, vocabulary of 8192. `monolith`
is one plain file in torch, `tests/benchmarks/monolith.py`. `transom` is built from the same checkpoint with
`torch_dot_product`; what follows a comma is another implementation in its place, of those that serve here. All
contenders gave the same results before they were timed.
"""
_STEP = """
A step is loss, gradients and AdamW, torch's fused one for everybody: `AdamW(..., fused=True)`. `AdamW not fused` is
the same with what `AdamW(...)` is on a CPU when it is not told.
"""
_COMPILED = """
Tables of what is compiled also have the eager monolith, which the others are compared with.
"""
_READ = """
`weights read` is the bare sequence of matrix products that the new tokens need, by torch's library: the limit of who
calls it. Products of a single row that are compiled may be faster than the library's.
"""
_PRODUCTS = """
`products alone` is the bare sequence of matrix products with weights that nobody can do without, by torch's library, of
a step forward and back. Attention, norms and the rest are on top; other libraries of products may be faster.
"""

PAGES: dict[str, tuple[str, str]] = {
    "forward": ("Forward and prefill", _LLAMA + _PRODUCTS + _RATIOS),
    "training": ("Training step", _LLAMA + _STEP + _PRODUCTS + _RATIOS + _COMPILED),
    "decoding": (
        "Decoding",
        _LLAMA
        + "A prompt of 16 tokens and its greedy continuation over a cache, everything included.\n"
        + _READ
        + _RATIOS
        + _COMPILED,
    ),
    "t5": (
        "Encoder-decoder",
        """
A T5 1.1: width 512, 6 layers in each stack, 8 heads, gated MLP of 1024, vocabulary of 8192. `monolith` is one plain
file, `tests/benchmarks/monolith_t5.py`. All contenders gave the same results before they were timed.
"""
        + _READ
        + _RATIOS,
    ),
    "memory": ("Memory of a training step", _LLAMA + _STEP),
    "building": ("Building and loading", _RATIOS),
    "scaling": (
        "Scaling",
        """
How time grows along one axis while the others stay. The slope is that of a line through the logarithms: 1 is growth in
proportion; less is a part that does not grow; over tokens, attention takes it towards 2.
""",
    ),
    "compilation": ("Graphs and recompilation", "Everybody is compiled, and a sequence grows, or a batch does.\n"),
    "registry": (
        "What the registry costs",
        "Finding what is installed, starting, planning, and nothing in a forward.\n",
    ),
    "gpu": (
        "On a GPU",
        """
A Llama of about a billion parameters in bfloat16: 20 layers, width 2048, MLP of 5632, vocabulary of 32768.
"""
        + _RATIOS,
    ),
}
"""By the name that tables give: title and introduction."""


def write_pages(folder: Path, tables: Sequence[Table]) -> list[Path]:
    """Write every page, with pictures where there is something to draw; links to any of them hold.

    Args:
        folder: of the pages.
        tables: everything that was measured.

    Returns:
        the files.
    """
    written: list[Path] = []
    for name, (title, introduction) in PAGES.items():
        shown = [table for table in tables if table.page == name]
        pictures = draw(folder / name, shown)
        path = folder / f"{name}.md"
        path.write_text(page(title, introduction, shown, pictures[-1].name if pictures else None), encoding="utf-8")
        written += [path, *pictures]
    return written
