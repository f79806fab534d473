"""A comparison as a picture."""

from __future__ import annotations

from pathlib import Path

import pytest
from transom.comparison.compare import Comparison, Outcome
from transom.comparison.picture import draw_comparison
from transom.comparison.timing import Times
from transom.errors import InputError

FOUND = Comparison(
    slot="norm",
    path="n",
    mode="infer",
    device="cpu",
    dtype="float32",
    outcomes={(1, 8): (Outcome(name="a", forward=Times((1.0,)), both=None, output_error=0.0, gradient_error=None),)},
    refused={},
)


@pytest.mark.parametrize(("name", "start"), [("c.png", b"\x89PNG"), ("c.svg", b"<?xml"), ("c.pdf", b"%PDF")])
def test_draw_comparison_writes_what_the_suffix_says(name, start, tmp_path):
    draw_comparison(FOUND, tmp_path / name)
    assert (tmp_path / name).read_bytes().startswith(start)


def test_draw_comparison_refuses_another_format(tmp_path):
    with pytest.raises(InputError, match="no picture that can be drawn"):
        draw_comparison(FOUND, tmp_path / "c.docx")
    assert list(Path(tmp_path).iterdir()) == []
