"""Splitting over processes: every rank together gives what one process gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from transom.errors import ResolutionError
from transom.slots.attention import AttentionRequest
from transom.slots.layer import LayerRequest
from transom.slots.linear import LinearRequest
from transom.slots.mlp import MLPRequest
from transom.slots.request import ArchitectureRequest
from transom.testing.assembly import assemble, node_of
from transom.testing.case import Case, CaseSkipped
from transom.testing.closeness import TOLERANCES, assert_close
from transom.testing.parallel_vocabulary import compute_embedding, compute_loss, compute_model, model_request
from transom.testing.pieces import DTYPE, FEATURES, Piece, Pieces, config_of, context_of, features_of, local, part, run
from transom.testing.ranks import SIZE, ranks
from transom.testing.subject import Subject
from transom.transformer.attention_mask import AttentionMask
from transom.transformer.transformer_config import TransformerConfig

if TYPE_CHECKING:
    from transom.registry.implementation import Implementation

__all__ = ["parallel_cases"]

_SHAPE = (2, 4)
_IN, _OUT, _H = 24, 40, 64


def parallel_cases(subject: Subject) -> Iterator[Case]:
    """Make the cases of splitting over processes, for what is declared of it, in the slots that the kit can split."""
    for feature in FEATURES:
        if feature not in subject.features or subject.slot.name not in _COMPUTE:
            continue
        reason = _unavailable(subject)
        shows = f"with {feature}, {SIZE} processes together give what one gives"
        yield Case("parallel", feature, shows, partial(_check, subject, feature), DTYPE, subject.device, reason)


def _unavailable(subject: Subject) -> str | None:
    if subject.device != "cpu":
        return "the kit starts several processes on the CPU alone"
    if "encoder_decoder" in subject.features:
        return "the kit splits models that take tokens alone"
    return None if DTYPE in subject.dtypes else f"the kit compares processes in {DTYPE} alone"


def _check(subject: Subject, feature: str) -> None:
    compute = _COMPUTE[subject.slot.name]
    sequence = feature == "sequence_parallel"
    _require_parts(subject, sequence)
    whole = compute(subject.implementation, False, None)
    parts = ranks().run(compute, subject.implementation, sequence)
    tolerance = TOLERANCES[DTYPE]
    for name, one in whole.items():
        pieces = [part[name] for part in parts]
        allowed = tolerance.gradients if "gradient" in name else tolerance.outputs
        wanted = one.tensor.double()
        if pieces[0].dim is not None:
            assert_close(torch.cat([piece.tensor for piece in pieces], dim=pieces[0].dim), wanted, allowed, name)
            continue
        for rank, piece in enumerate(pieces):
            assert_close(piece.tensor, wanted, allowed, f"{name} on rank {rank}")


def _require_parts(subject: Subject, sequence: bool) -> None:
    """Skip where no implementation of a place inside can be split."""
    make = _REQUESTS.get(subject.slot.name)
    if make is None:
        return
    try:
        node_of(subject, make(subject, config_of(SIZE, sequence)))
    except ResolutionError as error:
        raise CaseSkipped(f"nothing that is installed can be split inside it: {error.what}") from error


def _linear(implementation: Implementation, sequence: bool, group: ProcessGroup | None) -> Pieces:
    """Compute with a column linear, whose output is gathered, or a row linear, whose input is split."""
    subject = Subject(implementation)
    is_column = subject.slot.name == "column_linear"
    config = config_of(1 if group is None else group.size(), sequence)
    request = LinearRequest(
        context=context_of(subject, config),
        features=features_of(group, sequence),
        input_size=_IN,
        output_size=_OUT,
        bias=True,
    )
    torch.manual_seed(3)
    module = _build_linear(subject, request, config, is_column, group)
    bias, x, direction = torch.randn(_OUT), torch.randn(*_SHAPE, _IN), torch.randn(*_SHAPE, _OUT)
    with torch.no_grad():
        local(module.get_parameter("bias")).copy_(part(bias, 0, group, split=is_column))
    if is_column:
        given, back = part(x, 1, group, split=sequence), direction
    else:
        given, back = part(x, 2, group), part(direction, 1, group, split=sequence)
    output, gradient = run(lambda x: module(x)[0], given, back)
    weight = module.get_parameter("weight").grad
    assert weight is not None
    split = {True: 1, False: None}[sequence and group is not None]
    if is_column:
        return {
            "output": Piece(output),
            "the gradient of x": Piece(gradient, split),
            "the gradient of weight": Piece(local(weight), 0),
        }
    return {
        "output": Piece(output, split),
        "the gradient of x": Piece(gradient, 2),
        "the gradient of weight": Piece(local(weight), 1),
    }


def _build_linear(
    subject: Subject, request: LinearRequest, config: TransformerConfig, is_column: bool, group: ProcessGroup | None
) -> nn.Module:
    of_slot: dict[str, Any] = {"gather_output": True} if is_column else {"input_is_parallel": True}
    return subject.build(
        request,
        _IN,
        _OUT,
        config=config,
        init_method=nn.init.normal_,
        bias=True,
        skip_bias_add=False,
        is_expert=False,
        tp_comm_buffer_name=None,
        tp_group=group,
        **of_slot,
    )


def _architecture(implementation: Implementation, sequence: bool, group: ProcessGroup | None) -> Pieces:
    """Compute with an architecture whose linears are split inside it: its input and output are whole on every rank."""
    subject = Subject(implementation)
    config = config_of(1 if group is None else group.size(), sequence)
    torch.manual_seed(3)
    named: dict[str, Any] = {} if subject.slot.name == "mlp" else {"layer_number": 1}
    request = _ARCHITECTURES[subject.slot.name](subject, config)
    module = assemble(subject, request, tp_group=group, **named)
    torch.manual_seed(4)
    x, other, direction = (torch.randn(*_SHAPE, _H) for _ in range(3))

    def call(x: Tensor) -> Tensor:
        if subject.slot.name == "mlp":
            output, bias = module(x)
        elif subject.slot.name == "cross_attention":
            output, bias = module(x, key_value_states=other)
        else:
            output, bias = module(x, mask=AttentionMask(causal=True))
        assert isinstance(output, Tensor)
        return output if bias is None or subject.slot.name == "layer" else output + bias

    output, gradient = run(call, x, direction)
    return {"output": Piece(output), "the gradient of the input": Piece(gradient)}


_Request = Callable[[Subject, TransformerConfig], ArchitectureRequest]


def _of(kind: Callable[..., ArchitectureRequest], masks: frozenset[str]) -> _Request:
    def request(subject: Subject, config: TransformerConfig) -> ArchitectureRequest:
        size = config.tensor_model_parallel_size
        features = frozenset({"tensor_parallel"} if size > 1 else ())
        made = kind(context=context_of(subject, config), features=features, config=config)
        return replace(made, masks=masks)

    return request


_ARCHITECTURES: dict[str, _Request] = {
    "mlp": _of(partial(MLPRequest, after_norm=True), frozenset()),
    "self_attention": _of(AttentionRequest, frozenset({"causal"})),
    "cross_attention": _of(AttentionRequest, frozenset()),
    "layer": _of(LayerRequest, frozenset({"causal"})),
}
_REQUESTS: dict[str, _Request] = {**_ARCHITECTURES, "model": model_request}


_COMPUTE: dict[str, Callable[[Implementation, bool, ProcessGroup | None], Pieces]] = {
    "column_linear": _linear,
    "row_linear": _linear,
    "embedding": compute_embedding,
    "loss": compute_loss,
    **dict.fromkeys(_ARCHITECTURES, _architecture),
    "model": compute_model,
}
