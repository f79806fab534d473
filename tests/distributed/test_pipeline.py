"""Stages of a decoder on several processes train as the whole does in one, whatever the schedule and the cut."""

from __future__ import annotations

import math
from typing import Any

import pipeline_jobs
import pytest
import torch
from transom.testing.ranks import ranks

pytestmark = pytest.mark.multiprocess

UNTIED = {"share_embeddings_and_output_weights": False, "position_embedding_type": "learned_absolute"}
LAYOUT = {"pipeline_model_parallel_layout": "Et|tttL"}


@pytest.mark.parametrize(
    ("sizes", "virtual", "schedule", "changes"),
    [
        ({"pp": 2}, 1, "gpipe", {}),
        ({"pp": 2}, 1, "1f1b", UNTIED),
        ({"pp": 2}, 1, "1f1b", LAYOUT),
        ({"pp": 2}, 1, "zero_bubble", {}),
        ({"pp": 2}, 2, "interleaved", {}),
        ({"pp": 2}, 2, "zero_bubble", {}),
        ({"pp": 4}, 1, "gpipe", {}),
        ({"pp": 2, "tp": 2}, 1, "zero_bubble", {"qk_layernorm": False}),
        ({"pp": 2, "dp": 2}, 1, "1f1b", {}),
        ({"pp": 2, "dp": 2}, 2, "interleaved", UNTIED),
        ({"pp": 2, "dp": 2}, 1, "zero_bubble", {}),
    ],
    ids=str,
)
def test_stages_train_as_the_whole_does(
    sizes: dict[str, int], virtual: int, schedule: str, changes: dict[str, Any]
) -> None:
    same = {name: value for name, value in changes.items() if not name.startswith("pipeline")}
    expected, weights = pipeline_jobs.alone(3, **same)
    count = math.prod(sizes.values())
    found: set[str] = set()
    for seen, own in ranks(count).run(pipeline_jobs.run, sizes, virtual, schedule, changes):
        assert seen == pytest.approx(expected, rel=1e-6)
        for name, value in own.items():
            torch.testing.assert_close(value, weights[name], rtol=1e-6, atol=1e-7)
        found |= own.keys()
    assert found == weights.keys()


def test_pipeline_refuses_what_it_cannot_run() -> None:
    for said in ranks(2).run(pipeline_jobs.refusals, {"pp": 2}):
        assert said == [
            "the schedule 'interleaved' cannot run 1 stage a rank.",
            "a batch of 3 sequences does not divide into 4 parts.",
        ]


def test_error_of_a_stage_is_raised_as_it_is() -> None:
    assert ranks(2).run(pipeline_jobs.stage_error) == ["the stage is broken."] * 2
