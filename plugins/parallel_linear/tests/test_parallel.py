"""Several processes over gloo compute what one does: outputs, gradients and first values, against plain formulas."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from torch import Tensor
from torch.nn import functional as F

pytestmark = pytest.mark.multiprocess

B, S, H, FFN = 3, 4, 8, 12
COLUMN = {"gather_output": False, "bias": True, "skip_bias_add": False}
ROW = {"input_is_parallel": True, "bias": True, "skip_bias_add": False}
FC1 = ["column", [H, 2 * FFN], COLUMN | {"stride": 2, "skip_bias_add": True}]
FC2 = ["row", [FFN, H], ROW | {"skip_bias_add": True}]
# Of outputs, of gradients, relative to the largest.
TOLERANCE = {"float32": (1e-5, 1e-4), "float64": (1e-13, 1e-12), "autocast": (2e-2, 3e-2)}


def case(name: str, *linears: list[Any], size: int = 2, groups: list[list[int]] | None = None, **fields: Any) -> Any:
    made = {
        "name": name,
        "linears": list(linears),
        "size": size,
        "groups": groups or [list(range(size))],
        "dtype": "float32",
        "sequence_parallel": False,
        "is_expert": False,
        "delay": False,
        "autocast": False,
        "compile": None,
        "seed": 7,
    }
    return made | fields


def column(**changes: Any) -> list[Any]:
    return ["column", [H, 2 * FFN], COLUMN | changes]


def row(**changes: Any) -> list[Any]:
    return ["row", [FFN, H], ROW | changes]


CASES = [
    case("column", column()),
    case("column_float64", column(), dtype="float64"),
    case("column_without_bias", column(bias=False)),
    case("column_skip_bias", column(skip_bias_add=True)),
    case("column_stacked", column(stride=2)),
    case("column_stacked_3", column(stride=3)),
    case("column_gathered", column(gather_output=True)),
    case("column_gathered_skip_bias", column(gather_output=True, skip_bias_add=True)),
    case("column_gathered_stacked", column(gather_output=True, stride=2)),
    case("column_sequence", column(), sequence_parallel=True),
    case("column_sequence_gathered", column(gather_output=True, stride=2), sequence_parallel=True),
    case("column_delayed", column(), delay=True),
    case("column_expert", column(), is_expert=True, sequence_parallel=True),
    case("row", row()),
    case("row_float64", row(), dtype="float64"),
    case("row_autocast", row(), autocast=True),
    case("row_without_bias", row(bias=False)),
    case("row_skip_bias", row(skip_bias_add=True)),
    case("row_whole_input", row(input_is_parallel=False)),
    case("row_sequence", row(), sequence_parallel=True),
    case("row_sequence_skip_bias", row(skip_bias_add=True), sequence_parallel=True),
    case("row_delayed", row(), delay=True),
    case("row_expert", row(), is_expert=True, sequence_parallel=True),
    case("mlp", FC1, FC2),
    case("mlp_float64", FC1, FC2, dtype="float64"),
    case("mlp_sequence", FC1, FC2, sequence_parallel=True),
    case("mlp_delayed", FC1, FC2, delay=True, sequence_parallel=True),
    case("mlp_traced", FC1, FC2, compile="aot_eager"),
    case("mlp_compiled", FC1, FC2, compile="inductor", sequence_parallel=True),
    case("mlp_of_4", FC1, FC2, size=4),
    case("mlp_of_2_times_2", FC1, FC2, size=4, groups=[[0, 2], [1, 3]], sequence_parallel=True),
]


def part(whole: Tensor, dim: int, rank: int, size: int, stride: int = 1) -> Tensor:
    """A rank's part, by listing its indices: the rank-th block of each of `stride` matrices."""
    matrix = whole.shape[dim] // stride
    width = matrix // size
    return whole.index_select(
        dim, torch.tensor([m * matrix + rank * width + i for m in range(stride) for i in range(width)])
    )


class OneProcess:
    """The whole computation in float64, by its formula."""

    def __init__(self, case: dict[str, Any]) -> None:
        dtype = getattr(torch, case["dtype"])
        self.linears = case["linears"]
        torch.manual_seed(case["seed"])
        self.names = ["fc1.", "fc2."] if len(self.linears) == 2 else [""]
        self.weights = [torch.randn(o, i, dtype=dtype) for _, (i, o), _ in self.linears]
        self.drawn_next = torch.rand(4)
        self.biases = [torch.randn(o, dtype=dtype) if a["bias"] else None for _, (_, o), a in self.linears]
        self.x = torch.randn(B, S, self.linears[0][1][0], dtype=dtype)
        self.direction = torch.randn(B, S, self.linears[-1][1][1], dtype=dtype)
        leaves = [t.double().requires_grad_() for t in (self.x, *self.weights, *filter(torch.is_tensor, self.biases))]
        self.x_grad, self.out, self.grads = self._compute(leaves)

    def _compute(self, leaves: list[Tensor]) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        count = len(self.weights)
        weights, biases = leaves[1 : 1 + count], leaves[1 + count :] or [None]
        out = F.linear(leaves[0], weights[0], biases[0])
        if count == 2:
            out = F.linear(F.silu(out[..., :FFN]) * out[..., FFN:], weights[1], biases[1])
        x_grad, *grads = torch.autograd.grad((out * self.direction.double()).sum(), leaves)
        names = [f"{n}weight" for n in self.names] + [f"{n}bias" for n in self.names]
        return x_grad, out.detach(), dict(zip(names, grads, strict=False))

    def parameter(self, name: str, whole: Tensor, rank: int, size: int) -> Tensor:
        """A rank's part of a parameter or of its gradient."""
        kind, _, arguments = self.linears[-1 if name.startswith("fc2") else 0]
        if kind == "column":
            return part(whole, 0, rank, size, arguments.get("stride", 1))
        return part(whole, 1, rank, size) if name.endswith("weight") else whole


def shared_out(case: dict[str, Any], whole: Tensor, rank: int, size: int) -> Tensor:
    """What a rank sees of something that is as the output is."""
    kind, _, arguments = case["linears"][-1]
    if kind == "column" and not arguments["gather_output"]:
        return part(whole, 2, rank, size, arguments.get("stride", 1))
    return part(whole, 1, rank, size) if kind == "row" and in_sequence(case) else whole


def shared_in(case: dict[str, Any], whole: Tensor, rank: int, size: int) -> Tensor:
    """What a rank sees of something that is as the input is."""
    kind, _, arguments = case["linears"][0]
    if kind == "column":
        return part(whole, 1, rank, size) if in_sequence(case) else whole
    return part(whole, 2, rank, size) if arguments["input_is_parallel"] else whole


def in_sequence(case: dict[str, Any]) -> bool:
    return case["sequence_parallel"] and not case["is_expert"]


def place(case: dict[str, Any], rank: int) -> tuple[int, int]:
    """Rank and size within the case's group."""
    (group,) = [g for g in case["groups"] if rank in g]
    return group.index(rank), len(group)


def write_cases(folder: Path, cases: list[dict[str, Any]]) -> None:
    (folder / "cases.json").write_text(json.dumps(cases))
    for one in cases:
        whole = OneProcess(one)
        for rank in range(one["size"]):
            at = place(one, rank)
            biases = {f"{n}bias": b for n, b in zip(whole.names, whole.biases, strict=True) if b is not None}
            given = {
                "x": shared_in(one, whole.x, *at),
                "direction": shared_out(one, whole.direction, *at),
                "biases": {name: whole.parameter(name, b, *at) for name, b in biases.items()},
            }
            torch.save(given, folder / f"{one['name']}.{rank}.pt")


def start(folder: Path, size: int) -> None:
    script = Path(__file__).with_name("on_ranks.py")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    processes = [
        subprocess.Popen(
            [sys.executable, str(script), str(rank), str(size), str(folder)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(size)
    ]
    try:
        for process in processes:
            said, _ = process.communicate(timeout=240)
            assert process.returncode == 0, said
    finally:
        for process in processes:
            process.kill()


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Where the ranks wrote what came out, by how many they were; all cases of a size run in the same processes.

    pytest's own workers share the folders: the first that asks starts the ranks, the others wait.
    """
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    made = {size: base / f"parallel_linear_on_{size}_ranks" for size in sorted({one["size"] for one in CASES})}
    for size, folder in made.items():
        with FileLock(folder.with_suffix(".lock")):
            if not folder.exists():
                folder.mkdir()
                write_cases(folder, [one for one in CASES if one["size"] == size])
                start(folder, size)
    return made


@pytest.mark.parametrize("case", CASES, ids=lambda one: one["name"])
def test_ranks_compute_what_one_process_does(case: dict[str, Any], folders: dict[int, Path]) -> None:
    whole = OneProcess(case)
    of_outputs, of_gradients = TOLERANCE["autocast" if case["autocast"] else case["dtype"]]
    for rank in range(case["size"]):
        at = place(case, rank)
        got = torch.load(folders[case["size"]] / f"{case['name']}.{rank}.out.pt")
        assert "error" not in got, got["error"]
        for name, weight in zip(whole.names, whole.weights, strict=True):
            assert torch.equal(got["weights"][f"{name}weight"], whole.parameter(f"{name}weight", weight, *at))
            assert torch.equal(got["shown"][f"{name}weight"], weight)
        assert all(torch.count_nonzero(p) == 0 for name, p in got["weights"].items() if name.endswith("bias"))
        assert torch.equal(got["drawn_next"], whole.drawn_next)
        assert got["out"].dtype == (torch.bfloat16 if case["autocast"] else whole.x.dtype)
        close(got["out"], shared_out(case, whole.out, *at), of_outputs)
        close(got["x_grad"], shared_in(case, whole.x_grad, *at), of_gradients)
        assert got["grads"].keys() == whole.grads.keys()
        for name, grad in whole.grads.items():
            close(got["grads"][name], whole.parameter(name, grad, *at), of_gradients)
        assert got.get("early", []) == []


def close(found: Tensor, wanted: Tensor, tolerance: float) -> None:
    """Largest difference, relative to the largest value."""
    assert found.shape == wanted.shape
    assert (found.double() - wanted).abs().max() <= tolerance * wanted.abs().max()
