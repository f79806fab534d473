"""Everybody who takes part, checked to compute the same."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import lru_cache

import torch

from benchmarks.contenders.contender import BASE, Contender, check_same, gathered
from benchmarks.contenders.hand_written import monolith, monolith_t5
from benchmarks.contenders.of_torchtune import torchtune
from benchmarks.contenders.of_transformers import transformers_llama, transformers_t5
from benchmarks.contenders.of_transom import transom_absent, transom_decoders, transom_encoder_decoders
from benchmarks.contenders.of_x_transformers import x_transformers
from benchmarks.contenders.weights import hugging_face_llama, hugging_face_t5
from benchmarks.monolith import Shape
from benchmarks.monolith_t5 import T5Shape

__all__ = ["encoder_decoders", "llama_makers", "llamas"]

_NO_T5 = {
    "torchtune": "it has the encoder of a T5 alone",
    "x-transformers": "it has no T5 by name, and none is put together here",
}
"""Libraries that are compared elsewhere, and why not here."""


@lru_cache(maxsize=2)
def llamas(
    shape: Shape, dtype: torch.dtype, device: str, without: tuple[str, ...] = ()
) -> tuple[list[Contender], dict[str, str]]:
    """Make the Llamas that can take part, and say of the others why not.

    Raises:
        DifferentFunctionError: they are not the same function.
    """
    found, absent = _checked(llama_makers(shape, dtype, device), shape.vocab, device, without)
    return found, absent | transom_absent(dtype, device)


def llama_makers(shape: Shape, dtype: torch.dtype, device: str) -> dict[str, Callable[[], Contender]]:
    """Give what makes each contender."""
    reference = hugging_face_llama(shape)
    weights = {name: each.detach().clone() for name, each in reference.state_dict().items()}
    return {
        BASE: lambda: monolith(shape, weights, dtype, device),
        **transom_decoders(hugging_face_llama(shape), dtype, device),
        "transformers": lambda: transformers_llama(reference, dtype, device),
        "torchtune": lambda: torchtune(shape, weights, dtype, device),
        "x-transformers": lambda: x_transformers(shape, weights, dtype, device),
    }


@lru_cache(maxsize=2)
def encoder_decoders(
    shape: T5Shape, dtype: torch.dtype, device: str, without: tuple[str, ...] = ()
) -> tuple[list[Contender], dict[str, str]]:
    """Make the T5s that can take part, and say of the others why not.

    Raises:
        DifferentFunctionError: they are not the same function.
    """
    reference = hugging_face_t5(shape)
    weights = {name: each.detach().clone() for name, each in reference.state_dict().items()}
    makers: dict[str, Callable[[], Contender]] = {
        BASE: lambda: monolith_t5(shape, weights, dtype, device),
        **transom_encoder_decoders(hugging_face_t5(shape), dtype, device),
        "transformers": lambda: transformers_t5(reference, dtype, device),
    }
    found, absent = _checked(makers, shape.vocab, device, without)
    return found, absent | _NO_T5


def _checked(
    makers: dict[str, Callable[[], Contender]], vocab: int, device: str, without: Collection[str]
) -> tuple[list[Contender], dict[str, str]]:
    found, absent = gathered({name: make for name, make in makers.items() if name not in without})
    ids = torch.randint(0, vocab, (2, 12), generator=torch.Generator().manual_seed(1)).to(device)
    check_same(found, ids)
    return found, absent | {name: "left out, --without" for name in makers if name in without}
