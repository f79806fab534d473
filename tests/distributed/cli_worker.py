"""One of the processes that call the command line together: ``python cli_worker.py CALLS``, a JSON list of calls.

A call has ``args``, one list for all ranks or one a rank; ``port``, where the ranks meet; and maybe ``damage``: a
folder, its copy that the first rank makes before, a file in it, and how it is damaged. Prints a JSON list of each
call's exit code and of what it wrote to stderr.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from transom.cli import main as command_line


def main(calls: list[dict[str, Any]]) -> None:
    command_line._PATIENCE = 0.0
    said = [run(call) for call in calls]
    sys.stdout.write(f"\n{json.dumps(said)}\n")


def run(call: dict[str, Any]) -> tuple[int, str]:
    rank = int(os.environ["RANK"])
    os.environ["MASTER_PORT"] = str(call["port"])
    if rank == 0 and "damage" in call:
        damage(*call["damage"])
    args = call["args"][rank] if isinstance(call["args"][0], list) else call["args"]
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
        code = command_line.main(args)
    return code, errors.getvalue()


def damage(folder: str, copy: str, name: str, how: str) -> None:
    shutil.copytree(folder, copy)
    (file,) = Path(copy).glob(name)
    contents = file.read_bytes()
    if how == "missing":
        file.unlink()
    else:
        file.write_bytes(contents[: len(contents) // 2])


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
