"""Workers that torchrun starts: each plans from the lock alone, all agree, and build the same model."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

WORKER = """
import json, os, sys
import torch
import transom
from transom.composition import check_ranks
from transom.registry.registry import default_registry

spec, lock, out = sys.argv[1:]
torch.distributed.init_process_group("gloo")
plan = transom.plan(spec, lock=lock, lock_mode="exact")
check_ranks(plan, torch.distributed.group.WORLD)
unscanned = default_registry()._index is None
total = sum(p.double().sum().item() for p in transom.build(plan, seed=0).parameters())
rank = torch.distributed.get_rank()
with open(f"{out}/{rank}.json", "w") as file:
    json.dump({"fingerprint": plan.fingerprint, "unscanned": unscanned, "total": total}, file)
torch.distributed.destroy_process_group()
"""


@pytest.mark.multiprocess
def test_torchrun_workers_plan_from_the_lock_without_scanning(tmp_path):
    import transom
    from transom.specs.lock import Lock

    made = transom.plan("tiny-llama", use={"layers.1.self_attention.core_attention": "dot_product"})
    spec = made.spec.to_dict() | {"use": {**made.spec.use, "layers.1.self_attention.core_attention": "dot_product"}}
    (tmp_path / "spec.json").write_text(json.dumps(spec))
    (tmp_path / "lock.json").write_text(Lock.from_plan(made).to_text())
    (tmp_path / "worker.py").write_text(WORKER)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    files = [str(tmp_path / name) for name in ("worker.py", "spec.json", "lock.json")]
    done = subprocess.run(
        [*command, *files, str(tmp_path)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    ranks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert [rank["fingerprint"] for rank in ranks] == [made.fingerprint] * 2
    assert [rank["unscanned"] for rank in ranks] == [True, True]
    assert ranks[0]["total"] == ranks[1]["total"]
