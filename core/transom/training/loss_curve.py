"""The loss curve of a run as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from transom.checkpoint.atomic import write_file
from transom.training.metrics import Row

__all__ = ["draw_loss_curve"]


def draw_loss_curve(rows: Sequence[Row], path: Path, *, title: str, bigram: float | None = None) -> bool:
    """Draw training and validation loss over the steps.

    Args:
        rows: of the metrics.
        path: of the PNG file, which is replaced.
        title: of the picture.
        bigram: loss of the bigram model, drawn as a level.

    Returns:
        whether it was drawn: matplotlib may not be installed.

    Raises:
        OutputError: the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    # A figure of its own: pyplot would keep it, and pick a backend for the whole process.
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot(xlabel="step", ylabel="loss (nats a token)", title=title)
    axes.plot([r["step"] for r in rows], [r["loss"] for r in rows], color="tab:blue", alpha=0.6, label="training")
    looks = [row for row in rows if "validation_loss" in row]
    axes.plot(
        [r["step"] for r in looks], [r["validation_loss"] for r in looks], "o-", color="tab:orange", label="validation"
    )
    if bigram is not None:
        axes.axhline(bigram, color="tab:gray", linestyle="--", label="bigram model, validation")
    axes.grid(alpha=0.3)
    axes.legend()
    write_file(path, lambda partial: figure.savefig(partial, format="png"))
    return True
