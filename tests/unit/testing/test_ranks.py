"""The two processes that jobs are run on."""

from __future__ import annotations

import importlib
import os
import sys

import pytest
from transom.testing import ConformanceError
from transom.testing.ranks import SIZE, ranks

JOBS = """
import os
import torch
import torch.distributed as dist
from transom.testing import ConformanceError


def total(start, group):
    print("not an answer")
    x = torch.tensor([start + group.rank()])
    dist.all_reduce(x, group=group)
    return group.rank(), group.size(), x.item()


def fail(group):
    if group.rank() == 1:
        raise KeyError("moon")


def refuse(group):
    raise ConformanceError("it is wrong")


def die(group):
    os._exit(3)
"""


@pytest.fixture
def jobs(tmp_path, monkeypatch):
    """Give a module that the ranks can import."""
    (tmp_path / "jobs_of_ranks.py").write_text(JOBS)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield importlib.import_module("jobs_of_ranks")
    ranks().close()
    del sys.modules["jobs_of_ranks"]


@pytest.mark.multiprocess
def test_ranks_run_jobs_one_after_another_in_one_group(jobs):
    pids = [process.pid for process in ranks().processes]
    assert ranks().run(jobs.total, 10) == [(0, SIZE, 21), (1, SIZE, 21)]
    with pytest.raises(ConformanceError, match=r"(?s)^rank 1:\nTraceback.*KeyError: 'moon'\n$"):
        ranks().run(jobs.fail)
    with pytest.raises(ConformanceError, match=r"^rank 0:\nit is wrong\nrank 1:\nit is wrong$"):
        ranks().run(jobs.refuse)
    assert ranks().run(jobs.total, 0) == [(0, SIZE, 1), (1, SIZE, 1)]
    assert [process.pid for process in ranks().processes] == pids
    assert os.getpid() not in pids


@pytest.mark.multiprocess
def test_ranks_start_anew_when_a_process_has_ended(jobs):
    with pytest.raises(ConformanceError, match=r"^a process ended, or did not answer within 300 seconds$"):
        ranks().run(jobs.die)
    assert ranks().run(jobs.total, 1)[0] == (0, SIZE, 3)
