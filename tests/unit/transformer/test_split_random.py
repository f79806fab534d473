from __future__ import annotations

import torch
from transom.transformer._attention_parts import Drawing
from transom.transformer.collectives import Ranks
from transom.transformer.split_random import drawn_apart

CPU = torch.device("cpu")


def draw(rank: int, before: int = 0) -> list[torch.Tensor]:
    torch.manual_seed(11)
    torch.rand(before)
    drawn = []
    for _ in range(2):
        with drawn_apart(Ranks("", 4, rank), CPU):
            drawn.append(torch.rand(5))
        drawn.append(torch.rand(5))
    return drawn


def test_ranks_draw_apart_inside_and_the_same_outside() -> None:
    ranks = [draw(rank) for rank in range(4)]
    for inside in (0, 2):
        assert len({tuple(drawn[inside].tolist()) for drawn in ranks}) == 4
    for outside in (1, 3):
        assert all(torch.equal(drawn[outside], ranks[0][outside]) for drawn in ranks)
    assert not torch.equal(ranks[0][0], ranks[0][2])


def test_what_is_drawn_follows_from_the_shared_generator_alone() -> None:
    """So that recomputation, which restores that generator, draws the same again."""
    assert all(torch.equal(one, other) for one, other in zip(draw(2), draw(2), strict=True))
    assert not torch.equal(draw(2)[0], draw(2, before=1)[0])


def test_attention_leaves_the_generator_alone_where_ranks_draw_apart_anyway() -> None:
    ranks, drawn = Ranks("", 2, 1), []
    for alike in (True, False):
        torch.manual_seed(0)
        with Drawing(ranks, 0.5, alike=alike)(CPU, training=True):
            drawn.append(torch.rand(3))
    torch.manual_seed(0)
    own = torch.rand(3)
    assert [torch.equal(each, own) for each in drawn] == [False, True]
