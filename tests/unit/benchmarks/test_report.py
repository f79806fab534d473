from __future__ import annotations

import math

import pytest
from benchmarks.report import amount, markdown, page
from benchmarks.table import ONLY, Table


@pytest.mark.parametrize(
    ("number", "unit", "text"),
    [
        (2.5, "s", "2.5 s"),
        (0.0123, "s", "12.3 ms"),
        (4.56e-5, "s", "45.6 us"),
        (1e-8, "s", "0.01 us"),
        (1234.4, "s", "1234 s"),
        (3 * 2**20, "bytes", "3 MiB"),
        (0.123, "share", "12.3 %"),
        (7.0, "", "7"),
        (math.nan, "s", "-"),
    ],
)
def test_amount_writes_three_digits_and_the_unit(number, unit, text):
    assert amount(number, unit) == text


def test_markdown_ranks_rows_with_ratios_to_base_and_limit():
    samples = {"monolith": {ONLY: [2.0, 2.0]}, "transom": {ONLY: [1.0, 1.0]}, "bound": {ONLY: [0.5, 0.5]}}
    table = Table(
        name="n",
        page="p",
        unit="s",
        samples=samples,
        base="monolith",
        limit="bound",
        absent={"other": "no such package"},
        note="A note.",
    )
    assert markdown(table) == [
        "|  | median | least | to monolith | to bound |",
        "|---|--:|--:|--:|--:|",
        "| bound | 500 ms | 500 ms | 0.25 | 1.00 |",
        "| transom | 1 s | 1 s | 0.50 | 2.00 |",
        "| monolith | 2 s | 2 s | 1.00 | 4.00 |",
        "",
        "A note.",
        "",
        "Not here: other (no such package).",
    ]


def test_markdown_of_a_curve_has_a_slope_for_each_row():
    samples = {"one": {"2": [1.0], "4": [2.0]}, "short": {"2": [1.0]}}
    lines = markdown(Table(name="n", page="p", unit="s", samples=samples, axis="layers", base="one"))
    assert lines == [
        "| layers | 2 | 4 | slope |",
        "|---|--:|--:|--:|",
        "| one | 1 s | 2 s | 1.00 |",
        "| short | 1 s | - | nan |",
    ]


def test_markdown_of_several_columns_sets_each_beside_the_base():
    samples = {"base": {"a": [2.0**20], "b": [2.0**21]}, "one": {"a": [2.0**21], "b": [2.0**21]}}
    lines = markdown(Table(name="n", page="p", unit="bytes", samples=samples, base="base"))
    assert lines[2:] == ["| base | 1 MiB | 2 MiB |", "| one | 2 MiB (2.00) | 2 MiB (1.00) |"]


def test_markdown_of_nobody_says_who_is_absent():
    table = Table(name="n", page="p", unit="s", samples={}, absent={"everybody": "no CUDA device"})
    assert markdown(table) == ["", "Not here: everybody (no CUDA device)."]


def test_page_says_once_what_holds_for_all_tables():
    shared = {"date": "2026-01-01", "processor": "any, 2 cores"}
    tables = [
        Table(name=name, page="p", unit="s", samples={"one": {ONLY: [1.0]}}, taken=shared | {"settings": settings})
        for name, settings in {"first": "7 rounds", "second": "3 rounds"}.items()
    ]
    text = page("Title", "Introduction.", tables, "p.svg")
    assert text.startswith(
        "# Title\n\nIntroduction.\n\n![Title](p.svg)\n\n- date: 2026-01-01\n- processor: any, 2 cores\n"
    )
    assert text.count("any, 2 cores") == 1
    assert "settings: 7 rounds." in text
    assert "settings: 3 rounds." in text
