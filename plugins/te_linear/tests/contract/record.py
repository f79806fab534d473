"""Record the signatures of what the plugin calls in Transformer Engine: ``python record.py WHEEL``.

The wheel is what ``pip download --no-deps transformer-engine`` gives: it is pure Python and has all of the source.
"""

from __future__ import annotations

import json
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

from transom.testing.call_contract import record

ROOT = "transformer_engine.pytorch"
OPS = f"{ROOT}.ops.basic.activation"
WANTED = {
    f"{ROOT}.Linear": f"{ROOT}.module.linear",
    f"{ROOT}.LayerNormLinear": f"{ROOT}.module.layernorm_linear",
    f"{ROOT}.LayerNormMLP": f"{ROOT}.module.layernorm_mlp",
    f"{ROOT}.LayerNorm": f"{ROOT}.module.layernorm",
    f"{ROOT}.RMSNorm": f"{ROOT}.module.rmsnorm",
    f"{ROOT}.DotProductAttention": f"{ROOT}.attention.dot_product_attention.dot_product_attention",
    f"{ROOT}.autocast": f"{ROOT}.quantization",
    **{f"{ROOT}.ops.{name}": OPS for name in ("GELU", "GEGLU", "SiLU", "ReLU", "ReGLU", "SReLU", "SReGLU", "QGELU")},
    f"{ROOT}.ops.QGEGLU": OPS,
    f"{ROOT}.ops.SwiGLU": f"{ROOT}.ops.basic.swiglu",
    **{
        f"transformer_engine.common.recipe.{name}": "transformer_engine.common.recipe"
        for name in ("DelayedScaling", "Float8CurrentScaling", "Float8BlockScaling")
    },
}
BASES = (f"{ROOT}.module.base",)
METHODS = ("forward", "backward_dw", "need_backward_dw")


def read(text_of: Callable[[str], str]) -> dict:
    """Read the signatures; ``text_of`` gives the text of a module."""
    found = record({module: text_of(module) for module in {*WANTED.values(), *BASES}}, WANTED)
    for entry in found.values():
        if "methods" in entry:
            entry["methods"] = {name: entry["methods"][name] for name in METHODS if name in entry["methods"]}
    return found


def text_in(archive: zipfile.ZipFile, module: str) -> str:
    """Read a module or a package's ``__init__`` from a wheel."""
    path = module.replace(".", "/")
    names = set(archive.namelist())
    return archive.read(f"{path}.py" if f"{path}.py" in names else f"{path}/__init__.py").decode()


if __name__ == "__main__":
    wheel = Path(sys.argv[1])
    with zipfile.ZipFile(wheel) as opened:
        names = read(lambda module: text_in(opened, module))
    found = {"package": "transformer-engine", "version": wheel.name.split("-")[1], "names": names}
    target = Path(__file__).with_name("transformer-engine.json")
    target.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
