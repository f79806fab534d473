"""Splitting the vocabulary over processes: tables, losses, and models with both."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.distributed.tensor import DTensor, Shard

from transom.slots.embedding import EmbeddingRequest
from transom.slots.loss import LossRequest
from transom.slots.model import ModelRequest
from transom.testing.assembly import assemble
from transom.testing.case import ConformanceError
from transom.testing.pieces import Piece, Pieces, config_of, context_of, features_of, local, part, run
from transom.testing.subject import Subject
from transom.transformer.meshes import mesh_of
from transom.transformer.transformer_config import TransformerConfig

if TYPE_CHECKING:
    from transom.registry.implementation import Implementation

__all__ = ["compute_embedding", "compute_loss", "compute_model", "model_request"]

_SHAPE = (2, 4)
_V, _H = 32, 64
_IGNORED = -100
_STEP = 0.5


def compute_embedding(implementation: Implementation, sequence: bool, group: ProcessGroup | None) -> Pieces:
    """Look the same ids up on every rank, and project the same hidden states to logits by the table.

    Args:
        implementation: of the slot ``embedding``.
        sequence: with sequence parallelism.
        group: the ranks; `None` = one process.
    """
    subject = Subject(implementation)
    config = config_of(1 if group is None else group.size(), sequence)
    request = EmbeddingRequest(
        context=context_of(subject, config),
        features=features_of(group, sequence),
        num_embeddings=_V,
        embedding_dim=_H,
    )
    torch.manual_seed(3)
    module = subject.build(request, _V, _H, config=config, init_method=nn.init.normal_, tp_group=group)
    torch.manual_seed(4)
    ids, direction = torch.randint(_V, _SHAPE), torch.randn(*_SHAPE, _H)
    split = 1 if sequence and group is not None else None
    wanted = part(direction, 1, group, split=sequence)
    output = module(ids)
    if output.shape != wanted.shape:
        raise ConformanceError(f"the output has shape {list(output.shape)}, expected {list(wanted.shape)}")
    torch.autograd.backward((output * wanted).sum())
    pieces = {"output": Piece(output.detach(), split), "the gradient of weight": Piece(_gradient(module, "weight"), 0)}
    return pieces | _project(module, sequence, group)


def _project(module: nn.Module, sequence: bool, group: ProcessGroup | None) -> Pieces:
    """Compute the logits of a model whose output layer is its table."""
    hidden, direction = torch.randn(*_SHAPE, _H), torch.randn(*_SHAPE, _V)
    if group is None:
        logits, gradient = run(lambda x: F.linear(x, module.get_parameter("weight")), hidden, direction)
        return {"the logits": Piece(logits), "the gradient of hidden": Piece(gradient)}
    project = getattr(module, "project", None)
    if project is None:
        raise ConformanceError("it has no project(hidden), which a table that is split must have")
    logits, gradient = run(project, part(hidden, 1, group, split=sequence), direction)
    return {"the logits": Piece(logits), "the gradient of hidden": Piece(gradient, 1 if sequence else None)}


def compute_loss(implementation: Implementation, sequence: bool, group: ProcessGroup | None) -> Pieces:
    """Compute the same tokens' losses on every rank, with an output weight that is split over the ranks.

    Args:
        implementation: of the slot ``loss``.
        sequence: with sequence parallelism.
        group: the ranks; `None` = one process.
    """
    subject = Subject(implementation)
    config = config_of(1 if group is None else group.size(), sequence)
    request = LossRequest(context=context_of(subject, config), features=features_of(group, sequence), vocab_size=_V)
    module = subject.build(request, config, request=request)
    torch.manual_seed(4)
    hidden, labels, direction = torch.randn(*_SHAPE, _H), torch.randint(_V, _SHAPE), torch.randn(_SHAPE)
    labels[0, 1] = _IGNORED
    weight, bias = _rows(torch.randn(_V, _H) / 8, group), _rows(torch.randn(_V), group)
    given = part(hidden, 1, group, split=sequence)
    losses, gradient = run(lambda x: module(x, weight, labels, bias), given, direction)
    for name, leaf in (("weight", weight), ("bias", bias)):
        if leaf.grad is None:
            raise ConformanceError(f"no gradient reaches {name}")
    return {
        "the losses": Piece(losses),
        "the gradient of hidden": Piece(gradient, 1 if sequence and group is not None else None),
        "the gradient of weight": Piece(_gradient_of(weight), 0),
        "the gradient of bias": Piece(_gradient_of(bias), 0),
    }


def _rows(whole: Tensor, group: ProcessGroup | None) -> nn.Parameter:
    """Split a parameter's rows over the ranks, as parameters rest."""
    if group is None:
        return nn.Parameter(whole)
    return nn.Parameter(DTensor.from_local(part(whole, 0, group), mesh_of(group, "cpu"), [Shard(0)]))


def _gradient(module: nn.Module, name: str) -> Tensor:
    return _gradient_of(module.get_parameter(name))


def _gradient_of(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None
    return local(parameter.grad)


def model_request(subject: Subject, config: TransformerConfig) -> ModelRequest:
    """Ask for a model on several ranks."""
    features = frozenset({"tensor_parallel"} if config.tensor_model_parallel_size > 1 else ())
    return ModelRequest(
        context=context_of(subject, config), features=features, config=config, vocab_size=_V, max_sequence_length=8
    )


def compute_model(implementation: Implementation, sequence: bool, group: ProcessGroup | None) -> Pieces:
    """Compute logits and losses, take a step along the gradient, and compute the losses again.

    Args:
        implementation: of the slot ``model``.
        sequence: with sequence parallelism.
        group: the ranks; `None` = one process.
    """
    subject = Subject(implementation)
    config = config_of(1 if group is None else group.size(), sequence)
    torch.manual_seed(3)
    module = assemble(subject, model_request(subject, config), tp_group=group)
    torch.manual_seed(4)
    tokens, labels = torch.randint(_V, _SHAPE), torch.randint(_V, _SHAPE)
    logits, losses = module(tokens).detach(), module(tokens, labels=labels)
    torch.autograd.backward(losses.mean())
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.grad is not None:
                parameter.add_(parameter.grad, alpha=-_STEP)
        after = module(tokens, labels=labels)
    return {
        "the logits": Piece(logits),
        "the losses": Piece(losses.detach()),
        "the losses after a step along the gradient": Piece(after),
    }
