"""Peak memory of a training step, each contender in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.contenders.everybody import llama_makers
from benchmarks.settings import Settings, dtype_of
from benchmarks.table import Table

__all__ = ["memory"]

WHOLE, STEP = "weights, optimizer and step", "step alone"


def memory(asked: Settings) -> Iterator[Table]:
    """Measure what the system counts as resident."""
    for dtype in asked.dtypes:
        names = [each for each in llama_makers(asked.shape, dtype_of(dtype), "cpu") if each not in asked.without]
        samples: dict[str, dict[str, list[float]]] = {}
        absent: dict[str, str] = {}
        for name in names:
            found = _in_a_process(name, dtype, asked.small)
            if isinstance(found, str):
                absent[name] = found
            else:
                samples[name] = found
        yield Table(
            name=f"peak memory of the training step, {dtype}",
            page="memory",
            unit="bytes",
            samples=samples,
            base="monolith",
            absent=absent,
            note=_NOTE,
            taken={"settings": "once, in a fresh process each, in the second step"},
        )


_NOTE = (
    f"Resident memory at its peak: `{WHOLE}` over what the process had before there was a model, `{STEP}` over what it "
    "had before the step: activations, logits and gradients. In brackets relative to the monolith."
)


def _in_a_process(name: str, dtype: str, small: bool) -> dict[str, list[float]] | str:
    command = [sys.executable, "-m", "benchmarks.peak", name, dtype, *(["--small"] if small else [])]
    paths = os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True, check=False)
    if done.returncode:
        return (done.stderr.strip().splitlines() or ["it ended without a word"])[-1][:200]
    whole, step = json.loads(done.stdout.splitlines()[-1])
    return {WHOLE: [whole], STEP: [step]}
