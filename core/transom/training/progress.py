"""What a person sees of a run: a progress bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

from typing import IO, Protocol, final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from transom.training.metrics import Row

__all__ = ["LineReporter", "ProgressBar", "Reporter", "SilentReporter", "reporter_for"]


class Reporter(Protocol):
    """Is told how a run goes."""

    def start(self, name: str, step: int, steps: int) -> None:
        """Begin: `step` of `steps` are done."""
        ...

    def advance(self, step: int) -> None:
        """One more step is done."""
        ...

    def row(self, row: Row) -> None:
        """Say what was measured."""
        ...

    def note(self, text: str) -> None:
        """Something happened that a person should know, in one line."""
        ...

    def stop(self) -> None:
        """End, whether the run is complete or not."""
        ...


@final
class SilentReporter:
    """Says nothing."""

    def start(self, name: str, step: int, steps: int) -> None:
        """Say nothing."""

    def advance(self, step: int) -> None:
        """Say nothing."""

    def row(self, row: Row) -> None:
        """Say nothing."""

    def note(self, text: str) -> None:
        """Say nothing."""

    def stop(self) -> None:
        """Say nothing."""


@final
class LineReporter:
    """Writes a line for each row of metrics.

    Args:
        stream: where to.
    """

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._steps = 0

    def start(self, name: str, step: int, steps: int) -> None:
        """Say what is being trained."""
        self._steps = steps
        self.note(f"training {name}: {steps} steps" + (f", {step} done" if step else ""))

    def advance(self, step: int) -> None:
        """Say nothing: the rows say enough."""

    def row(self, row: Row) -> None:
        """Write one line."""
        self.note(f"step {row['step']}/{self._steps}  {_describe(row)}")

    def note(self, text: str) -> None:
        """Write one line."""
        print(text, file=self._stream, flush=True)

    def stop(self) -> None:
        """Say nothing: the rows said enough."""


@final
class ProgressBar:
    """Draws a bar with the latest loss, validation loss and speed.

    Args:
        console: where to.
    """

    def __init__(self, console: Console) -> None:
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[latest]}"),
            TimeRemainingColumn(),
            console=console,
        )
        self._task = self._bar.add_task("", start=False, latest="")
        self._latest: Row = {}

    def start(self, name: str, step: int, steps: int) -> None:
        """Show the bar."""
        self._bar.update(self._task, description=name, total=steps, completed=step)
        self._bar.start_task(self._task)
        self._bar.start()

    def advance(self, step: int) -> None:
        """Move the bar."""
        self._bar.update(self._task, completed=step)

    def row(self, row: Row) -> None:
        """Show what was measured; an older validation loss stays until there is a new one."""
        self._latest |= row
        self._bar.update(self._task, latest=_describe(self._latest))

    def note(self, text: str) -> None:
        """Write a line above the bar."""
        self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def stop(self) -> None:
        """Leave the bar as it is."""
        self._bar.stop()


def reporter_for(stream: IO[str]) -> Reporter:
    """Give a progress bar for a terminal, and plain lines for anything else."""
    console = Console(file=stream)
    return ProgressBar(console) if console.is_terminal else LineReporter(stream)


def _describe(row: Row) -> str:
    validation = f"  validation {row['validation_loss']:.4f}" if "validation_loss" in row else ""
    return f"loss {row['loss']:.4f}{validation}  {row['tokens_per_second']:,.0f} tokens/s"
