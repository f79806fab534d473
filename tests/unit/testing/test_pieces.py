from __future__ import annotations

import re
from types import SimpleNamespace

import pytest
import torch
from transom.testing import ConformanceError
from transom.testing.pieces import config_of, features_of, local, part, run


def group(rank: int, size: int = 2) -> SimpleNamespace:
    return SimpleNamespace(rank=lambda: rank, size=lambda: size)


def test_part_is_a_ranks_share_or_the_whole():
    whole = torch.arange(8).view(2, 4)
    assert part(whole, 1, group(1)).tolist() == [[2, 3], [6, 7]]
    assert part(whole, 0, group(0)).tolist() == [[0, 1, 2, 3]]
    assert part(whole, 1, group(1), split=False) is whole
    assert part(whole, 1, None) is whole


def test_features_are_those_of_several_ranks():
    assert features_of(None, True) == frozenset()
    assert features_of(group(0), False) == {"tensor_parallel"}
    assert features_of(group(0), True) == {"tensor_parallel", "sequence_parallel"}


def test_config_is_split_over_the_ranks():
    config = config_of(2, True)
    assert (config.tensor_model_parallel_size, config.sequence_parallel) == (2, True)


def test_local_shares_memory_with_what_it_is_of():
    plain = torch.zeros(2, requires_grad=True)
    split = SimpleNamespace(to_local=lambda: plain)
    for given in (plain, split):
        assert not local(given).requires_grad
        assert local(given).data_ptr() == plain.data_ptr()


def test_run_gives_output_and_gradient():
    output, gradient = run(lambda x: 3 * x, torch.ones(2, 2), torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    assert output.tolist() == [[3.0, 3.0], [3.0, 3.0]]
    assert gradient.tolist() == [[3.0, 6.0], [9.0, 12.0]]


def test_run_refuses_an_output_of_another_shape():
    with pytest.raises(ConformanceError, match=re.escape("the output has shape [2, 1], expected [2, 2]")):
        run(lambda x: x[:, :1], torch.ones(2, 2), torch.ones(2, 2))
