"""Starting as one of the processes that ``torchrun`` started."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from transom.distributed.mesh import DIMENSIONS, ParallelMesh
from transom.distributed.sizes import ParallelSizes
from transom.errors import ParallelError

__all__ = ["as_one_of", "is_first", "launched", "restarts"]

_TIMEOUT = timedelta(minutes=10)
_LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Timed out", "timed out", "Timeout")


def launched() -> int:
    """Say how many processes ``torchrun`` started, this one among them; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Whether this is the first of them, which alone reports and writes what is common to all."""
    return os.environ.get("RANK", "0") == "0"


def restarts() -> int:
    """Say how many times ``torchrun --max-restarts`` has started these processes again."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


@contextmanager
def as_one_of(sizes: ParallelSizes, device: str = "cpu", timeout: timedelta = _TIMEOUT) -> Iterator[ParallelMesh]:
    """Join the other processes, for as long as the context lasts.

    Args:
        sizes: whose product is the number of processes.
        device: type of the devices: on ``"cuda"`` each process takes the one of its local rank.
        timeout: after which a rank that waits for another gives up.

    Yields:
        this rank's mesh.

    Raises:
        ParallelError: another rank is gone, or does not answer.
    """
    if device.startswith("cuda"):
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    backend = "cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo"
    try:
        _join(backend, timeout)
        mesh = ParallelMesh.start(sizes, device.partition(":")[0])
        _limit(mesh, timeout)
        yield mesh
    except RuntimeError as error:
        if not any(sign in str(error) for sign in _LOST):
            raise
        raise ParallelError(
            "another rank is gone, or does not answer.",
            failed=[str(error).splitlines()[0]],
            hint="its own output says why; --resume goes on from the last checkpoint",
        ) from error
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _limit(mesh: ParallelMesh, timeout: timedelta) -> None:
    """Let groups wait as long as everything does: torch gives each that is made later half an hour."""
    for group in [*map(mesh.group, DIMENSIONS), mesh.data.get_group()]:
        group.set_timeout(timeout)


def _join(backend: str, timeout: timedelta) -> None:
    if not restarts() or os.environ.get("GROUP_WORLD_SIZE") != "1":
        dist.init_process_group(backend, timeout=timeout)
        return
    # torchrun keeps its store over restarts, and in it the addresses of processes that are gone. On several nodes each
    # counts its own restarts: there, TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 makes torchrun begin with an empty store.
    store, rank, world = next(rendezvous("env://", timeout=timeout))
    fresh = PrefixStore(f"restart-{restarts()}", store)
    dist.init_process_group(backend, store=fresh, rank=rank, world_size=world, timeout=timeout)
