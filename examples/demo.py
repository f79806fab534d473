"""Train a small model on text that comes with Python, look at it, and let others compute it.

Run by ``make demo``; ``python examples/demo.py --help`` shows what can be changed. Every run gets a folder of its own.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import transom
from transom.checkpoint.store import Checkpoint, open_checkpoint
from transom.cli.table import print_table
from transom.errors import RegistryError
from transom.slots import SLOT_ALIASES
from transom.text.tokenizer import load_tokenizer
from transom.training.corpus import Split, read_corpus, split_corpus
from transom.training.settings import sequence_length
from transom.training.trainer import Trainer

SLOTS = ("core_attention", "linear")


def main() -> None:
    """Show the command line at work, then swap the trained model's parts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--spec", default="tiny-llama", help="a spec file or a packaged recipe (default: %(default)s)")
    parser.add_argument("--steps", help="fewer or more training steps than the spec says")
    parser.add_argument("--out", type=Path, help="a new folder for the run (default: runs/demo-DATE-TIME)")
    given = parser.parse_args()
    out = given.out or Path("runs") / f"demo-{datetime.now():%Y%m%d-%H%M%S}"

    _transom("list")
    _transom("plan", given.spec)
    _transom("train", given.spec, "--out", str(out), *(("--steps", given.steps) if given.steps else ()))
    _transom("generate", str(out), "--prompt", "The ", "--max-new-tokens", "200", "--seed", "0")
    _print_swaps(open_checkpoint(out))
    print(f"\nThe loss curve: {out / 'loss.png'}")


def _transom(*args: str) -> None:
    """Run the command line as a user would; leave with its exit code if it fails."""
    print(f"\n$ transom {shlex.join(args)}", flush=True)
    command = [sys.executable, "-c", "import sys; from transom.cli.main import main; sys.exit(main())", *args]
    code = subprocess.run(command, check=False).returncode
    if code:
        sys.exit(code)


def _print_swaps(checkpoint: Checkpoint) -> None:
    """Rebuild the trained model with every implementation of some slots by name, and compare the validation losses."""
    split = _read_data(checkpoint)
    trained = _validation_loss(checkpoint, split, {})
    rows = []
    for slot, ref, distribution in _candidates():
        try:
            loss = _validation_loss(checkpoint, split, {slot: ref})
        except RegistryError as refusal:
            result = ("cannot serve", refusal.what)
        else:
            result = (f"{loss:.6f}", f"{loss - trained:+.1e}")
        rows.append((slot, ref.partition("/")[2], distribution, *result))
    print(f"\nThe same weights, computed by others (as trained: {trained:.6f}):\n")
    print_table(("slot", "name", "distribution", "validation loss", "difference"), rows, emphasised="name")


def _candidates() -> Iterator[tuple[str, str, str]]:
    """Yield slot, reference and distribution of everything installed; a linear must serve columns and rows."""
    for slot in SLOTS:
        groups = [
            {(found.ref, f"{found.distribution} {found.version}") for found in transom.list_implementations(each)}
            for each in SLOT_ALIASES.get(slot, (slot,))
        ]
        for ref, distribution in sorted(set.intersection(*groups)):
            yield slot, ref, distribution


def _read_data(checkpoint: Checkpoint) -> Split:
    spec = transom.load_spec(checkpoint.manifest.spec)
    tokenizer = load_tokenizer(spec.train.tokenizer)
    tokens = read_corpus(spec.train.sources, tokenizer, vocab_size=spec.vocab_size, token_dtype=spec.train.token_dtype)
    return split_corpus(tokens, spec.train.validation_fraction, sequence_length(spec))


def _validation_loss(checkpoint: Checkpoint, split: Split, use: dict[str, str]) -> float:
    spec = transom.load_spec(checkpoint.manifest.spec)
    model = transom.build(spec, use=use)
    checkpoint.load_model(model)
    return Trainer(model, spec.train, split, sequence_length=sequence_length(spec)).validate()


if __name__ == "__main__":
    main()
