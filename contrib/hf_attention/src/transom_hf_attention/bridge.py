"""Core attentions under names that transformers' ``attn_implementation`` takes."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transom import AttentionMask, BuildContext, TransformerConfig
from transom.errors import InputError
from transom.registry.registry import default_registry
from transom.registry.resolve import parse_chain, resolve
from transom.slots.core_attention import CoreAttentionRequest

from transom_hf_attention.masks import mask_for_call, prepare_mask

__all__ = ["register"]

_PREFIX = "transom:"
# Transformers takes a name that has one of these in it for an implementation of its own.
_RESERVED = ("flash", "sdpa", "flex_attention")
_SLOT = "core_attention"
_numbers = itertools.count()


def register(*choices: str) -> tuple[str, ...]:
    """Make core attentions selectable in transformers.

    Nothing is imported before a model that names one is called. A core attention that cannot do what such a call asks
    for is refused then, with its reason; of a chain the first that can is taken.

    Args:
        choices: names, bare or with their distribution, or chains ``"a | b"``; none = every name that is registered.

    Returns:
        what to pass as ``attn_implementation``: ``"transom:NAME"`` for each. "flash", "sdpa" and "flex_attention" in a
        name are written with a capital, since transformers takes any name with these in it for its own.

    Raises:
        UnknownImplementationError: no core attention has such a name.

    Example:
        >>> register("dot_product")
        ('transom:dot_product',)
    """
    return tuple(_register(choice) for choice in choices or _all_names())


def _all_names() -> list[str]:
    """Every name by itself, unless several distributions have it, and with its distribution."""
    found = default_registry().implementations(_SLOT)
    bare = [each.name for each in found]
    return [name for name in dict.fromkeys(bare) if bare.count(name) == 1] + [each.ref for each in found]


def _register(choice: str) -> str:
    for name in parse_chain(choice, asked_by="register(...)"):
        default_registry().get(_SLOT, name, asked_by="register(...)")
    key = _PREFIX + choice
    for word in _RESERVED:
        key = key.replace(word, word.capitalize())
    AttentionMaskInterface.register(key, prepare_mask)
    AttentionInterface.register(key, partial(_attend, choice, next(_numbers)))
    return key


def _attend(
    choice: str,
    registration: int,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    dropout: float = 0.0,
    scaling: float | None = None,
    softcap: float | None = None,
    is_causal: bool | None = None,
    position_bias: Tensor | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attend, as transformers calls it.

    Args:
        choice: the core attention's name, or a chain.
        registration: counts calls of `register`; later ones start from new modules.
        module: the attention of the model.
        query: ``[b, n, s, d]``.
        key: ``[b, g, t, d]``.
        value: ``[b, g, t, dv]``.
        attention_mask: as for `mask_for_call`.
        dropout: of attention weights, 0 in evaluation.
        scaling: of the scores; `None` = 1/sqrt(d).
        softcap: of the scores.
        is_causal: used without a mask; `None` = as the module says.
        position_bias: added to the scores.
        others: what else a model hands to its attention.

    Returns:
        ``[b, s, n, dv]``, and `None` for the weights.
    """
    asked_by = f'attn_implementation="{_PREFIX}{choice}", {type(module).__name__}'
    s, t = query.shape[2], key.shape[2]
    is_causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    mask = mask_for_call(attention_mask, s, t, is_causal=is_causal, position_bias=position_bias, asked_by=asked_by)
    _refuse(others, mask, asked_by)
    core = _core(
        choice,
        registration,
        (getattr(module, "layer_idx", None) or 0) + 1,
        (query.shape[1], key.shape[1], query.shape[3], value.shape[3]),
        _features(mask, s, t, softcap, dropout, query.shape[1] != key.shape[1], query.shape[3] != value.shape[3]),
        (dropout, scaling, softcap),
        (query.device.type, query.dtype, torch.is_grad_enabled() and query.requires_grad),
    )
    return core(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), mask=mask), None


# What a model may hand to its attention that changes the result, and that no core attention is told.
_UNKNOWN_TO_TRANSOM = {
    "s_aux": "attention sinks",
    "sinks": "attention sinks",
    "head_mask": "a mask of heads",
    "cache": "a paged cache",
    "block_indices": "a choice of blocks of keys",
    "indices": "a choice of keys",
}


def _refuse(others: dict[str, Any], mask: AttentionMask, asked_by: str) -> None:
    """Refuse what would be lost."""
    for name, what in _UNKNOWN_TO_TRANSOM.items():
        if others.get(name) is not None:
            raise InputError(
                f"the model gives its attention {what} ({name}), which cannot be handed to Transom.",
                asked_by=asked_by,
                hint='attn_implementation="eager"',
            )
    if others.get("output_attentions"):
        raise InputError(
            "attention weights are asked for (output_attentions), and core attentions do not give them.",
            asked_by=asked_by,
            hint='attn_implementation="eager"',
        )
    cumulative = others.get("cu_seq_lens_q")
    if cumulative is not None and len(cumulative) > 2 and mask.query_segments is None and mask.keep is None:
        raise InputError(
            f"{len(cumulative) - 1} packed sequences are given (cu_seq_lens_q), and the mask does not tell them apart.",
            asked_by=asked_by,
            hint="pass position_ids that start anew with each sequence, without an attention_mask and without a cache",
        )


def _features(
    mask: AttentionMask, s: int, t: int, softcap: float | None, dropout: float, is_grouped: bool, has_other_values: bool
) -> tuple[str, ...]:
    """Say what the call needs, in the words of the slot."""
    aligned = mask.query_positions is None
    optional = {
        "bottom_right": mask.causal and s != t and aligned,
        "cross": not mask.causal and s != t,
        "softcap": softcap is not None,
        "dropout": dropout > 0,
        "gqa": is_grouped,
        "value_head_size": has_other_values,
    }
    return tuple(sorted(mask.features | {name for name, is_needed in optional.items() if is_needed}))


@dataclass(frozen=True)
class _Kind:
    """A kind of call, for which one module serves.

    Args:
        choice: a name or a chain.
        registration: which call of `register`.
        layer_number: counted from 1.
        sizes: n, g, d, dv.
        features: of the request.
        scores: dropout, scaling, softcap.
        place: device type, dtype, and whether gradients are needed.
    """

    choice: str
    registration: int
    layer_number: int
    sizes: tuple[int, int, int, int]
    features: tuple[str, ...]
    scores: tuple[float, float | None, float | None]
    place: tuple[str, torch.dtype, bool]


class _Cores:
    """The modules that were made, as attributes: what is compiled finds them there as it finds those of a model."""


_cores = _Cores()
_names: dict[tuple[Any, ...], str] = {}


def _core(*call: Any) -> nn.Module:
    """Give the module for a call of this kind, the fields of `_Kind`."""
    core: nn.Module = getattr(_cores, _name(*call))
    return core


@torch.compiler.assume_constant_result  # type: ignore[misc]  # made while tracing, not traced
def _name(*call: Any) -> str:
    """Make the module for a call of this kind, once, and say under which name it is found."""
    if call not in _names:
        name = f"core_{next(_numbers)}"
        setattr(_cores, name, _built(_Kind(*call)))
        _names[call] = name
    return _names[call]


def _built(kind: _Kind) -> nn.Module:
    """Choose an implementation, and make its module."""
    request = _request(kind)
    n, g, d, _ = kind.sizes
    dropout, scaling, softcap = kind.scores
    config = TransformerConfig(
        num_layers=kind.layer_number,
        hidden_size=n * d,
        num_attention_heads=n,
        num_query_groups=g,
        kv_channels=d,
        attn_logit_softcapping=softcap,
        attention_dropout=dropout,
        params_dtype=request.context.dtype,  # type: ignore[arg-type]  # floating, or the config says that it is not
    )
    asked_by = f'attn_implementation="{_PREFIX}{kind.choice}"'
    build: Any = resolve(_SLOT, kind.choice, request, asked_by=asked_by).chosen.load()
    with torch.device(request.context.device):
        core: nn.Module = build(config, request=request, layer_number=kind.layer_number, softmax_scale=scaling)
    return core.train(dropout > 0)


def _request(kind: _Kind) -> CoreAttentionRequest:
    n, g, d, dv = kind.sizes
    dropout, _, softcap = kind.scores
    device, dtype, trains = kind.place
    context = BuildContext(
        device=device,
        dtype=str(dtype).removeprefix("torch."),
        mode="train" if trains else "infer",
        deterministic=torch.are_deterministic_algorithms_enabled(),
        compute_capability=torch.cuda.get_device_capability() if device == "cuda" else None,
    )
    return CoreAttentionRequest(
        context=context,
        features=frozenset(kind.features),
        num_attention_heads=n,
        num_query_groups=g,
        head_size=d,
        value_head_size=dv,
        softcap=softcap,
        dropout=dropout,
    )
