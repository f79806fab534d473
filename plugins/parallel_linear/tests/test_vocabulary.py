"""Embedding and loss: in one process they are core's; what needs no second process; and two ranks by their formulas."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor
from torch.nn import functional as F
from torch.testing._internal.distributed.fake_pg import FakeStore
from transom import BuildContext, TransformerConfig
from transom.errors import ParallelError
from transom.slots.embedding import EmbeddingRequest
from transom.slots.loss import LossRequest
from transom.transformer.embedding import VocabEmbedding
from transom.transformer.loss import CrossEntropy
from transom_parallel_linear.embedding import VocabParallelEmbedding
from transom_parallel_linear.loss import VocabParallelCrossEntropy

V, H = 12, 8


def config(**changes: Any) -> TransformerConfig:
    return TransformerConfig(num_layers=1, hidden_size=H, num_attention_heads=4, **changes)


def table(cls: type, rows: int = V, group: Any = None, **changes: Any) -> Any:
    return cls(rows, H, config=config(**changes), init_method=nn.init.normal_, tp_group=group)


@pytest.fixture
def group(request: pytest.FixtureRequest) -> Iterator[dist.ProcessGroup]:
    rank, size = request.param
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=size)
    yield dist.group.WORLD
    dist.destroy_process_group()


def of(*places: tuple[int, int]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("group", places, indirect=True, ids=[f"{r} of {p}" for r, p in places])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_embedding_is_cores_in_one_process(dtype: str) -> None:
    tables = []
    for cls in (VocabParallelEmbedding, VocabEmbedding):
        torch.manual_seed(0)
        tables.append(table(cls, params_dtype=dtype))
    mine, cores = tables
    ids = torch.tensor([[0, 11, 3], [3, 3, 1]])
    assert torch.equal(mine.weight, cores.weight)
    assert torch.equal(mine(ids), cores(ids))
    hidden = torch.randn(2, 3, H, dtype=mine.weight.dtype)
    assert torch.equal(mine.project(hidden), F.linear(hidden, cores.weight))


@of((0, 2), (1, 2), (2, 3))
def test_embedding_holds_its_rows(group: dist.ProcessGroup) -> None:
    torch.manual_seed(0)
    mine = table(VocabParallelEmbedding, group=group)
    torch.manual_seed(0)
    rows = V // group.size()
    assert isinstance(mine.weight, DTensor)
    assert torch.equal(mine.weight.to_local(), torch.randn(V, H)[group.rank() * rows :][:rows])
    shard = mine.sharded_state_dict("table.")["table.weight"]
    assert (shard.global_shape, shard.global_offset) == ((V, H), (group.rank() * rows, 0))
    assert f"rank={group.rank()} of {group.size()}" in repr(mine)


@of((0, 2), (1, 2))
def test_embedding_leaves_ids_of_no_rank_to_a_lookup_that_refuses_them(group: dist.ProcessGroup) -> None:
    mine = table(VocabParallelEmbedding, group=group)
    outside = V if group.rank() == 1 else -1
    with pytest.raises(IndexError):
        mine(torch.tensor([[0, outside]]))


@of((0, 5))
def test_embedding_refuses_rows_that_cannot_be_split(group: dist.ProcessGroup) -> None:
    with pytest.raises(
        ParallelError, match="num_embeddings of embedding 12 x 8 cannot be split: 12 is not a"
    ) as caught:
        table(VocabParallelEmbedding, group=group)
    assert (caught.value.size, caught.value.ranks) == (V, 5)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("size", "reasons"), [(4, []), (5, ["num_embeddings cannot be split: 12 is not a multiple of 5 ranks"])]
)
def test_embedding_says_which_rows_it_cannot_split(size: int, reasons: list[str]) -> None:
    request = EmbeddingRequest(context=BuildContext(tensor_parallel_size=size), num_embeddings=V, embedding_dim=H)
    assert list(VocabParallelEmbedding.supports(request)) == reasons


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("fields", [{}, {"z_loss": 0.1}, {"softcap": 2.0}, {"ignore_index": 3}], ids=str)
def test_loss_is_cores_in_one_process(fields: dict[str, Any], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    request = LossRequest(context=BuildContext(), vocab_size=V, **fields)
    given = [torch.randn(2, 5, H, dtype=dtype), torch.randn(V, H, dtype=dtype), torch.randn(V, dtype=dtype)]
    labels = torch.randint(V, (2, 5))
    labels[0, 0] = request.ignore_index
    seen = []
    for cls in (VocabParallelCrossEntropy, CrossEntropy):
        hidden, weight, bias = (tensor.clone().requires_grad_() for tensor in given)
        losses = cls(config(), request=request)(hidden, weight, labels, bias)
        losses.sum().backward()
        seen.append([losses.detach(), hidden.grad, weight.grad, bias.grad])
    for one, other in zip(*seen, strict=True):
        assert one.dtype == other.dtype
        tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)
