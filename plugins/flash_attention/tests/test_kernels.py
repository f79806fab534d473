"""FlashAttention 4's kernels compile for compute capability 9.0, for all that the verdict lets through.

It takes minutes and no device, and works only where an interpreter has flash-attn-4: this one, or the one that
FLASH_ATTENTION_4_PYTHON names.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import transom_flash_attention
from transom import BuildContext
from transom.slots.core_attention import CoreAttentionRequest
from transom_flash_attention.versions import VERSIONS

PYTHON = os.environ.get("FLASH_ATTENTION_4_PYTHON", sys.executable)
SOURCE = str(Path(transom_flash_attention.__path__[0]).parent)
SIZES = range(8, 257, 8)
FEATURES = {
    "window": {"left": 100, "right": 0},
    "window of both sides": {"causal": False, "left": 3, "right": 5},
    "everyone": {"causal": False},
    "softcap": {"softcap": 30.0},
    "packed": {"form": "packed"},
    "packed window": {"form": "packed", "left": 7, "right": 0},
    "one head a group": {"groups": 8},
    "decoding": {"form": "used", "train": False},
    "decoding from pages": {"form": "pages", "train": False},
}
VALUE_SIZES = [(64, 128), (16, 32), (128, 64), (192, 128), (96, 64)]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def compiled():
    """Give a function that compiles cases with flash-attn-4 and returns how many kernels each made."""
    found = subprocess.run([PYTHON, "-c", "import flash_attn.cute"], capture_output=True, text=True, check=False)
    if found.returncode:
        why = found.stderr.strip().splitlines()[-1]
        pytest.skip(f"flash-attn-4 cannot be imported by {PYTHON} ({why}); name another by FLASH_ATTENTION_4_PYTHON")

    def run(*cases: dict) -> list[int]:
        script = Path(__file__).with_name("compile_kernels.py")
        done = subprocess.run(
            [PYTHON, "-W", "ignore", str(script), json.dumps(cases)],
            env={**os.environ, "PYTHONPATH": SOURCE, "FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED": "0"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-4000:]
        return json.loads(done.stdout.splitlines()[-1])

    return run


def _refusals(head_size: int, value_head_size: int, groups: int, mode: str) -> list[str]:
    context = BuildContext(device="cuda", dtype="bfloat16", mode=mode, compute_capability=(9, 0))
    request = CoreAttentionRequest(
        context=context, num_attention_heads=8, num_query_groups=groups, head_size=head_size,
        value_head_size=value_head_size,
    )  # fmt: skip
    return list(VERSIONS[0].refuse(request))


@pytest.mark.parametrize("size", SIZES)
def test_kernels_compile_for_every_head_size_and_dtype(size, compiled):
    assert _refusals(size, size, 2, "train") == []
    assert compiled(*({"head_size": size, "dtype": dtype} for dtype in ("bfloat16", "float16"))) == [2, 2]


@pytest.mark.parametrize("feature", list(FEATURES))
def test_kernels_compile_for_every_feature(feature, compiled):
    assert all(compiled({"head_size": 64, **FEATURES[feature]}, {"head_size": 128, **FEATURES[feature]}))


def test_kernels_do_not_compile_for_what_the_verdict_refuses(compiled):
    assert _refusals(64, 32, 8, "train") != []
    assert _refusals(64, 32, 8, "infer") == []
    assert compiled({"head_size": 64, "value_head_size": 32, "train": False}) == [1]
    with pytest.raises(AssertionError, match="MLIRError"):
        compiled({"head_size": 64, "value_head_size": 32, "groups": 8})


@pytest.mark.parametrize(("size", "of_values"), VALUE_SIZES)
def test_kernels_compile_for_values_of_another_size(size, of_values, compiled):
    assert _refusals(size, of_values, 8, "train") == []
    assert _refusals(size, of_values, 2, "train") != []
    assert compiled({"head_size": size, "value_head_size": of_values, "groups": 8}) == [2]
    inferring = {"head_size": size, "value_head_size": of_values, "train": False}
    assert compiled(inferring) == [1]
