"""Ranks that share the work compute what one does; no time is looked at here."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from benchmarks.contenders.contender import DifferentFunctionError
from benchmarks.settings import Settings
from benchmarks.suites import ranks
from benchmarks.suites.ranks import over_ranks
from benchmarks.table import Table

WAYS = ("data parallel", "tensor parallel")


class FakeRanks:
    """Ranks that answer without doing anything: each took as many seconds as its number says, from 1 on."""

    loss = 1.0

    def __init__(self, path: tuple[str, ...], size: int) -> None:
        self.size = size

    def run(self, function: Any, rounds: int) -> list[Any]:
        losses = {way: torch.tensor(self.loss) for way in WAYS}
        return [(losses, {way: (float(rank + 1),) * rounds for way in WAYS}) for rank in range(self.size)]

    def close(self) -> None:
        """Do nothing."""


def test_over_ranks_adds_up_what_all_ranks_took(monkeypatch):
    monkeypatch.setattr(ranks, "Ranks", FakeRanks)
    monkeypatch.setattr(ranks, "_whole", lambda count: torch.tensor(1.0))
    table = over_ranks(Settings(rounds=2))
    assert table.samples == {way: {"1": [1.0, 1.0], "2": [3.0, 3.0], "4": [10.0, 10.0]} for way in WAYS}
    assert (table.axis, table.page) == ("ranks", "scaling")
    assert Table.from_json(table.to_json()) == table
    assert table.taken == {"settings": "2 rounds, time of the processor, 1 thread a rank"}


def test_over_ranks_refuses_ranks_that_compute_something_else(monkeypatch):
    monkeypatch.setattr(ranks, "Ranks", FakeRanks)
    monkeypatch.setattr(ranks, "_whole", lambda count: torch.tensor(0.5))
    with pytest.raises(DifferentFunctionError, match=r"^loss, data parallel: 1 ranks differs from whole by 1\.0e\+00$"):
        over_ranks(Settings(rounds=1, small=True))


@pytest.mark.multiprocess
def test_two_ranks_take_the_step_of_one_in_both_ways():
    seconds = ranks._together(2, 1)
    assert {way: [each > 0 for each in found] for way, found in seconds.items()} == {way: [True] for way in WAYS}
