from __future__ import annotations

import pytest
import torch
from transom.errors import ParallelError
from transom.transformer.embedding import VocabEmbedding
from transom.transformer.initialization import NormalInit


class TwoRanks:
    def size(self):
        return 2


def _make(config, tp_group=None):
    return VocabEmbedding(11, 4, config=config, init_method=NormalInit(1.0), tp_group=tp_group)


def test_embedding_looks_rows_up(make_config):
    table, ids = _make(make_config()), torch.tensor([[3, 0, 10], [3, 3, 1]])
    out = table(ids)
    assert out.shape == (2, 3, 4)
    assert all(torch.equal(out[i, j], table.weight[ids[i, j]]) for i in range(2) for j in range(3))


def test_embedding_gradient_adds_up_over_repeated_ids(make_config):
    table, ids = _make(make_config(params_dtype="float64")), torch.tensor([3, 0, 3])
    cotangent = torch.randn(3, 4, dtype=torch.float64)
    table(ids).backward(cotangent)
    expected = torch.zeros(11, 4, dtype=torch.float64)
    expected[3], expected[0] = cotangent[0] + cotangent[2], cotangent[1]
    torch.testing.assert_close(table.weight.grad, expected)


def test_embedding_has_one_parameter_in_the_configs_dtype(make_config):
    table = _make(make_config(params_dtype="bfloat16"))
    assert {name: (tuple(p.shape), p.dtype) for name, p in table.named_parameters()} == {
        "weight": ((11, 4), torch.bfloat16)
    }


def test_embedding_draws_its_rows_and_draws_them_again(make_config):
    torch.manual_seed(5)
    table = _make(make_config())
    drawn = table.weight.detach().clone()
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.empty(11, 4).normal_())
    torch.manual_seed(5)
    with torch.device("meta"):
        later = _make(make_config())
    later.to_empty(device="cpu").reset_parameters()
    assert torch.equal(later.weight, drawn)


def test_embedding_refuses_several_ranks(make_config):
    with pytest.raises(ParallelError) as caught:
        _make(make_config(), tp_group=TwoRanks())
    assert caught.value.what == "torch_embedding computes on one process and was given a tensor-parallel group of 2."
    assert caught.value.ranks == 2


def test_embedding_compiles_and_shows_its_shape(make_config):
    table, ids = _make(make_config()), torch.tensor([[3, 0]])
    assert torch.equal(torch.compile(table, fullgraph=True, backend="aot_eager")(ids), table(ids))
    assert repr(table) == "VocabEmbedding(11, 4)"
