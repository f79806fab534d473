"""Record the signatures of what the plugin calls in NVIDIA Apex: ``python record.py PATH REVISION``.

The path is a checkout of https://github.com/NVIDIA/apex, or the site directory that it is installed in.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from transom.testing.call_contract import record

FUSED, FAST = "apex.normalization.fused_layer_norm", "apex.contrib.layer_norm.layer_norm"
WANTED = {
    f"{FUSED}.fused_layer_norm_affine": FUSED,
    f"{FUSED}.fused_rms_norm_affine": FUSED,
    f"{FUSED}.mixed_dtype_fused_layer_norm_affine": FUSED,
    f"{FUSED}.mixed_dtype_fused_rms_norm_affine": FUSED,
    f"{FAST}.FastLayerNormFN": FAST,
}


def read(root: Path) -> dict:
    """Read the signatures below a directory."""
    files = {module: root.joinpath(*module.split(".")).with_suffix(".py") for module in (FUSED, FAST)}
    return record({module: file.read_text(encoding="utf-8") for module, file in files.items()}, WANTED)


if __name__ == "__main__":
    root, revision = sys.argv[1:]
    found = {"package": "NVIDIA Apex", "revision": revision, "names": read(Path(root))}
    Path(__file__).with_name("apex.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
