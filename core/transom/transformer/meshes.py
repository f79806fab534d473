"""Device meshes of process groups: where tensors that are split over the processes say so.

A process group is enough to compute with; a parameter that rests as a DTensor needs the mesh that the group is a
dimension of, and the very same one for every way in which it is split: torch composes data and tensor parallelism only
of dimensions of one mesh.
"""

from __future__ import annotations

import weakref

import torch.distributed as dist
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh

__all__ = ["announce_mesh", "mesh_of"]

_MESHES: weakref.WeakKeyDictionary[ProcessGroup, DeviceMesh] = weakref.WeakKeyDictionary()


def announce_mesh(mesh: DeviceMesh) -> None:
    """Let `mesh_of` give this mesh for its group.

    Args:
        mesh: of one dimension; a part of a larger one, as a rule.
    """
    _MESHES[mesh.get_group()] = mesh


def mesh_of(group: ProcessGroup, device_type: str) -> DeviceMesh:
    """Give the mesh of a group: the one that was announced, or one of its own.

    Args:
        group: the processes.
        device_type: where the tensors are: ``"cpu"``, ``"cuda"`` ...; ``"meta"`` = where they will be.

    Returns:
        a mesh of one dimension.
    """
    if group not in _MESHES:
        device_type = _device_of(group) if device_type == "meta" else device_type
        _MESHES[group] = DeviceMesh.from_group(group, device_type)
    return _MESHES[group]


def _device_of(group: ProcessGroup) -> str:
    return "cuda" if "nccl" in dist.get_backend_config(group) else "cpu"
