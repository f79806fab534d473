"""A comparison as a picture."""

from __future__ import annotations

import importlib
from pathlib import Path

from transom.checkpoint.atomic import write_file
from transom.comparison.compare import Comparison
from transom.errors import InputError, OutputError

__all__ = ["check_picture", "draw_comparison"]


def check_picture(path: Path) -> None:
    """Refuse a picture that could not be drawn, before anything is measured for it.

    Args:
        path: of the picture.

    Raises:
        InputError: matplotlib is not installed, or it does not know the format.
        OutputError: its folder is not there.
    """
    try:
        importlib.import_module("matplotlib")
    except ImportError as error:
        raise InputError("a picture needs matplotlib.", hint="pip install 'transom[plot]'") from error
    if path.suffix not in (".png", ".svg", ".pdf"):
        raise InputError(f"{path} is no picture that can be drawn.", available=[".png", ".svg", ".pdf"], path=path)
    if not path.parent.is_dir():
        raise OutputError(f"cannot write {path}: its folder is not there.", hint=f"mkdir {path.parent}", path=path)


def draw_comparison(found: Comparison, path: Path) -> None:
    """Draw the times of all implementations over the shapes.

    Args:
        found: the comparison.
        path: of the picture, which is replaced; its suffix says the format: ``.png``, ``.svg`` or ``.pdf``.

    Raises:
        InputError: matplotlib is not installed, or it does not know the format.
        OutputError: the file cannot be written.
    """
    check_picture(path)
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    figure = Figure(figsize=(8, 5), layout="constrained")
    timed = "forward and backward" if found.mode == "train" else "forward"
    how = f"{found.device}, {found.dtype}{', compiled' if found.compiled else ''}"
    axes = figure.add_subplot(ylabel=f"{timed}, ms", title=f"{found.slot} on {how}")
    width = 0.8 / max(len(outcomes) for outcomes in found.outcomes.values())
    labels: dict[str, str] = {}
    mistaken = found.mistakes()
    for position, outcomes in enumerate(found.outcomes.values()):
        for number, outcome in enumerate(outcomes):
            colour = labels.setdefault(outcome.name, f"C{number}")
            axes.bar(position + number * width, 1000 * outcome.counted.median, width, color=colour)
    axes.set_xticks(range(len(found.outcomes)), [f"{rows} x {tokens}" for rows, tokens in found.outcomes])
    texts = [f"{name} (computes something else)" if name in mistaken else name for name in labels]
    axes.legend([Patch(color=colour) for colour in labels.values()], texts)
    write_file(path, lambda partial: figure.savefig(partial, format=path.suffix.removeprefix(".")))
