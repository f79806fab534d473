"""One thing that an implementation must do, and the check that shows whether it does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType

__all__ = ["Case", "CaseSkipped", "ConformanceError", "beyond_kit", "isolated"]

_SEED = 20_170_612


class ConformanceError(AssertionError):
    """An implementation does not do what its slot's contract or its card says."""


class CaseSkipped(Exception):  # noqa: N818 - it is no error
    """A case cannot be run here, or does not apply; the text says why."""


@dataclass(frozen=True)
class Case:
    """One thing that an implementation must do.

    Args:
        area: what kind of promise it checks: ``"card"``, ``"agreement"``, ``"state"`` ...
        name: of the case within its area.
        shows: what is shown when it passes: a sentence, or what was passed.
        check: raises `ConformanceError` when it fails, `CaseSkipped` when it does not apply.
        dtype: of parameters and activations, where that matters.
        device: device type that it runs on, where that matters.
        unavailable: why it cannot be run on this machine.

    Example:
        >>> Case("agreement", "causal", "a query sees no later key", lambda: None, dtype="float32", device="cpu").id
        'agreement/causal[cpu-float32]'
    """

    area: str
    name: str
    shows: str
    check: Callable[[], None]
    dtype: str | None = None
    device: str | None = None
    unavailable: str | None = None

    @property
    def id(self) -> str:
        """Area, name, and what it runs on: unique among the cases of an implementation."""
        where = "-".join(part for part in (self.device, self.dtype) if part)
        return f"{self.area}/{self.name}" + (f"[{where}]" if where else "")

    def run(self) -> None:
        """Run the check, always from the same random state; the process's own is left as it was.

        Raises:
            ConformanceError: it failed.
            CaseSkipped: it cannot be run here.
        """
        if self.unavailable is not None:
            raise CaseSkipped(self.unavailable)
        try:
            with isolated():
                self.check()
        except Exception as error:
            if isinstance(error, ConformanceError):
                error.add_note(f"should show: {self.shows}")
            error.__traceback__ = beyond_kit(error.__traceback__)
            raise


def beyond_kit(trace: TracebackType | None) -> TracebackType | None:
    """Leave out the frames of the kit that come first: one mistake then looks alike in whatever case shows it.

    Args:
        trace: of what a case raised.

    Returns:
        what is left; `None` where it was the kit that raised.
    """
    while trace is not None and trace.tb_frame.f_globals.get("__name__", "").startswith("transom.testing."):
        trace = trace.tb_next
    return trace


@contextmanager
def isolated() -> Iterator[None]:
    """Run a block from a fixed random state, and with torch's global settings put back after it."""
    import torch

    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    dtype = torch.get_default_dtype()
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(_SEED)
        try:
            yield
        finally:
            torch.set_default_dtype(dtype)
