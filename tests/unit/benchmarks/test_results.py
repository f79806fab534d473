from __future__ import annotations

from benchmarks.results import Results
from benchmarks.table import ONLY, Table


def made(name, seconds):
    samples = {"one": {ONLY: [seconds]}}
    return Table(name=name, page="page", unit="s", samples=samples, taken={"date": f"day {seconds}"})


def test_put_replaces_the_table_of_its_name_and_leaves_the_others(tmp_path):
    results = Results(tmp_path / "new folder" / "figures.json")
    assert results.tables() == []
    for table in (made("first", 1.0), made("second", 2.0), made("first", 3.0)):
        results.put(table)
    assert [(each.name, each.taken["date"]) for each in results.tables()] == [
        ("first", "day 3.0"),
        ("second", "day 2.0"),
    ]


def test_put_leaves_nothing_else_behind(tmp_path):
    Results(tmp_path / "figures.json").put(made("first", 1.0))
    assert [each.name for each in tmp_path.iterdir()] == ["figures.json"]
