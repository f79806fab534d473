from __future__ import annotations

import pytest
from transom import TransformerConfig
from transom.checkpoint.hugging_face.settings import Settings
from transom.checkpoint.hugging_face.windows import layer_types, read_windows, width

FULL, SLIDING = "full_attention", "sliding_attention"


def config(**fields: object) -> TransformerConfig:
    return TransformerConfig(num_layers=3, hidden_size=8, num_attention_heads=2, **fields)


@pytest.mark.parametrize(
    ("size", "types", "expected"),
    [
        (None, [FULL] * 3, {}),
        (7, [FULL] * 3, {}),
        (7, [SLIDING] * 3, {"window_size": (6, 0)}),
        (7, [SLIDING, FULL, SLIDING], {"window_size": (6, 0), "window_attn_skip_freq": [1, 0, 1]}),
    ],
    ids=str,
)
def test_windows_are_read_and_written_again(size: int | None, types: list[str], expected: dict[str, object]) -> None:
    settings = Settings({"num_hidden_layers": 3}, "config.json")
    found = read_windows(settings, size, types)
    assert found == expected
    assert not settings.problems
    assert layer_types(config(**found)) == types
    assert width(config(**found)) == (size if expected else None)


@pytest.mark.parametrize(
    ("size", "types", "message"),
    [
        (7, [SLIDING], "layer_types has 1 entries"),
        (7, ["chunked_attention"] * 3, r"unknown: \['chunked_attention'\]"),
        (None, [SLIDING] * 3, "layer_types has sliding_attention, and there is no sliding_window"),
    ],
    ids=str,
)
def test_windows_that_cannot_be_are_told(size: int | None, types: list[str], message: str) -> None:
    settings = Settings({"num_hidden_layers": 3}, "config.json")
    assert read_windows(settings, size, types) == {}
    with pytest.raises(ValueError, match=message):
        settings.check()


def test_a_window_to_the_right_alone_has_no_width() -> None:
    assert width(config(window_size=(None, 2))) is None
