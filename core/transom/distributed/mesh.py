"""The mesh of all processes: who is whose neighbour along which dimension."""

from __future__ import annotations

from dataclasses import dataclass

import torch.distributed as dist
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from transom.distributed.sizes import ParallelSizes
from transom.errors import ParallelError
from transom.transformer.meshes import announce_mesh

__all__ = ["DIMENSIONS", "ParallelMesh"]

DIMENSIONS = ("pp", "dp", "cp", "tp")
"""From the outermost to the innermost: ranks that share a layer's weights talk most, and are neighbours."""


@dataclass(frozen=True)
class ParallelMesh:
    """This rank's place among all.

    Args:
        sizes: of the dimensions.
        device_mesh: over all ranks, of the dimensions in `DIMENSIONS`.
        tokens: where ranks share sequences, the dimensions dp and cp as one.
    """

    sizes: ParallelSizes
    device_mesh: DeviceMesh
    tokens: DeviceMesh | None = None

    @classmethod
    def start(cls, sizes: ParallelSizes, device_type: str = "cpu") -> ParallelMesh:
        """Make the mesh; every rank calls it, after `torch.distributed.init_process_group`.

        Args:
            sizes: of the dimensions.
            device_type: where the model is: ``"cpu"``, ``"cuda"`` ...

        Returns:
            the mesh, of which the tensor-parallel part is known to whatever splits weights over ``tp_group``.

        Raises:
            ParallelError: there are more or fewer ranks than the sizes make.
        """
        world = dist.get_world_size()
        if world != sizes.ranks:
            raise ParallelError(
                f"{sizes} makes {sizes.ranks} ranks, and there are {world}.",
                hint="sizes whose product is the number of processes",
                sizes=sizes,
                world=world,
            )
        shape = tuple(getattr(sizes, name) for name in DIMENSIONS)
        mesh = init_device_mesh(device_type, shape, mesh_dim_names=DIMENSIONS)
        tokens = mesh["dp", "cp"]._flatten("dp_cp") if sizes.cp > 1 else None
        announce_mesh(mesh["tp"])
        return cls(sizes, mesh, tokens)

    def __str__(self) -> str:
        shape = ", ".join(f"{name}={getattr(self.sizes, name)}" for name in DIMENSIONS)
        return f"{self.sizes.ranks} ranks ({shape}) on {self.device_mesh.device_type}"

    @property
    def tp_group(self) -> ProcessGroup | None:
        """The ranks that share each layer's weights with this one; `None` = it is alone."""
        return self.group("tp") if self.sizes.tp > 1 else None

    @property
    def cp_group(self) -> ProcessGroup | None:
        """The ranks that share each sequence with this one; `None` = it is alone."""
        return self.group("cp") if self.sizes.cp > 1 else None

    @property
    def data(self) -> DeviceMesh:
        """The ranks that see other tokens, of one dimension: ``dp``, and ``cp`` inside it where ranks share sequences.

        Their gradients are averaged.
        """
        return self.device_mesh["dp"] if self.tokens is None else self.tokens

    def group(self, name: str) -> ProcessGroup:
        """Give the ranks that differ from this one along one dimension alone; of ``"data"``, those of `data`."""
        return (self.data if name == "data" else self.device_mesh[name]).get_group()

    def place(self, name: str) -> int:
        """Say which of the ranks along a dimension this one is."""
        return self.device_mesh.get_local_rank(name)
