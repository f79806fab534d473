"""One thing that an implementation must do, and the check that shows whether it does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

__all__ = ["Case", "CaseSkipped", "ConformanceError", "isolated"]

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
        shows: what is shown when it passes, a sentence.
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
        with isolated():
            self.check()


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
