"""Everything that was measured, in one file; new tables replace those of the same name and leave the others alone."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.table import Table

__all__ = ["Results"]


class Results:
    """Tables in a file.

    Args:
        path: of the file, which need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def tables(self) -> list[Table]:
        """Read all tables, in the order in which they were first put."""
        if not self.path.exists():
            return []
        return [Table.from_json(each) for each in json.loads(self.path.read_text(encoding="utf-8"))]

    def put(self, table: Table) -> None:
        """Put a table in the place of the one of its name, or at the end; the file is never half written."""
        tables = {each.name: each for each in self.tables()}
        tables[table.name] = table
        self.path.parent.mkdir(parents=True, exist_ok=True)
        written = self.path.with_suffix(".new")
        written.write_text(json.dumps([each.to_json() for each in tables.values()], indent=1) + "\n", encoding="utf-8")
        written.replace(self.path)
