"""Transom as contenders: with the parts that are named first, and one more for every other part that serves here."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
import transom
from torch import Tensor
from transom.errors import ResolutionError
from transom.inference.generate import generate
from transom.inference.settings import GenerationSettings

from benchmarks.contenders.contender import Contender, Decoding
from benchmarks.contenders.weights import saved

__all__ = ["NAMED", "transom_absent", "transom_decoders", "transom_encoder_decoders"]

NAMED = {"core_attention": "torch_dot_product"}
"""What the packaged specs name first."""

_COMPARED = {"core_attention": "core_attention", "linear": "column_linear", "norm": "norm"}
"""Slots whose implementations are rows of their own, and where those are listed."""

_BESIDE = {"onednn_linear": {"loss": "onednn_linear"}}
"""What else is named by whoever names one of them."""

_GRAPHED = partial(torch.compile, mode="reduce-overhead", fullgraph=True, dynamic=False)

Maker = Callable[[], Contender]


def transom_decoders(reference: Any, dtype: torch.dtype, device: str) -> dict[str, Maker]:
    """Give what makes contenders of a Llama of `transformers`: one for each way to fill the compared slots."""
    return {name: partial(_decoder, name, reference, use, dtype, device) for name, use in _ways(dtype, device)}


def transom_encoder_decoders(reference: Any, dtype: torch.dtype, device: str) -> dict[str, Maker]:
    """Likewise, of a T5: with the parts named first, with core's own attention, and with oneDNN's linears."""
    ways = {"transom": NAMED, "transom, dot_product": {"core_attention": "dot_product"}}
    if not _refusal("linear", "onednn_linear", dtype, device):
        ways["transom, onednn_linear"] = {**NAMED, "linear": "onednn_linear"}
    return {name: partial(_encoder_decoder, name, reference, use, dtype, device) for name, use in ways.items()}


def _ways(dtype: torch.dtype, device: str) -> Iterator[tuple[str, Mapping[str, str]]]:
    yield "transom", NAMED
    for slot, name, why in _parts(dtype, device):
        if not why:
            yield f"transom, {name}", {**NAMED, slot: name, **_BESIDE.get(name, {})}


def transom_absent(dtype: torch.dtype, device: str) -> dict[str, str]:
    """Name the parts that are installed and do not serve here, and the first reason of each."""
    return {f"transom, {name}": why for _, name, why in _parts(dtype, device) if why}


def _parts(dtype: torch.dtype, device: str) -> Iterator[tuple[str, str, str]]:
    """Give the slot and the name of each part that is compared, and why it does not serve; empty = it does."""
    for slot, listed in _COMPARED.items():
        for each in transom.list_implementations(listed):
            if each.name not in ("torch_linear", "torch_norm", NAMED.get(slot)):
                yield slot, each.name, _refusal(slot, each.name, dtype, device)


def _refusal(slot: str, name: str, dtype: torch.dtype, device: str) -> str:
    settings: dict[str, Any] = {"device": device, "dtype": str(dtype).removeprefix("torch."), "mode": "train"}
    try:
        transom.plan("tiny-llama", use={**NAMED, slot: name, **_BESIDE.get(name, {})}, **settings)
    except ResolutionError as error:
        whole = next((line.partition(": ")[2] for line in error.failed), error.what)
        return re.split(r", and |, or |; | \((?:requires|supports)\)", whole)[0]
    return ""


def _loaded(reference: Any, use: Mapping[str, str], dtype: torch.dtype, device: str) -> Any:
    """Load a checkpoint as its users do; it may be trained too."""
    with saved(reference) as folder:
        model = transom.from_pretrained(folder, use=use, dtype=dtype, device=device, mode="infer")
    return model.requires_grad_(True).train()


def _decoder(name: str, reference: Any, use: Mapping[str, str], dtype: torch.dtype, device: str) -> Contender:
    model = _loaded(reference, use, dtype, device)

    def loss(ids: Tensor, labels: Tensor) -> Tensor:
        result: Tensor = model(ids, labels=labels).mean()
        return result

    return Contender(
        name=name,
        module=model,
        logits=model,
        loss=loss,
        decoding=_generating(model),
        compiled_decoding=_generating(model, compile=True),
        graphed_decoding=_generating(model, compile=_GRAPHED),
    )


def _encoder_decoder(name: str, reference: Any, use: Mapping[str, str], dtype: torch.dtype, device: str) -> Contender:
    model = _loaded(reference, use, dtype, device)
    return Contender(
        name, model, model.encode, _generating(model, start_id=0), _generating(model, start_id=0, compile=True)
    )


def _generating(model: Any, **settings: Any) -> Decoding:
    def decoding(prompt: Tensor, count: int) -> Callable[[], Tensor]:
        prompts = [row.tolist() for row in prompt]
        how = GenerationSettings(max_new_tokens=count, greedy=True, **settings)
        return lambda: torch.tensor([row.tokens for row in generate(model, prompts, how)])

    return decoding
