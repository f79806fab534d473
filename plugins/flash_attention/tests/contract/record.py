"""Record the signatures of what the plugin calls in FlashAttention: ``python record.py FILE ...``.

The files are what ``pip download --no-deps`` gives: a wheel of flash-attn-4, a wheel of fa3-fwd, a source distribution
of flash-attn (``FLASH_ATTENTION_SKIP_CUDA_BUILD=TRUE``). Each that is given is recorded beside this script.
"""

from __future__ import annotations

import json
import sys
import tarfile
import zipfile
from pathlib import Path

from transom.testing.call_contract import record

MODULES = {
    "flash-attn": "flash_attn.flash_attn_interface",
    "fa3-fwd": "fa3_fwd_interface",
    "flash-attn-4": "flash_attn.cute.interface",
}
WANTED = {
    "flash-attn": (
        "_flash_attn_forward",
        "_flash_attn_varlen_forward",
        "_flash_attn_backward",
        "_flash_attn_varlen_backward",
        "flash_attn_with_kvcache",
    ),
    "fa3-fwd": ("flash_attn_func", "flash_attn_varlen_func", "flash_attn_with_kvcache"),
    "flash-attn-4": ("_flash_attn_fwd", "_flash_attn_bwd"),
}


def read(distribution: str, source: str) -> dict:
    """Read the signatures in the text of a distribution's interface."""
    module = MODULES[distribution]
    return record({module: source}, {f"{module}.{name}": module for name in WANTED[distribution]})


def _named(file: Path) -> tuple[str, str]:
    name, version = file.name.removesuffix(".tar.gz").removesuffix(".whl").split("-")[:2]
    return name.replace("_", "-"), version


def _text(file: Path, module: str) -> str:
    wanted = f"{module.replace('.', '/')}.py"
    if file.suffix == ".whl":
        return zipfile.ZipFile(file).read(wanted).decode()
    with tarfile.open(file) as archive:
        member = next(name for name in archive.getnames() if name.partition("/")[2] == wanted)
        return archive.extractfile(member).read().decode()


if __name__ == "__main__":
    for file in map(Path, sys.argv[1:]):
        distribution, version = _named(file)
        names = read(distribution, _text(file, MODULES[distribution]))
        found = {"package": distribution, "version": version, "names": names}
        target = Path(__file__).with_name(f"{distribution}.json")
        target.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
