"""Several processes over gloo train what one does: losses, norms of gradients, weights, and checkpoints either way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

pytestmark = pytest.mark.multiprocess
pytest.importorskip("transom_parallel_linear")
sys.path.insert(0, str(Path(__file__).parent))

from on_ranks import STEPS, Case, begun, run  # noqa: E402

TP, DP = {"tp": 2}, {"dp": 2}
SPREAD = {"expert_parallel": True}
SHARED = {"shared_expert_ffn_hidden_size": 8, "shared_expert_gate": True}
GATED = {"gated_linear_unit": True, "activation_func": "silu", "add_bias_linear": False, "normalization": "RMSNorm"}
SEQUENCE = {"sequence_parallel": True}
# Data-parallel ranks balance their experts over their own tokens: a loss of its own.
UNBALANCED = {"aux_loss_coeff": 0.0}
CASES = [
    Case("spread", TP, SPREAD),
    Case("spread_gated_shared", TP, SPREAD | SHARED, GATED),
    Case("spread_one_by_one", TP, SPREAD | {"compute": "sequential"}),
    Case("exchanged", TP, SPREAD, SEQUENCE),
    Case("exchanged_gated_shared", TP, SPREAD | SHARED | {"top_k": 1, "normalize_weights": False}, GATED | SEQUENCE),
    Case("split", TP, SHARED),
    Case("split_gated_sequence", TP, SHARED, GATED | SEQUENCE),
    Case("data", DP, UNBALANCED),
]
FOUR = [Case("spread_and_data", TP | DP, SPREAD | UNBALANCED, GATED)]


def alone(case: Case) -> Case:
    """The same on one process."""
    return replace(case, sizes={}, config={k: v for k, v in case.config.items() if k != "sequence_parallel"})


def on_ranks(cases: list[Case], size: int, folder: Path) -> None:
    (folder / "cases.json").write_text(json.dumps([asdict(case) for case in cases]))
    script = str(Path(__file__).with_name("on_ranks.py"))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    ranks = [
        subprocess.Popen([sys.executable, script, str(rank), str(size), str(folder)], env=environment)
        for rank in range(size)
    ]
    try:
        assert [rank.wait(timeout=240) for rank in ranks] == [0] * size
    finally:
        for rank in ranks:
            rank.kill()


Seen = Callable[[Case], tuple[list[list[float]], Path]]


@pytest.fixture(scope="module")
def of_two(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    """What two ranks saw of a case, and where its checkpoints are."""
    folder = tmp_path_factory.mktemp("two")
    run(alone(CASES[0]), folder)
    resumed = replace(CASES[0], name="resumed", after=str(folder / CASES[0].name))
    (folder / CASES[0].name).rename(folder / "alone")
    on_ranks([*CASES, replace(resumed, after=str(folder / "alone"))], 2, folder)
    return lambda case: _seen(case, folder, 2)


def _seen(case: Case, folder: Path, size: int) -> tuple[list[list[float]], Path]:
    ranks = [json.loads((folder / f"{case.name}.{rank}.json").read_text()) for rank in range(size)]
    assert all(isinstance(each, list) for each in ranks), "\n".join(map(str, ranks))
    if case.sizes.get("dp", 1) == 1:
        assert ranks[0] == [pytest.approx(each, rel=1e-12) for each in ranks[1]]
    return ranks[0], folder / case.name


def weights(folder: Path, case: Case) -> dict[str, Tensor]:
    """Weights and moments that a checkpoint holds, in a model of one process."""
    model, optimizer = begun(replace(alone(case), after=str(folder)), None)
    state = {name: parameter.detach() for name, parameter in model.named_parameters()}
    moments = {f"{name} {k}": v for name, p in model.named_parameters() for k, v in optimizer.state[p].items()}
    return state | moments


def agree(case: Case, seen: list[list[float]], checkpoints: Path, tmp_path: Path) -> None:
    wanted = run(alone(case), tmp_path)
    watched = slice(0, 3 if case.sizes.get("dp", 1) == 1 else 2)
    for ours, theirs in zip(seen, wanted, strict=True):
        assert ours[watched] == pytest.approx(theirs[watched], rel=1e-9)
    found, exact = weights(checkpoints, case), weights(tmp_path / case.name, case)
    torch.testing.assert_close(found, exact, atol=1e-8, rtol=1e-6)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_ranks_train_as_one_process(case: Case, of_two: Seen, tmp_path: Path) -> None:
    agree(case, *of_two(case), tmp_path)


def test_ranks_go_on_where_one_process_was(of_two: Seen, tmp_path: Path) -> None:
    seen, checkpoints = of_two(replace(CASES[0], name="resumed"))
    run(alone(CASES[0]), tmp_path)
    wanted = run(replace(alone(CASES[0]), name="on", after=str(tmp_path / CASES[0].name)), tmp_path)
    assert len(seen) == STEPS
    assert seen == [pytest.approx(each, rel=1e-9) for each in wanted]
    torch.testing.assert_close(weights(checkpoints, CASES[0]), weights(tmp_path / "on", CASES[0]), atol=1e-8, rtol=1e-6)


def test_experts_are_spread_beside_data_parallelism(tmp_path: Path) -> None:
    folder = tmp_path / "four"
    folder.mkdir()
    on_ranks(FOUR, 4, folder)
    agree(FOUR[0], *_seen(FOUR[0], folder, 4), tmp_path)
