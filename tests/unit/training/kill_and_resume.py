"""Run by a test: `kill_and_resume.py FOLDER MOMENTS` trains once undisturbed, then once for each of so many moments,
spread over the whole run, at which it is killed and resumed. It prints a JSON list of what each run ended with.

A moment is a call of a function, or a return from one, Python's or C's: before, within and after each step, write,
flush and rename, from the first file that the run writes to its last checkpoint.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
from pathlib import Path

import toy
import transom
from safetensors.torch import load_file
from transom.training import run
from transom.training.run_folder import RunFolder


def in_fork(work):
    """Do something in a process of its own; returns how it ended."""
    child = os.fork()
    if not child:
        work()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def train_counting(spec, out, kill_at):
    """Train, and kill the process at the given moment; returns how many there were."""
    moments = 0

    def count(frame, event, argument):
        nonlocal moments
        moments += 1
        if moments == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    begin = RunFolder.begin

    def begin_counting(*args):
        sys.setprofile(count)
        begin(*args)

    def stop_counting(*args, **kwargs):
        sys.setprofile(None)
        return False

    RunFolder.begin, run.draw_loss_curve = begin_counting, stop_counting
    run.train(spec, out=out)
    return moments


def outcome(folder):
    """Everything that two runs must agree on, bit for bit."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    timed = {"seconds", "tokens_per_second"}
    last = sorted((folder / "checkpoints").iterdir())[-1]
    tensors = {
        f"{file.name}/{name}": tensor.view(-1).tolist()
        for file in sorted(last.glob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }
    return {
        "rows": [{k: v for k, v in row.items() if k not in timed} for row in rows],
        "last": last.name,
        "names": sorted(p.name for p in [*folder.iterdir(), *last.parent.iterdir()]),
        "tensors": str(hash(json.dumps(tensors))),
    }


def main(folder, moments):
    spec = toy.make_spec(toy.write_text(folder / "text.txt"))
    transom.register("model", "toy", toy.Toy)
    transom.plan(spec)  # scan what is installed once, before the forks
    run.draw_loss_curve = lambda *args, **kwargs: False  # its time is matplotlib's
    gc.freeze()  # lets the forks share what is there by now
    whole = folder / "whole"
    assert in_fork(lambda: (folder / "count").write_text(str(train_counting(spec, whole, 0)))) == 0
    count = int((folder / "count").read_text())
    results = [{"killed": 0, "resumed": 0, "outcome": outcome(whole)}]
    for i in range(moments):
        out = folder / f"killed-{i}"
        kill_at = count * (2 * i + 1) // (2 * moments)
        killed = in_fork(lambda out=out, kill_at=kill_at: train_counting(spec, out, kill_at))
        saved = [int(p.name.removeprefix("step-")) for p in (out / "checkpoints").glob("step-*")]
        logged = len((out / "metrics.jsonl").read_text().splitlines()) if (out / "metrics.jsonl").exists() else 0
        begun = (out / "spec.json").exists()
        resumed = in_fork(lambda out=out, begun=begun: run.train(spec, out=out, resume=begun))
        state = {"killed": killed, "saved": max(saved, default=0), "logged": logged, "resumed": resumed}
        results.append(state | {"outcome": outcome(out)})
    print(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
