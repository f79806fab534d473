"""The metrics of a run for TensorBoard, where it is installed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final

from transom.checkpoint.atomic import output_error
from transom.training.metrics import Row

__all__ = ["EventFiles", "open_event_files"]

_TAGS = {
    "loss": "loss/training",
    "validation_loss": "loss/validation",
    "learning_rate": "learning_rate",
    "gradient_norm": "gradient_norm",
    "tokens_per_second": "tokens_per_second",
}


@final
class EventFiles:
    """Writes rows as scalars.

    Args:
        writer: torch's ``SummaryWriter``.
        folder: to which it writes.
    """

    def __init__(self, writer: Any, folder: Path) -> None:
        self._writer, self._folder = writer, folder

    def append(self, row: Row) -> None:
        """Write a row.

        Raises:
            OutputError: the disk is full or refuses.
        """
        with self._telling():
            for name, tag in _TAGS.items():
                if name in row:
                    self._writer.add_scalar(tag, row[name], row["step"])

    def close(self) -> None:
        """Write what is buffered.

        Raises:
            OutputError: the disk is full or refuses.
        """
        with self._telling():
            self._writer.close()

    @contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise output_error(self._folder, error) from error


def open_event_files(folder: Path, *, step: int) -> EventFiles | None:
    """Start writing events.

    Args:
        folder: for the files, which TensorBoard reads.
        step: steps already done; later ones, of a run that was killed, are hidden.

    Returns:
        the writer, or `None` when TensorBoard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return EventFiles(SummaryWriter(str(folder), purge_step=step + 1 if step else None), folder)
