from __future__ import annotations

from benchmarks.__main__ import main
from benchmarks.pages import PAGES, write_pages
from benchmarks.results import Results
from benchmarks.table import ONLY, Table

TIMES = Table(
    name="forward",
    page="forward",
    unit="s",
    samples={"monolith": {ONLY: [2.0]}, "transom": {ONLY: [1.0]}},
    base="monolith",
)
CURVE = Table(
    name="over layers",
    page="scaling",
    unit="s",
    samples={"one": {"2": [1.0], "4": [2.0]}},
    axis="layers",
)
NOBODY = Table(name="on a GPU", page="gpu", unit="s", samples={}, absent={"everybody": "no CUDA device"})


def test_write_pages_writes_every_page_and_pictures_of_what_was_measured(tmp_path):
    written = {path.name for path in write_pages(tmp_path, [TIMES, CURVE, NOBODY])}
    pictures = {f"{name}.{kind}" for name in ("forward", "scaling") for kind in ("png", "svg")}
    assert written == {f"{name}.md" for name in PAGES} | pictures
    assert "Nothing of this has been measured yet." in (tmp_path / "t5.md").read_text(encoding="utf-8")
    assert "| transom | 1 s | 1 s | 0.50 |" in (tmp_path / "forward.md").read_text(encoding="utf-8")
    assert "![Scaling](scaling.svg)" in (tmp_path / "scaling.md").read_text(encoding="utf-8")
    assert (tmp_path / "forward.png").read_bytes().startswith(b"\x89PNG")
    assert "svg" in (tmp_path / "forward.svg").read_text(encoding="utf-8")


def test_pages_are_the_same_from_the_same_figures(tmp_path):
    one, other = ({path.name: path.read_bytes() for path in write_pages(tmp_path, [TIMES])} for _ in range(2))
    assert one == other


def test_command_writes_pages_from_the_figures_alone(tmp_path):
    Results(tmp_path / "figures.json").put(TIMES)
    main(["--pages", "--out", str(tmp_path)])
    assert PAGES["forward"][0] in (tmp_path / "forward.md").read_text(encoding="utf-8")
