"""Transom beside a hand-written model and other libraries: time, in one interleaved run.

Run it by ``make bench``, or by hand: ``python tests/benchmarks/model_figures.py --help``. Libraries that are not
installed are left out by name.
"""

from __future__ import annotations

import argparse
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from contenders import Contender, contenders
from measure import CLOCKS, Table, interleaved, machine
from monolith import Shape
from report import markdown, write
from workloads import WORKLOADS, Sizes


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="how often each is timed")
    parser.add_argument("--only", action="append", choices=list(WORKLOADS), help="a workload; may be repeated")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clock", default="wall", choices=list(CLOCKS), help="cpu: on a machine that is busy")
    parser.add_argument("--without", action="append", default=[], help="leave a contender out; may be repeated")
    parser.add_argument("--out", type=Path, help="folder for the page, the data and the pictures; none = print")
    return parser.parse_args()


def _measured(asked: argparse.Namespace, shape: Shape) -> Iterator[Table]:
    found, absent = contenders(shape, getattr(torch, asked.dtype))
    chosen: list[Contender] = [each for each in found if each.name not in asked.without]
    for name in asked.only or WORKLOADS:
        steps = WORKLOADS[name](chosen, shape, Sizes())
        limit = "weights read" if "weights read" in steps else None
        table = interleaved(name, steps, rounds=asked.rounds, clock=CLOCKS[asked.clock], limit=limit)
        table.absent.update(absent)
        yield table


def main() -> None:
    """Measure, then print or write."""
    asked = _arguments()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(asked.threads)
    shape, on = Shape(), machine()
    tables = list(_measured(asked, shape))
    title = f"A 32M-parameter Llama, eager, {asked.dtype}"
    if asked.out is None:
        print(markdown(title, tables, on | {"clock": asked.clock}))
        return
    for path in write(asked.out, f"llama-32m-eager-{asked.dtype}", title, tables, on | {"clock": asked.clock}):
        print(path)


if __name__ == "__main__":
    main()
