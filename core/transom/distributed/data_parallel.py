"""Data parallelism: parameters, gradients and optimizer state split over the ranks that see other data (FSDP2)."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Literal

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor.placement_types import Shard

from transom.distributed.mesh import ParallelMesh
from transom.errors import ParallelError

__all__ = ["put_to_rest", "shard_over_data"]


def shard_over_data(
    model: nn.Module, mesh: ParallelMesh, *, precision: Literal["float32", "bfloat16"] = "float32"
) -> nn.Module:
    """Split a model over the data-parallel and context-parallel ranks, each layer by itself, in place.

    A layer's parameters are gathered when it runs and dropped afterwards, in a pipeline once for a batch; gradients are
    averaged over the ranks as they arise. Parameters that are split over tensor-parallel ranks are split further. With
    one data-parallel rank nothing happens.

    Args:
        model: or stage of a pipeline, with its layers in a container ``layers`` of it or of a module below; on its
            device, the same on every data-parallel rank; it has no optimizer yet.
        mesh: of the ranks, which all call it.
        precision: in which parameters are gathered; gradients are summed in float32, and parameters rest as they are.

    Returns:
        the model.

    Raises:
        ParallelError: the model's linears delay weight gradients, which would not be averaged.

    Source: Zhao et al. 2023, PyTorch FSDP; torch's ``fully_shard``.
    """
    if mesh.sizes.data == 1:
        return model
    _refuse_delayed(model)
    # Layers hand on what cross-attention reads: to torch a view of their input, which nobody changes in place.
    warnings.filterwarnings("ignore", ".*returned a view tensor", UserWarning)
    narrow = precision == "bfloat16"
    # Autocast casts what products take; casting the arguments of layers would copy the mask that they share.
    mixed = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    policy = mixed if narrow else MixedPrecisionPolicy()
    dp, place = mesh.data, _placement(mesh.sizes.data)
    # The parts of a batch follow one another in a pipeline: gathering a stage for each would cost more than it saves.
    drop = None if mesh.sizes.pp == 1 else False
    for layer in list(_layers(model)):
        fully_shard(layer, mesh=dp, mp_policy=policy, shard_placement_fn=place, reshard_after_forward=drop)
    fully_shard(model, mesh=dp, mp_policy=policy, shard_placement_fn=place, reshard_after_forward=drop)
    return model


def put_to_rest(model: nn.Module) -> None:
    """Drop what is gathered of parameters: a forward pass without a backward pass leaves some of them so.

    A model's parameters are those that its optimizer knows only at rest; what saves or fills them calls this first.

    Args:
        model: split by `shard_over_data`, or not.

    Example:
        >>> put_to_rest(nn.Linear(2, 2))
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def _layers(model: nn.Module) -> Iterator[nn.Module]:
    for module in model.modules():
        layers = getattr(module, "layers", None)
        if isinstance(layers, nn.ModuleList):
            yield from layers
        elif isinstance(layers, nn.ModuleDict):
            yield from layers.values()


def _placement(ranks: int) -> Callable[[nn.Parameter], Shard | None]:
    """Choose along which dimension a parameter is split: the first, unless it is too short and the last divides.

    Stacked matrices are ``[2, width, in]``: over more than two ranks the first dimension would leave most of them none.
    """

    def choose(parameter: nn.Parameter) -> Shard | None:
        last = parameter.ndim - 1
        is_stack = parameter.ndim == 3 and parameter.shape[0] < ranks and parameter.shape[last] % ranks == 0
        return Shard(last) if is_stack else None

    return choose


def _refuse_delayed(model: nn.Module) -> None:
    delays = getattr(getattr(model, "plan", None), "config", None)
    if delays is not None and delays.delay_wgrad_compute:
        raise ParallelError(
            "weight gradients that are delayed would not be averaged over the data-parallel ranks.",
            asked_by="config.delay_wgrad_compute",
            hint="delay_wgrad_compute: false, or dp=1 and cp=1",
        )
