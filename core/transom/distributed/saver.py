"""Saving while training goes on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import final

import torch.distributed as dist

from transom.checkpoint.manifest import Manifest
from transom.distributed.mesh import ParallelMesh
from transom.distributed.store import ShardedState, save_sharded

__all__ = ["BackgroundSaver"]


@final
class BackgroundSaver:
    """Writes checkpoints in a thread, one at a time, from a copy in the CPU's memory.

    Args:
        mesh: of the ranks, which all make one and call the same methods in the same order.
    """

    def __init__(self, mesh: ParallelMesh) -> None:
        self._mesh = mesh
        # A group of its own: what the thread says must not get between what training says.
        self._group = dist.new_group(backend="gloo")
        self._thread: threading.Thread | None = None
        self._failed: BaseException | None = None

    def save(
        self,
        folder: Path,
        manifest: Manifest,
        state: ShardedState,
        files: Mapping[str, bytes] | None = None,
        afterwards: Callable[[], None] = lambda: None,
    ) -> None:
        """Copy a state and begin to write it, once what was begun before is written.

        Args:
            folder: as for `save_sharded`, and so on.
            manifest: what the checkpoint shall say of itself.
            state: this rank's, which may change once this returns.
            files: further files.
            afterwards: is called when the checkpoint is complete.

        Raises:
            TransomError: what was begun before could not be written.
        """
        self.wait()
        copy = state.copied()

        def write() -> None:
            try:
                save_sharded(folder, manifest, copy, self._mesh, files, group=self._group)
                afterwards()
            except BaseException as error:
                self._failed = error

        self._thread = threading.Thread(target=write, name="transom-save")
        self._thread.start()

    def wait(self) -> None:
        """Return once everything that was begun is written.

        Raises:
            TransomError: it could not be written.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._failed is not None:
            failed, self._failed = self._failed, None
            raise failed
