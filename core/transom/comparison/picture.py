"""A comparison as a picture."""

from __future__ import annotations

from pathlib import Path

from transom.checkpoint.atomic import write_file
from transom.comparison.compare import Comparison
from transom.errors import InputError

__all__ = ["draw_comparison"]


def draw_comparison(found: Comparison, path: Path) -> None:
    """Draw the times of all implementations over the shapes.

    Args:
        found: the comparison.
        path: of the picture, which is replaced; its suffix says the format: ``.png``, ``.svg`` or ``.pdf``.

    Raises:
        InputError: matplotlib is not installed, or it does not know the format.
        OutputError: the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.patches import Patch
    except ImportError as error:
        raise InputError("a picture needs matplotlib.", hint="pip install 'transom[plot]'") from error
    kind = path.suffix.removeprefix(".")
    if kind not in ("png", "svg", "pdf"):
        raise InputError(f"{path} is no picture that can be drawn.", available=[".png", ".svg", ".pdf"], path=path)
    figure = Figure(figsize=(8, 5), layout="constrained")
    timed = "forward and backward" if found.mode == "train" else "forward"
    axes = figure.add_subplot(ylabel=f"{timed}, ms", title=f"{found.slot} on {found.device}, {found.dtype}")
    width = 0.8 / max(len(outcomes) for outcomes in found.outcomes.values())
    labels: dict[str, str] = {}
    for position, outcomes in enumerate(found.outcomes.values()):
        for number, outcome in enumerate(outcomes):
            colour = labels.setdefault(outcome.name, f"C{number}")
            axes.bar(position + number * width, 1000 * outcome.counted.median, width, color=colour)
    axes.set_xticks(range(len(found.outcomes)), [f"{rows} x {tokens}" for rows, tokens in found.outcomes])
    axes.legend([Patch(color=colour) for colour in labels.values()], labels)
    write_file(path, lambda partial: figure.savefig(partial, format=kind))
