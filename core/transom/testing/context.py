"""Sharing sequences over processes: every rank's share together gives what one process gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from transom.slots.attention import AttentionRequest
from transom.slots.layer import LayerRequest
from transom.slots.model import ModelRequest
from transom.slots.request import ArchitectureRequest
from transom.testing.assembly import assemble
from transom.testing.case import Case
from transom.testing.closeness import TOLERANCES, assert_close
from transom.testing.pieces import DTYPE
from transom.testing.ranks import SIZE, ranks
from transom.testing.subject import Subject, config_for
from transom.transformer.attention_mask import AttentionMask
from transom.transformer.collectives import Ranks
from transom.transformer.context_parallel import ContextShare
from transom.transformer.transformer_config import TransformerConfig

if TYPE_CHECKING:
    from transom.registry.implementation import Implementation

__all__ = ["context_cases"]

_FEATURE = "context_parallel"
_B, _S, _H, _V = 2, 8, 64, 48


def context_cases(subject: Subject) -> Iterator[Case]:
    """Make the case of an architecture that declares shares of sequences; core attention has cases of its own."""
    if _FEATURE not in subject.features or subject.slot.name not in _REQUESTS:
        return
    reason = None if subject.device == "cpu" else "the kit starts several processes on the CPU alone"
    if DTYPE not in subject.dtypes:
        reason = f"the kit compares processes in {DTYPE} alone"
    shows = f"{SIZE} processes with a share of every sequence together give what one gives with the whole"
    yield Case("parallel", _FEATURE, shows, partial(_check, subject), DTYPE, subject.device, reason)


def _check(subject: Subject) -> None:
    whole = _compute(subject.implementation, None)
    tolerance = TOLERANCES[DTYPE]
    for rank, found in enumerate(ranks().run(_compute, subject.implementation)):
        for name, wanted in whole.items():
            allowed = tolerance.gradients if "gradient" in name else tolerance.outputs
            assert_close(found[name], wanted.double(), allowed, f"{name} on rank {rank}")


def _compute(implementation: Implementation, group: ProcessGroup | None) -> dict[str, Tensor]:
    """Compute output and gradients with a rank's share, put together and summed; or with the whole."""
    subject, share = Subject(implementation), ContextShare(Ranks.of(group))
    config = config_for(
        num_query_groups=2, position_embedding_type="rope", context_parallel_size=share.ranks.size, params_dtype=DTYPE
    )
    slot = subject.slot.name
    named: dict[str, Any] = {} if slot == "model" else {"layer_number": 1}
    torch.manual_seed(3)
    module = assemble(subject, _REQUESTS[slot](subject, config), cp_group=group, **named)
    torch.manual_seed(4)
    given = torch.randint(_V, (_B, _S)) if slot == "model" else torch.randn(_B, _S, _H)
    direction = torch.randn(_B, _S, _V if slot == "model" else _H)
    output = _call(module, share.of(given), share.positions(_S))
    torch.autograd.backward((output * share.of(direction)).sum())
    found = {"the output": output.detach() if group is None else share.whole(output.detach())}
    for name, parameter in module.named_parameters():
        if parameter.grad is not None:
            if group is not None:
                torch.distributed.all_reduce(parameter.grad, group=group)
            found[f"the gradient of {name}"] = parameter.grad
    return found


def _call(module: nn.Module, given: Tensor, positions: Tensor) -> Tensor:
    if not given.is_floating_point():
        logits: Tensor = module(given, input_pos=positions)
        return logits
    hidden: Tensor = module(given, mask=AttentionMask(causal=True), positions=positions)[0]
    return hidden


def _request(kind: Callable[..., ArchitectureRequest], **sizes: int) -> _Request:
    def request(subject: Subject, config: TransformerConfig) -> ArchitectureRequest:
        features = frozenset({_FEATURE} if config.context_parallel_size > 1 else ())
        return replace(kind(context=subject.context(DTYPE), config=config, **sizes), features=features)

    return request


_Request = Callable[[Subject, TransformerConfig], ArchitectureRequest]

_REQUESTS: dict[str, _Request] = {
    "self_attention": _request(AttentionRequest),
    "layer": _request(LayerRequest),
    "model": _request(ModelRequest, vocab_size=_V, max_sequence_length=_S),
}
