"""On a CUDA device: the same models in bfloat16, also with CUDA graphs, and shares of what the device can do."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from benchmarks.contenders.contender import BASE, TOLERANCES, Contender, compile_anew
from benchmarks.contenders.everybody import llamas
from benchmarks.measure import Step
from benchmarks.monolith import Monolith, Shape
from benchmarks.settings import Settings
from benchmarks.suites.timing import timed
from benchmarks.table import Table
from benchmarks.workloads import decoding, inferring, matrices, random_ids, training, weights_read

__all__ = ["gpu", "training_flops"]

_BILLION = Shape(vocab=32768, hidden=2048, layers=20, heads=16, groups=8, ffn=5632, length=4096)
_ROWS, _TOKENS, _NEW = 4, 2048, 128
_NAMES = (
    "forward on a GPU, bfloat16",
    "training step on a GPU, bfloat16",
    "decode on a GPU, bfloat16",
    "share of peak FLOP/s in training on a GPU, bfloat16",
    "share of memory bandwidth in decoding on a GPU, bfloat16",
)


def gpu(asked: Settings) -> Iterator[Table]:
    """Measure a Llama of about a billion parameters; without a device, every table says so."""
    if not torch.cuda.is_available():
        why = {"everybody": "no CUDA device"}
        yield from (Table(name=name, page="gpu", unit="s", samples={}, absent=why) for name in _NAMES)
        return
    shape = asked.shape if asked.small else _BILLION
    found, absent = llamas(shape, torch.bfloat16, "cuda", asked.without)
    yield from _shares(asked, shape, found, absent)


def _shares(asked: Settings, shape: Shape, found: list[Contender], absent: Mapping[str, str]) -> Iterator[Table]:
    rows, tokens = (2, 64) if asked.small else (_ROWS, _TOKENS)
    ids = random_ids(shape.vocab, rows, tokens, "cuda")
    prompt = random_ids(shape.vocab, 1, 16, "cuda")
    forward, train, decode, compute_share, bandwidth_share = _NAMES
    yield _timed(asked, forward, _steps(found, lambda each: inferring(each, ids)), absent)
    trained = _timed(asked, train, _steps(found, lambda each: training(each, ids)), absent)
    yield trained
    decoded = _timed(asked, decode, _decoding_steps(found, prompt), absent, "weights read")
    yield decoded
    (model,) = (each.module for each in found if isinstance(each.module, Monolith))
    yield _share(compute_share, trained, training_flops(model, rows, tokens) / _peak_flops())
    size = sum(weight.numel() * weight.element_size() for weight in matrices(found))
    yield _share(bandwidth_share, decoded, _NEW * size / _bandwidth())


def _timed(
    asked: Settings, name: str, steps: Mapping[str, Step], absent: Mapping[str, str], limit: str | None = None
) -> Table:
    return timed(name, "gpu", steps, asked, tolerance=TOLERANCES[torch.bfloat16], absent=absent, limit=limit)


def _steps(found: list[Contender], step: Callable[[Contender], Step]) -> dict[str, Step]:
    """Give everybody eager, and the libraries compiled, with and without CUDA graphs."""
    steps = {each.name: step(each) for each in found}
    plain = [each for each in found if "," not in each.name]
    steps |= {f"{each.name}, compiled": step(each.compiled()) for each in plain}
    return steps | {f"{each.name}, CUDA graphs": step(_with_graphs(each)) for each in plain}


def _with_graphs(each: Contender) -> Contender:
    assert each.loss is not None
    how = {"mode": "reduce-overhead"}
    return replace(each, logits=compile_anew(each.logits, **how), loss=compile_anew(each.loss, **how))


def _decoding_steps(found: list[Contender], prompt: Tensor) -> dict[str, Step]:
    steps = {each.name: decoding(each, prompt, _NEW) for each in found}
    for each in (each for each in found if "," not in each.name):
        steps[f"{each.name}, compiled"] = decoding(each.compiled(), prompt, _NEW)
        if each.graphed_decoding is not None:
            graphed = replace(each, decoding=each.graphed_decoding)
            steps[f"{each.name}, CUDA graphs"] = decoding(graphed, prompt, _NEW)
    return steps | {"weights read": weights_read(found, 1, _NEW)}


def _share(name: str, table: Table, least: float) -> Table:
    """Divide the least time that the device would need by the time that was taken."""
    samples = {
        row: {column: [least / second for second in seconds] for column, seconds in columns.items()}
        for row, columns in table.samples.items()
        if row != table.limit
    }
    note = "The peak is what one large product of matrices, or one large copy, reached in the same run."
    return Table(
        name=name,
        page="gpu",
        unit="share",
        samples=samples,
        base=BASE,
        absent=table.absent,
        note=note,
        taken=table.taken,
    )


def training_flops(model: Monolith, rows: int, tokens: int) -> float:
    """Count the operations of a training step: of each weight 6 a token, of causal attention 6 s n d a token and layer.

    Args:
        model: whose matrices count; its embedding table is looked up.
        rows: of the batch.
        tokens: s, in a row.
    """
    matrices = sum(p.numel() for p in model.parameters() if p.dim() == 2) - model.embedding.weight.numel()
    attention = 6 * model.shape.layers * model.shape.hidden * tokens
    return float(rows * tokens * (6 * matrices + attention))


def _peak_flops() -> float:
    matrix = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    return 2 * 8192**3 / _seconds(lambda: matrix @ matrix)


def _bandwidth() -> float:
    data = torch.empty(2**30, device="cuda", dtype=torch.uint8)
    target = torch.empty_like(data)
    return 2 * data.numel() / _seconds(lambda: target.copy_(data))


def _seconds(step: Callable[[], Tensor], times: int = 20) -> float:
    """Give the least time of a step, by the device's own clock."""
    found: list[float] = []
    for _ in range(times):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        step()
        stop.record()
        torch.cuda.synchronize()
        found.append(start.elapsed_time(stop) / 1e3)
    return min(found)
