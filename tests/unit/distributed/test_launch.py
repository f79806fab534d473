from __future__ import annotations

from datetime import timedelta

import pytest
import torch.distributed as dist
from transom.distributed import launch
from transom.distributed.agreement import together, told_by_first
from transom.distributed.launch import as_one_of, is_first, launched, restarts
from transom.distributed.sizes import ParallelSizes
from transom.errors import ParallelError


def test_a_process_without_torchrun_is_alone_and_first(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "TORCHELASTIC_RESTART_COUNT"):
        monkeypatch.delenv(name, raising=False)
    assert (launched(), is_first(), restarts()) == (1, True, 0)


def test_torchrun_says_how_many_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert (launched(), is_first(), restarts()) == (4, False, 1)


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ("gloo: Connection closed by peer [127.0.0.1]:1\nmore", ParallelError),
        ("mat1 and mat2 do not fit", RuntimeError),
    ],
)
def test_a_rank_that_is_gone_is_told_and_other_errors_pass(
    monkeypatch: pytest.MonkeyPatch, said: str, kind: type[Exception]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError(said)

    monkeypatch.setattr(launch, "_join", fail)
    with pytest.raises(kind) as caught, as_one_of(ParallelSizes(dp=2)):
        pass
    if isinstance(caught.value, ParallelError):
        assert caught.value.what == "another rank is gone, or does not answer."
        assert caught.value.failed == ("gloo: Connection closed by peer [127.0.0.1]:1",)
    assert not dist.is_initialized()


def test_groups_wait_no_longer_than_everything_does(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: dict[str, timedelta] = {}

    class Group:
        def __init__(self, name: str) -> None:
            self.name = name

        def set_timeout(self, timeout: timedelta) -> None:
            waits[self.name] = timeout

        def get_group(self) -> Group:
            return self

    class Mesh:
        data = Group("data")
        group = staticmethod(Group)

    monkeypatch.setattr(launch, "_join", lambda *_: None)
    monkeypatch.setattr(launch.ParallelMesh, "start", lambda *_: Mesh())
    limit = timedelta(seconds=7)
    with as_one_of(ParallelSizes(), timeout=limit):
        assert waits == dict.fromkeys(["pp", "dp", "cp", "tp", "data"], limit)


def test_one_process_agrees_with_itself() -> None:
    with pytest.raises(KeyError, match="as it is"), together(None):
        raise KeyError("as it is")
    assert told_by_first({"a": 1}, None) == {"a": 1}
