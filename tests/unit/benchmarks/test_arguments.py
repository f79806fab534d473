"""What the benchmarks are asked for."""

from __future__ import annotations

import pytest
from benchmarks.__main__ import main


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (["--rounds", "0"], "argument --rounds: 0 rounds measure nothing; at least 1, better 7"),
        (["--threads", "-1"], "argument --threads: -1 is no number of threads"),
        (["--without", "monolith"], "argument --without: everybody is compared with the monolith"),
        (["--small"], "figures of tiny models belong elsewhere: give --out too"),
        (["--only", "nothing"], "argument --only: invalid choice: 'nothing'"),
    ],
)
def test_benchmarks_refuse_what_measures_nothing(given, text, capsys):
    with pytest.raises(SystemExit) as raised:
        main(given)
    assert raised.value.code == 2
    assert text in capsys.readouterr().err


def test_benchmarks_refuse_a_folder_that_cannot_be_written_before_they_measure(tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(SystemExit):
        main(["--out", str(tmp_path / "file" / "pages")])
    assert "is no folder that can be written to" in capsys.readouterr().err
