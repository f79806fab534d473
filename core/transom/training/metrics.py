"""The metrics of a run: one JSON object a line, in a file that only grows."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import final

from transom.checkpoint.atomic import output_error, write_file

__all__ = ["Metrics", "Row"]

Row = dict[str, int | float]
"""What is known of a step: ``step``, ``loss`` (of that step alone), ``learning_rate``, ``gradient_norm``, ``tokens``
and ``seconds`` of training (both from the start), ``tokens_per_second`` (since the row before), ``validation_loss``
where it was measured, and what `transom.transformer.auxiliary_loss.auxiliary_losses` gives: of the last pass of the
first rank."""


@final
class Metrics:
    """A file of rows.

    Args:
        path: of the file; it need not exist.
        writes: otherwise rows are read and none is ever written.
    """

    def __init__(self, path: Path, *, writes: bool = True) -> None:
        self.path, self.writes = path, writes

    def rows(self) -> list[Row]:
        """Read every complete row; a last line that was cut off by a kill is left out."""
        if not self.path.exists():
            return []
        lines = self.path.read_text(encoding="utf-8").split("\n")
        return [json.loads(line) for line in lines[:-1]]

    def append(self, row: Row) -> None:
        """Write a row.

        Raises:
            OutputError: it cannot be written.
        """
        if not self.writes:
            return
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row, allow_nan=False) + "\n")
        except OSError as error:
            raise output_error(self.path, error) from error

    def rewind(self, step: int) -> None:
        """Drop the rows after a step, which will be written again.

        Raises:
            OutputError: the file cannot be replaced.
        """
        if not self.writes:
            return
        kept = [json.dumps(row) + "\n" for row in self.rows() if row["step"] <= step]
        write_file(self.path, "".join(kept).encode())

    def flush_to_disk(self) -> None:
        """Return once every row would survive a loss of power."""
        if self.writes and self.path.exists():
            with self.path.open("rb") as file:
                os.fsync(file.fileno())
