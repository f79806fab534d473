from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
import transom
from torch.testing._internal.distributed.fake_pg import FakeStore
from transom.distributed.data_parallel import shard_over_data
from transom.distributed.mesh import ParallelMesh
from transom.distributed.sizes import ParallelSizes
from transom.errors import ParallelError
from transom.transformer.meshes import mesh_of


@pytest.fixture
def world(request: pytest.FixtureRequest) -> Iterator[None]:
    rank, size = request.param
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=size)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("world", [(5, 8)], indirect=True)
def test_mesh_has_tensor_parallel_ranks_next_to_one_another(world: None) -> None:
    mesh = ParallelMesh.start(ParallelSizes(tp=2, dp=4))
    assert (mesh.place("tp"), mesh.place("dp"), mesh.place("pp")) == (1, 2, 0)
    assert dist.get_process_group_ranks(mesh.group("tp")) == [4, 5]
    assert dist.get_process_group_ranks(mesh.group("dp")) == [1, 3, 5, 7]
    assert str(mesh) == "8 ranks (pp=1, dp=4, cp=1, tp=2) on cpu"


@pytest.mark.parametrize("world", [(0, 4)], indirect=True)
def test_mesh_is_known_to_what_is_split_over_its_ranks(world: None) -> None:
    mesh = ParallelMesh.start(ParallelSizes(tp=2, dp=2))
    assert mesh.tp_group is not None
    assert mesh_of(mesh.tp_group, "cpu") is mesh_of(mesh.tp_group, "meta")
    assert mesh_of(mesh.tp_group, "cpu") == mesh.device_mesh["tp"]
    other = mesh_of(mesh.group("dp"), "cpu")
    assert other.mesh.tolist() == [0, 2]


@pytest.mark.parametrize("world", [(6, 8)], indirect=True)
def test_mesh_knows_who_shares_a_sequence_and_who_sees_other_tokens(world: None) -> None:
    mesh = ParallelMesh.start(ParallelSizes(dp=2, cp=2, tp=2))
    assert mesh.cp_group is not None
    assert dist.get_process_group_ranks(mesh.cp_group) == [4, 6]
    assert mesh.data.mesh.tolist() == [0, 2, 4, 6]
    assert dist.get_process_group_ranks(mesh.group("data")) == [0, 2, 4, 6]


@pytest.mark.parametrize("world", [(0, 4)], indirect=True)
def test_mesh_alone_has_no_tensor_parallel_group(world: None) -> None:
    mesh = ParallelMesh.start(ParallelSizes(dp=4))
    assert mesh.tp_group is None
    assert mesh.cp_group is None
    assert mesh.data == mesh.device_mesh["dp"]


@pytest.mark.parametrize("world", [(0, 3)], indirect=True)
def test_mesh_refuses_another_number_of_ranks(world: None) -> None:
    with pytest.raises(ParallelError, match="tp=2,pp=1,dp=1,cp=1 makes 2 ranks, and there are 3") as caught:
        ParallelMesh.start(ParallelSizes(tp=2))
    assert caught.value.world == 3  # type: ignore[attr-defined]


@pytest.mark.parametrize("world", [(0, 2)], indirect=True)
def test_delayed_weight_gradients_are_refused_over_data(world: None) -> None:
    config = {"num_layers": 1, "hidden_size": 8, "num_attention_heads": 2, "delay_wgrad_compute": True}
    model = transom.build({"vocab_size": 8, "max_sequence_length": 4, "config": config}, seed=0)
    with pytest.raises(ParallelError, match="would not be averaged over the data-parallel ranks") as caught:
        shard_over_data(model, ParallelMesh.start(ParallelSizes(dp=2)))
    assert caught.value.asked_by == "config.delay_wgrad_compute"
    alone = ParallelMesh(ParallelSizes(), torch.distributed.init_device_mesh("cpu", (2,)))
    assert shard_over_data(model, alone) is model
