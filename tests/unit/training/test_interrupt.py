from __future__ import annotations

import os
import signal
import threading

import pytest
from transom.training.interrupt import stop_on_signal


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_first_signal_is_a_request(number):
    notes = []
    with stop_on_signal(notes.append) as stop:
        assert not stop.received
        os.kill(os.getpid(), number)
        assert stop.received
    assert notes == ["stopping after this step; once more to stop at once"]


def test_a_second_signal_interrupts_at_once():
    # A process started in the background ignores SIGINT; this test is about one that does not.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with stop_on_signal(lambda text: None):
            os.kill(os.getpid(), signal.SIGINT)
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("send", [True, False])
def test_handlers_are_as_before_afterwards(send):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with stop_on_signal(lambda text: None):
        assert signal.getsignal(signal.SIGTERM) is not before[1]
        if send:
            os.kill(os.getpid(), signal.SIGTERM)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_signals_are_left_alone_in_another_thread():
    before = signal.getsignal(signal.SIGINT)
    found = []

    def work():
        with stop_on_signal(lambda text: None) as stop:
            found.extend([stop.received, signal.getsignal(signal.SIGINT) is before])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [False, True]
