"""One process: bit for bit core's torch_linear. And what needs no second process: sizes, first values, refusals."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard
from torch.testing._internal.distributed.fake_pg import FakeStore
from transom import BuildContext, TransformerConfig
from transom.errors import ParallelError
from transom.slots.linear import LinearRequest
from transom.transformer.linear import ColumnLinear, RowLinear
from transom.transformer.mlp import MLP, MLPSubmodules, apply_swiglu_sharded_factory
from transom.transformer.sharding import local_part
from transom_parallel_linear.linear import ColumnParallelLinear, RowParallelLinear

IN, OUT = 6, 8


def config(**changes: Any) -> TransformerConfig:
    return TransformerConfig(num_layers=1, hidden_size=8, num_attention_heads=8, **changes)


def column(cls: type[nn.Module], *sizes: int, **changes: Any) -> nn.Module:
    arguments = {"gather_output": False, "bias": True, "skip_bias_add": False, "stride": 1}
    return build(cls, sizes, arguments | changes)


def row(cls: type[nn.Module], *sizes: int, **changes: Any) -> nn.Module:
    return build(cls, sizes, {"input_is_parallel": True, "bias": True, "skip_bias_add": False} | changes)


def build(cls: type[nn.Module], sizes: tuple[int, ...], arguments: dict[str, Any]) -> nn.Module:
    shared = {
        "config": config(),
        "init_method": nn.init.normal_,
        "is_expert": False,
        "tp_comm_buffer_name": None,
        "tp_group": None,
    }
    return cls(*(sizes or (IN, OUT)), **(shared | arguments))


def held(linear: nn.Module) -> list[Tensor]:
    """The parts of its parameters that a rank holds, as it computes with them."""
    return [linear.shard.local(parameter) for parameter in linear.parameters()]


@pytest.fixture
def group(request: pytest.FixtureRequest) -> Iterator[dist.ProcessGroup]:
    """A group of (rank, size) whose other ranks do not exist: enough to build on, not to compute."""
    rank, size = request.param
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=size)
    yield dist.group.WORLD
    dist.destroy_process_group()


def of(*places: tuple[int, int]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("group", places, indirect=True, ids=[f"{r} of {p}" for r, p in places])


KINDS = [(column, ColumnParallelLinear, ColumnLinear), (row, RowParallelLinear, RowLinear)]
each_kind = pytest.mark.parametrize(("make", "mine", "cores"), KINDS, ids=["column", "row"])


@each_kind
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("changes", [{}, {"bias": False}, {"skip_bias_add": True}], ids=str)
@pytest.mark.parametrize("delay", [False, True], ids=["at once", "delayed"])
def test_linear_is_torch_linear_to_the_bit_on_one_process(
    make: Any, mine: type, cores: type, dtype: str, changes: dict[str, Any], delay: bool
) -> None:
    seen = []
    for cls in (mine, cores):
        torch.manual_seed(3)
        linear = make(cls, 64, 48, config=config(params_dtype=dtype, delay_wgrad_compute=delay), **changes)
        seen.append(observe(linear, torch.randn(3, 5, 64, dtype=getattr(torch, dtype))))
    assert seen[0].keys() == seen[1].keys()
    for name, value in seen[0].items():
        assert torch.equal(value, seen[1][name]), name


def observe(linear: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Everything that a linear does: parameters, outputs, gradients, and how far it moved the generator."""
    if linear.bias is not None:
        nn.init.normal_(linear.bias)
    x.requires_grad_()
    out, bias = linear(x)
    (out.square().sum() + (0 if bias is None else bias.square().sum())).backward()
    early = torch.tensor(linear.weight.grad is None)
    linear.backward_dw()
    grads = {f"grad of {name}": p.grad for name, p in linear.named_parameters()}
    returned = {} if bias is None else {"bias": bias}
    return {"out": out, "x": x.grad, "early": early, "next": torch.rand(3)} | returned | grads | linear.state_dict()


@each_kind
@of((0, 1))
def test_linear_is_torch_linear_in_a_group_of_one(make: Any, mine: type, cores: type, group: dist.ProcessGroup) -> None:
    seen = []
    for cls in (mine, cores):
        torch.manual_seed(3)
        linear = make(cls, config=config(sequence_parallel=False), tp_group=group)
        seen.append(observe(linear, torch.randn(3, 5, IN)))
    assert all(torch.equal(value, seen[1][name]) for name, value in seen[0].items())


@of((0, 2), (1, 2), (3, 4))
@pytest.mark.parametrize("stride", [1, 2])
def test_column_linear_holds_its_rows_of_the_whole_weight(group: dist.ProcessGroup, stride: int) -> None:
    torch.manual_seed(0)
    linear = column(ColumnParallelLinear, tp_group=group, stride=stride)
    after = torch.rand(3)
    torch.manual_seed(0)
    whole = torch.randn(OUT, IN)
    rank, width = group.rank(), OUT // stride // group.size()
    rows = [m * OUT // stride + rank * width + i for m in range(stride) for i in range(width)]
    weight, bias = held(linear)
    assert torch.equal(weight, whole[rows])
    assert bias.shape == (len(rows),)
    assert torch.equal(after, torch.rand(3))


@of((0, 2), (1, 2), (2, 3))
def test_row_linear_holds_its_columns_of_the_whole_weight(group: dist.ProcessGroup) -> None:
    torch.manual_seed(0)
    linear = row(RowParallelLinear, tp_group=group)
    torch.manual_seed(0)
    whole = torch.randn(OUT, IN)
    width = IN // group.size()
    weight, bias = held(linear)
    assert torch.equal(weight, whole[:, group.rank() * width : (group.rank() + 1) * width])
    assert bias.shape == (OUT,)


@of((0, 2), (3, 4))
@pytest.mark.parametrize("stride", [1, 2])
def test_column_linear_rests_as_a_dtensor_and_is_shown_in_canonical_shapes(
    group: dist.ProcessGroup, stride: int
) -> None:
    linear = column(ColumnParallelLinear, tp_group=group, stride=stride)
    assert isinstance(linear.weight, DTensor)
    assert linear.weight.shape == ((OUT, IN) if stride == 1 else (2, OUT // 2, IN))
    assert linear.weight.placements == (Shard(stride - 1),)
    assert {name: tuple(t.shape) for name, t in linear.state_dict().items()} == {"weight": (OUT, IN), "bias": (OUT,)}


@of((1, 2))
@pytest.mark.parametrize("form", ["shown", "part", "whole"])
@pytest.mark.parametrize("stride", [1, 2])
def test_column_linear_loads_what_it_shows_and_plain_tensors(group: dist.ProcessGroup, stride: int, form: str) -> None:
    whole = {"weight": torch.randn(OUT, IN), "bias": torch.randn(OUT)}
    linear = column(ColumnParallelLinear, tp_group=group, stride=stride)
    part = {name: linear.shard.of(tensor) for name, tensor in whole.items()}
    given = {"part": part, "whole": whole}.get(form)
    if given is None:
        twin = column(ColumnParallelLinear, tp_group=group, stride=stride)
        twin.load_state_dict(part)
        given = twin.state_dict()
    linear.load_state_dict(given)
    assert all(map(torch.equal, held(linear), part.values()))


@each_kind
@of((1, 2))
def test_linear_on_the_meta_device_gets_the_same_values_later(
    make: Any, mine: type, cores: type, group: dist.ProcessGroup
) -> None:
    with torch.device("meta"):
        linear = make(mine, tp_group=group)
    assert linear.weight.is_meta
    linear.to_empty(device="cpu")
    torch.manual_seed(0)
    linear.reset_parameters()
    torch.manual_seed(0)
    assert all(map(torch.equal, held(linear), held(make(mine, tp_group=group))))


@each_kind
@of((0, 1), (1, 2))
def test_linear_draws_nothing_when_initialization_is_off(
    make: Any, mine: type, cores: type, group: dist.ProcessGroup
) -> None:
    torch.manual_seed(0)
    make(mine, config=config(perform_initialization=False), tp_group=group)
    drawn = torch.rand(3)
    torch.manual_seed(0)
    assert torch.equal(drawn, torch.rand(3))


@each_kind
@of((1, 2))
def test_linear_is_copied_and_pickled_without_its_group(
    make: Any, mine: type, cores: type, group: dist.ProcessGroup
) -> None:
    linear = make(mine, tp_group=group)
    for twin in (copy.deepcopy(linear), pickle.loads(pickle.dumps(linear))):
        assert all(map(torch.equal, held(twin), held(linear)))
        assert repr(twin) == repr(linear)
    assert "rank=1 of 2" in repr(linear)


HUGE = 10**9  # squared, no machine has room for it: what is refused was not allocated


@of((0, 4))
def test_column_linear_refuses_an_output_size_that_cannot_be_split(group: dist.ProcessGroup) -> None:
    with pytest.raises(ParallelError) as caught:
        column(ColumnParallelLinear, HUGE, HUGE + 2, tp_group=group)
    assert "1000000002 is not a multiple of 4 ranks" in str(caught.value)
    assert "a multiple of 4" in str(caught.value.hint)
    assert (caught.value.size, caught.value.stride, caught.value.ranks) == (HUGE + 2, 1, 4)  # type: ignore[attr-defined]


@of((0, 4))
def test_column_linear_splits_each_of_the_stacked_matrices(group: dist.ProcessGroup) -> None:
    """12 is a multiple of 4, but the two matrices of 6 rows each are not."""
    with pytest.raises(ParallelError, match=r"output_size of column linear 6 -> 12 cannot be split: 6 \(half of 12\)"):
        column(ColumnParallelLinear, IN, 12, stride=2, tp_group=group)


def test_column_linear_refuses_a_stride_that_does_not_divide() -> None:
    with pytest.raises(ParallelError, match="8 does not divide into 3 stacked matrices"):
        column(ColumnParallelLinear, stride=3)


@of((0, 4))
def test_row_linear_refuses_an_input_size_that_cannot_be_split(group: dist.ProcessGroup) -> None:
    with pytest.raises(
        ParallelError, match="input_size of row linear 1000000001 -> 1000000000 cannot be split"
    ) as caught:
        row(RowParallelLinear, HUGE + 1, HUGE, tp_group=group)
    assert (caught.value.size, caught.value.ranks) == (HUGE + 1, 4)  # type: ignore[attr-defined]


@of((0, 2))
def test_row_linear_refuses_a_whole_input_with_sequence_parallelism(group: dist.ProcessGroup) -> None:
    parallel = config(sequence_parallel=True, tensor_model_parallel_size=2)
    with pytest.raises(ParallelError, match="an input that is whole on every rank") as caught:
        row(RowParallelLinear, HUGE, HUGE, input_is_parallel=False, config=parallel, tp_group=group)
    assert "input_is_parallel=True" in str(caught.value.hint)


@of((0, 2))
def test_row_linear_refuses_a_sequence_that_cannot_be_split(group: dist.ProcessGroup) -> None:
    parallel = config(sequence_parallel=True, tensor_model_parallel_size=2)
    linear = row(RowParallelLinear, config=parallel, tp_group=group)
    with pytest.raises(ParallelError, match="a sequence of 5 tokens cannot be split over 2 ranks") as caught:
        linear(torch.randn(1, 5, IN // 2))
    assert (caught.value.sequence_length, caught.value.ranks) == (5, 2)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("cls", "sizes", "stride", "reason"),
    [
        (ColumnParallelLinear, (6, 8), 1, None),
        (ColumnParallelLinear, (6, 10), 1, "output_size cannot be split: 10 is not a multiple of 4 ranks"),
        (ColumnParallelLinear, (6, 12), 2, "output_size cannot be split: 6 (half of 12) is not a multiple of 4 ranks"),
        (ColumnParallelLinear, (6, 18), 3, "output_size cannot be split: 6 (18 / 3) is not a multiple of 4 ranks"),
        (RowParallelLinear, (8, 6), 1, None),
        (RowParallelLinear, (6, 8), 1, "input_size cannot be split: 6 is not a multiple of 4 ranks"),
    ],
)
def test_linear_says_which_sizes_it_cannot_split(
    cls: Any, sizes: tuple[int, int], stride: int, reason: str | None
) -> None:
    request = LinearRequest(
        context=BuildContext(tensor_parallel_size=4),
        input_size=sizes[0],
        output_size=sizes[1],
        bias=True,
        stride=stride,
    )
    assert list(cls.supports(request)) == ([] if reason is None else [reason])


@pytest.mark.parametrize("cls", [ColumnParallelLinear, RowParallelLinear])
def test_linear_refuses_delayed_gradients_in_a_compiled_model(cls: Any) -> None:
    request = LinearRequest(
        context=BuildContext(compile=True),
        features=frozenset({"delay_wgrad"}),
        input_size=IN,
        output_size=OUT,
        bias=True,
    )
    (reason,) = cls.supports(request)
    assert reason.startswith("delay_wgrad keeps tensors outside the graph")


@each_kind
def test_linear_is_not_compiled_again_for_another_layer(make: Any, mine: type, cores: type) -> None:
    graphs: list[object] = []

    def count(graph: torch.fx.GraphModule, _: object) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    torch.compiler.reset()
    x = torch.randn(2, 3, IN)
    for _ in range(3):
        layer = make(mine)
        layer.compile(fullgraph=True, backend=count)
        layer(x)
    assert len(graphs) == 1


@of((0, 2), (1, 2), (2, 4))
def test_column_describes_its_rows(group: dist.ProcessGroup) -> None:
    r, p = group.rank(), group.size()
    linear = column(ColumnParallelLinear, tp_group=group)
    state = linear.sharded_state_dict("fc.", ((0, 1, 3),), {"tensor_parallel_rank": r, "data_parallel_rank": 5})
    assert {name: (shard.global_shape, shard.global_offset, shard.replica_id) for name, shard in state.items()} == {
        "fc.weight": ((3, OUT, IN), (1, r * OUT // p, 0), (0, 5)),
        "fc.bias": ((3, OUT), (1, r * OUT // p), (0, 5)),
    }
    assert state["fc.weight"].data is linear.weight


@of((0, 2), (1, 2))
def test_row_describes_its_columns_and_a_whole_bias(group: dist.ProcessGroup) -> None:
    r = group.rank()
    linear = row(RowParallelLinear, tp_group=group)
    state = linear.sharded_state_dict("fc.", metadata={"data_parallel_rank": 5})
    assert {name: (shard.global_shape, shard.global_offset, shard.replica_id) for name, shard in state.items()} == {
        "fc.weight": ((OUT, IN), (0, r * IN // 2), (0, 5)),
        "fc.bias": ((OUT,), (0,), (r, 5)),
    }
    assert row(RowParallelLinear, tp_group=group, bias=False).sharded_state_dict().keys() == {"weight"}


@of((0, 2), (1, 2), (3, 4))
def test_stacked_matrices_of_a_rank_are_found_in_the_whole(group: dist.ProcessGroup) -> None:
    r, p = group.rank(), group.size()
    whole = torch.arange(2.0 * OUT * IN).view(2 * OUT, IN)
    linear = column(ColumnParallelLinear, IN, 2 * OUT, tp_group=group, stride=2, init_method=lambda w: w.copy_(whole))
    fused = linear.sharded_state_dict()["weight"]
    for shard in apply_swiglu_sharded_factory(fused, ()).build():
        assert torch.equal(shard.data, whole[shard.index])
    assert fused.axis_fragmentations == (p, 1)
    assert fused.global_offset == (r * 2 * OUT // p, 0)


@pytest.mark.parametrize("singleton", [False, True], ids=["one key", "two keys"])
@pytest.mark.parametrize(("saved_on", "loaded_on"), [(1, 4), (2, 1), (2, 4), (4, 2)])
def test_gated_mlp_saved_on_some_ranks_is_that_of_any_other(saved_on: int, loaded_on: int, singleton: bool) -> None:
    """Every rank draws the same whole weights, so what a rank of another size loads must be what it has already."""
    wholes: dict[str, Tensor] = {}
    for shards, _, _ in states_of_ranks(saved_on, singleton):
        for shard in shards:
            whole = wholes.setdefault(shard.key, torch.full(shard.global_shape, float("nan")))
            whole[shard.index] = shard.local.detach()
    for shards, mlp, state in states_of_ranks(loaded_on, singleton):
        found = [wholes[shard.key][shard.index] for shard in shards]
        for name, entry in state.items():
            parts = [found.pop(0) for _ in (entry.build() if hasattr(entry, "build") else [entry])]
            loaded = entry.merge_fn(parts) if hasattr(entry, "merge_fn") else parts[0]
            assert torch.equal(loaded, local_part(mlp.state_dict()[name], loaded.shape)), name


def states_of_ranks(size: int, singleton: bool) -> Iterator[tuple[list[Any], nn.Module, dict[str, Any]]]:
    for rank in range(size):
        dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=size)
        torch.manual_seed(0)
        gated = config(gated_linear_unit=True, ffn_hidden_size=12, init_method=nn.init.normal_)
        mlp = MLP(gated, MLPSubmodules(ColumnParallelLinear, RowParallelLinear), tp_group=dist.group.WORLD)
        state = mlp.sharded_state_dict(metadata={"singleton_local_shards": singleton, "tensor_parallel_rank": rank})
        dist.destroy_process_group()
        yield [s for entry in state.values() for s in getattr(entry, "build", lambda e=entry: [e])()], mlp, state
