"""Two processes over gloo compute what one does, with a stand-in of Transformer Engine that exchanges as it does."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
import torch

from .on_ranks import FFN, H, run, run_mlp

pytestmark = pytest.mark.multiprocess

LINEARS = [
    {"kind": "linears", "sequence": sequence, "delay": delay, "skip": skip, "norms": norms}
    for sequence, delay, skip, norms in product((False, True), repeat=4)
]
MLPS = [{"kind": "mlp", "sequence": sequence} for sequence in (False, True)]
CASES = LINEARS + MLPS


@pytest.fixture(scope="module")
def given() -> dict:
    torch.manual_seed(0)
    return {
        "x": torch.randn(3, 4, H),
        "direction": torch.randn(3, 4, H),
        "bias": torch.randn(2 * FFN),
        "out_bias": torch.randn(H),
    }


@pytest.fixture(scope="module")
def of_two(given, tmp_path_factory) -> list[list[dict]]:
    """What each of two ranks gives, case by case."""
    folder = tmp_path_factory.mktemp("ranks")
    torch.save({"given": given, "cases": CASES}, folder / "given.pt")
    here = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": str(here / "stand_in"), "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, str(here / "on_ranks.py"), str(rank), str(folder)],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    errors = [rank.communicate(timeout=240)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], "\n".join(errors)[-4000:]
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def _whole(pieces: list[torch.Tensor], dim: int, stride: int = 1) -> torch.Tensor:
    apart = [torch.unflatten(piece, dim, (stride, -1)) for piece in pieces]
    return torch.cat(apart, dim=dim + 1).flatten(dim, dim + 1)


@pytest.mark.parametrize("number", range(len(LINEARS)), ids=[str(case) for case in LINEARS])
def test_two_ranks_compute_what_one_does(number, given, of_two, install):
    install()
    case, pieces = CASES[number], [rank[number] for rank in of_two]
    one = run(case, given, None)
    torch.testing.assert_close(_whole([p["weights"]["fc1"] for p in pieces], 0, 2), one["weights"]["fc1"])
    torch.testing.assert_close(_whole([p["weights"]["fc2"] for p in pieces], 1), one["weights"]["fc2"])
    for name in ("out", "x"):
        found = [p[name] for p in pieces]
        wholes = [torch.cat(found, dim=1)] if case["sequence"] else found
        for whole in wholes:
            torch.testing.assert_close(whole, one[name], rtol=1e-5, atol=1e-5)
    grads = [p["grads"] for p in pieces]
    for name, dim, stride in (("fc1.weight", 0, 2), ("fc1.bias", 0, 2), ("fc2.weight", 1, 1)):
        found = _whole([g[name] for g in grads], dim, stride)
        torch.testing.assert_close(found, one["grads"][name], rtol=1e-4, atol=1e-4)
    for each in grads:
        for name in ("fc2.bias", *(["fc1.norm_weight", "fc1.norm_bias"] if case["norms"] else [])):
            torch.testing.assert_close(each[name], one["grads"][name], rtol=1e-4, atol=1e-4)
    assert pieces[1]["shapes"]["fc1.weight"] == ((2 * FFN, H), (FFN, 0))
    assert pieces[1]["shapes"]["fc2.weight"] == ((H, FFN), (0, FFN // 2))
    assert pieces[1]["shapes"]["fc2.bias"] == ((H,), (0,))


@pytest.mark.parametrize("case", MLPS, ids=str)
def test_two_ranks_compute_an_mlp_as_one_does(case, given, of_two, install):
    install()
    pieces, one = [rank[CASES.index(case)] for rank in of_two], run_mlp(case, given, None)
    for name in ("out", "x"):
        found = [piece[name] for piece in pieces]
        for whole in [torch.cat(found, dim=1)] if case["sequence"] else found:
            torch.testing.assert_close(whole, one[name], rtol=1e-5, atol=1e-5)
    grads = [piece["grads"] for piece in pieces]
    for name, dim, stride in (("fc1_weight", 0, 2), ("fc1_bias", 0, 2), ("fc2_weight", 1, 1)):
        found = _whole([each[name] for each in grads], dim, stride)
        torch.testing.assert_close(found, one["grads"][name], rtol=1e-4, atol=1e-4)
    for each in grads:
        for name in ("norm_weight", "norm_bias", "fc2_bias"):
            torch.testing.assert_close(each[name], one["grads"][name], rtol=1e-4, atol=1e-4)
    assert pieces[0]["keys"] == sorted(
        f"mlp.{name}.{kind}" for name in ("norm", "linear_fc1", "linear_fc2") for kind in ("weight", "bias")
    )
