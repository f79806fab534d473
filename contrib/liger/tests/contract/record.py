"""Record the signatures of what the plugin calls in Liger Kernel: ``python record.py WHEEL``.

The wheel is what ``pip download --no-deps liger-kernel`` gives: it is pure Python and has all of the source.
"""

from __future__ import annotations

import json
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

from transom.testing.call_contract import record

OPS = "liger_kernel.ops"
OPERATORS = {
    "rms_norm": "LigerRMSNormFunction",
    "layer_norm": "LigerLayerNormFunction",
    "swiglu": "LigerFusedGateUpSiLUMulFunction",
    "geglu": "LigerGELUMulFunction",
    "rope": "LigerRopeFunction",
    "fused_linear_cross_entropy": "LigerFusedLinearCrossEntropyFunction",
}
WANTED = {f"{OPS}.{module}.{name}": f"{OPS}.{module}" for module, name in OPERATORS.items()}


def read(text_of: Callable[[str], str]) -> dict:
    """Read the signatures; ``text_of`` gives the text of a module."""
    found = record({module: text_of(module) for module in WANTED.values()}, WANTED)
    for entry in found.values():
        entry["methods"] = {"apply": entry["methods"]["apply"]}
    return found


if __name__ == "__main__":
    wheel = Path(sys.argv[1])
    with zipfile.ZipFile(wheel) as opened:
        names = read(lambda module: opened.read(f"{module.replace('.', '/')}.py").decode())
    found = {"package": "liger-kernel", "version": wheel.name.split("-")[1], "names": names}
    Path(__file__).with_name("liger-kernel.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
