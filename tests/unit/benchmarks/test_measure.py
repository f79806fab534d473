from __future__ import annotations

import ctypes
from collections import Counter
from types import SimpleNamespace

from benchmarks.measure import give_memory_back, interleaved, reason, usable


class FakeClock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def test_interleaved_lets_contenders_take_turns_and_begin_in_turn():
    clock, order = FakeClock(), []

    def step(name, seconds):
        def run():
            order.append(name)
            clock.now += seconds

        return run

    taken = interleaved({"a": step("a", 1.0), "b": step("b", 2.0), "c": step("c", 4.0)}, rounds=3, clock=clock)
    assert order == ["a", "b", "c", "b", "c", "a", "c", "a", "b"]
    assert taken == {"a": (1.0,) * 3, "b": (2.0,) * 3, "c": (4.0,) * 3}


def test_interleaved_prepares_for_each_step_outside_of_its_time():
    clock, order = FakeClock(), []

    def before():
        order.append("before")
        clock.now += 100.0

    def step():
        order.append("step")
        clock.now += 1.0

    assert interleaved({"a": step}, rounds=2, clock=clock, before=before) == {"a": (1.0, 1.0)}
    assert order == ["before", "step"] * 2


def test_give_memory_back_may_be_called_whatever_the_library(monkeypatch):
    give_memory_back()
    asked = []
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace(malloc_trim=asked.append))
    give_memory_back()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace())
    give_memory_back()
    assert asked == [0]


def test_interleaved_of_nobody_is_nothing():
    assert interleaved({}, rounds=3, clock=FakeClock()) == {}


def test_usable_takes_out_who_fails_with_the_reason():
    calls = Counter()

    def fine():
        calls["fine"] += 1
        return 7

    def broken():
        raise KeyError("\nno such thing\nand more")

    running, absent, results = usable({"fine": fine, "broken": broken})
    assert (list(running), results, calls["fine"]) == (["fine"], {"fine": 7}, 1)
    assert absent == {"broken": "KeyError: '\\nno such thing\\nand more'"}


def test_reason_is_one_short_line():
    assert reason(ValueError("\n\n  what happened\nwhere")) == "ValueError: what happened"
    assert len(reason(ValueError("x" * 500))) == 200
