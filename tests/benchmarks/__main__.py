"""Transom beside a hand-written model and other libraries, as tables and pictures.

``make bench`` runs everything; ``make bench ARGS="--only decode --rounds 3"`` a part. What is measured joins what was
measured before in docs/benchmarks/figures.json, and the pages are written from that file; ``--pages`` only writes them.
Libraries that are not installed are left out by name.
"""

from __future__ import annotations

import argparse
import logging
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.contenders.contender import BASE
from benchmarks.machine import surroundings
from benchmarks.measure import CLOCKS
from benchmarks.pages import write_pages
from benchmarks.report import markdown
from benchmarks.results import Results
from benchmarks.settings import Settings
from benchmarks.suites.building import building
from benchmarks.suites.compilation import compilation
from benchmarks.suites.gpu import gpu
from benchmarks.suites.loading import loading
from benchmarks.suites.memory import memory
from benchmarks.suites.models import decode, forward, prefill, t5, training_step
from benchmarks.suites.registry import registry
from benchmarks.suites.scaling import scaling
from benchmarks.table import Table

__all__: list[str] = []

SUITES: Mapping[str, Callable[[Settings], Iterator[Table]]] = {
    "forward": forward,
    "prefill": prefill,
    "training": training_step,
    "decode": decode,
    "t5": t5,
    "memory": memory,
    "building": building,
    "loading": loading,
    "scaling": scaling,
    "compilation": compilation,
    "registry": registry,
    "gpu": gpu,
}
_PAGES = Path(__file__).parents[2] / "docs" / "benchmarks"


def _arguments(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", action="append", choices=list(SUITES), help="a suite; may be repeated")
    parser.add_argument("--rounds", type=int, default=7, help="how often each is timed")
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall", help="cpu where other work runs too")
    parser.add_argument("--threads", type=int, default=0, help="of torch; 0 = as many as there are cores")
    parser.add_argument("--dtype", action="append", choices=["float32", "bfloat16"], help="may be repeated; all")
    parser.add_argument(
        "--mode",
        action="append",
        choices=["eager", "compiled"],
        help="may be repeated; compiled is also asked for here where compiling takes long",
    )
    parser.add_argument("--without", action="append", default=[], help="a contender, which is left out")
    parser.add_argument("--small", action="store_true", help="tiny models, to try the suites; needs --out")
    parser.add_argument("--out", type=Path, default=_PAGES, help="folder of the pages and of figures.json")
    parser.add_argument("--pages", action="store_true", help="measure nothing, write the pages anew")
    asked = parser.parse_args(given)
    if asked.small and asked.out == _PAGES:
        parser.error("figures of tiny models belong elsewhere: give --out too")
    if asked.rounds < 1:
        parser.error(f"argument --rounds: {asked.rounds} rounds measure nothing; at least 1, better 7")
    if asked.threads < 0:
        parser.error(f"argument --threads: {asked.threads} is no number of threads; 0 = as many as there are cores")
    if BASE in asked.without:
        parser.error(f"argument --without: everybody is compared with the {BASE}, which takes part")
    if not _can_be_written(asked.out):
        parser.error(f"argument --out: {asked.out} is no folder that can be written to")
    return asked


def _can_be_written(folder: Path) -> bool:
    """Try to make the folder, before minutes go into measuring for it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)


def main(given: Sequence[str] | None = None) -> None:
    """Measure what is asked for, keep it, and write the pages."""
    asked = _arguments(given)
    torch.set_num_threads(asked.threads or torch.get_num_threads())
    results = Results(asked.out / "figures.json")
    if not asked.pages:
        with _quiet():
            _measure(asked, results)
    for path in write_pages(asked.out, results.tables()):
        print(path)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what libraries have to say out of the tables."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(before)


def _measure(asked: argparse.Namespace, results: Results) -> None:
    settings = Settings(
        rounds=asked.rounds,
        clock_name=asked.clock,
        dtypes=tuple(asked.dtype or Settings.dtypes),
        modes=tuple(asked.mode or ()),
        without=tuple(asked.without),
        small=asked.small,
    )
    for name in asked.only or SUITES:
        start, found = time.perf_counter(), surroundings()
        for table in SUITES[name](settings):
            results.put(replace(table, taken={**found, **table.taken}))
            print("\n".join([f"## {table.name}", "", *markdown(table), ""]), flush=True)
        print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
