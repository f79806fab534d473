from __future__ import annotations

import json
import math

import pytest
from benchmarks.table import ONLY, Table, slope


def made(**samples):
    return Table(name="name", page="page", unit="s", samples={row: {ONLY: each} for row, each in samples.items()})


def test_ratio_is_the_median_of_the_ratios_of_rounds():
    table = made(one=[1.0, 2.0, 9.0], other=[1.0, 4.0, 3.0])
    assert table.ratio("one", "other") == 1.0  # of 1, 0.5 and 3; the medians' is 2 / 3
    assert table.ratio("other", "other") == 1.0


def test_ratio_refuses_rounds_that_do_not_belong_together():
    with pytest.raises(ValueError, match="zip"):
        made(one=[1.0, 2.0], other=[1.0]).ratio("one", "other")


def test_median_and_least_are_those_of_the_rounds():
    table = made(one=[3.0, 1.0, 8.0, 4.0])
    assert (table.median("one"), table.least("one")) == (3.5, 1.0)


@pytest.mark.parametrize("power", [0.0, 1.0, 2.0, 1.5])
def test_slope_finds_the_power(power):
    assert slope([(x, 7.0 * x**power) for x in (2.0, 4.0, 8.0, 64.0)]) == pytest.approx(power)


def test_slope_of_one_point_is_unknown():
    assert math.isnan(slope([(1.0, 1.0)]))


def test_slope_of_a_row_is_that_of_its_medians():
    samples = {"one": {"2": [2.0, 2.0, 100.0], "4": [8.0, 8.0, 0.1]}}
    table = Table(name="name", page="page", unit="s", samples=samples, axis="layers")
    assert table.slope("one") == pytest.approx(2.0)


def test_table_survives_json():
    table = made(one=[1.0, 2.0])
    assert Table.from_json(json.loads(json.dumps(table.to_json()))) == table


def test_columns_are_those_of_all_rows():
    samples = {"one": {"a": [1.0]}, "other": {"a": [1.0], "b": [1.0]}}
    assert Table(name="name", page="page", unit="", samples=samples).columns == ["a", "b"]
