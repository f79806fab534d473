"""Ctrl-C between two steps instead of within one."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

__all__ = ["StopRequest", "stop_on_signal"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass
class StopRequest:
    """Whether the run was asked to stop."""

    received: bool = False


@contextmanager
def stop_on_signal(notify: Callable[[str], None]) -> Iterator[StopRequest]:
    """Take a first SIGINT or SIGTERM as a request; a second one acts as it would have.

    Args:
        notify: is told once that the run will stop.

    Yields:
        the request. In a thread that is not the main one signals are left alone, and it never comes.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.getsignal(number) for number in _SIGNALS}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def receive(number: int, frame: FrameType | None) -> None:
        request.received = True
        restore()
        notify("stopping after this step; once more to stop at once")

    for number in _SIGNALS:
        signal.signal(number, receive)
    try:
        yield request
    finally:
        restore()
