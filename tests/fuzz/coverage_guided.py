"""Fuzz the readers of specs, locks and cards with inputs that grow towards code that no earlier one reached.

Run it by hand, with atheris installed (``pip install atheris``)::

    python tests/fuzz/coverage_guided.py -runs=200000

Whatever a file says, it is read, or refused with a `TransomError` that tells where. Anything else ends the run, and
libFuzzer writes the input to a file; giving that file as an argument repeats it.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["transom.specs", "transom.registry.card"]):
    from transom.errors import SpecError, TransomError
    from transom.registry.card import read_card
    from transom.specs.load import load_spec
    from transom.specs.lock import read_lock

FOLDER = Path(tempfile.mkdtemp(prefix="transom-fuzz-"))
SPEC = "vocab_size: 16\nmax_sequence_length: 8\nconfig: {num_layers: 2, hidden_size: 8, num_attention_heads: 2}\n"
ENDINGS = ("yaml", "json", "toml")


def _read(kind: int, content: bytes) -> None:
    """Read bytes as a spec of some ending, as the rest of a spec that is well begun, as a lock, or as a card."""
    if kind < len(ENDINGS):
        path = FOLDER / f"a.{ENDINGS[kind]}"
        path.write_bytes(content)
        load_spec(path)
    elif kind == len(ENDINGS):
        path = FOLDER / "b.yaml"
        path.write_bytes(SPEC.encode() + content)
        load_spec(path)
    elif kind == len(ENDINGS) + 1:
        path = FOLDER / "lock.json"
        path.write_bytes(content)
        read_lock(path)
    else:
        path = FOLDER / "transom.toml"
        path.write_bytes(content)
        read_card(path, distribution="fuzzed")


def once(data: bytes) -> None:
    """Read one input; its first byte says as what."""
    if not data:
        return
    try:
        _read(data[0] % (len(ENDINGS) + 3), data[1:])
    except TransomError as error:
        refused = error
    else:
        return
    assert str(refused), "it says what is wrong"
    assert not isinstance(refused, SpecError) or isinstance(refused.path, str), "it says where"


if __name__ == "__main__":
    atheris.Setup(sys.argv, once)
    atheris.Fuzz()
