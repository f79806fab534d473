"""One of the processes of a run: ``python train_worker.py ARGUMENTS``, a JSON object for `transom.training.run.train`.

``die`` among them makes rank 1 kill itself, the first time it is started: ``["step", n]`` before step n, or
``["save", n]`` while it writes the checkpoint of step n. Rank 0 prints the losses; an error is printed as the command
line would.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from transom.errors import TransomError


def main(arguments: dict[str, Any]) -> int:
    from transom.training.run import train

    when, step = arguments.pop("die", (None, 0))
    if when and os.environ["RANK"] == "1" and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0":
        {"step": die_before_step, "save": die_while_saving}[when](step, Path(arguments["out"]))
    try:
        result = train(**arguments)
    except TransomError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    if os.environ.get("RANK", "0") == "0":
        print(json.dumps({"loss": result.loss, "validation_loss": result.validation_loss, "steps": result.steps}))
    return 0


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_before_step(step: int, out: Path) -> None:
    """After the save of the step before, which goes on in the background, is complete."""
    from transom.training.trainer import Trainer

    train_step = Trainer.train_step

    def dying(self: Any) -> Any:
        if self.step != step:
            return train_step(self)
        deadline = time.monotonic() + 60
        while not (out / "checkpoints" / f"step-{step - 1:08d}").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        return die()

    Trainer.train_step = dying  # type: ignore[method-assign]


def die_while_saving(step: int, out: Path) -> None:
    """After the tensors are written, before the checkpoint is complete."""
    from transom.distributed import store

    write_own = store._write_own

    def dying(partial: Any, *rest: Any) -> Any:
        return die() if f"{step:08d}" in partial.name else write_own(partial, *rest)

    store._write_own = dying


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
