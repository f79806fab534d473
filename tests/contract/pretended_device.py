"""A device that is not there: its tensors lie on the CPU, and an operation that mixes the two fails as on a GPU.

``python pretended_device.py`` runs small models on it, in a process of its own, since torch knows one such device a
process. It prints what went wrong, by name, as JSON.
"""

from __future__ import annotations

import json
import os
import traceback
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from typing import Any

import pytest
import torch
import transom
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "pretended"
ATEN = torch.ops.aten
COPIES = {ATEN.copy_.default, ATEN._to_copy.default}
INDEXES = {ATEN.index.Tensor, ATEN.index_put.default, ATEN.index_put_.default, ATEN._index_put_impl_.default}
"""Tensors on a GPU may be indexed by such on the CPU."""

SMALL = {"num_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "ffn_hidden_size": 96}
CONFIGS: dict[str, dict[str, Any]] = {
    "learned positions": {},
    "llama": {
        "normalization": "RMSNorm",
        "position_embedding_type": "rope",
        "activation_func": "silu",
        "gated_linear_unit": True,
        "num_query_groups": 2,
    },
    "alibi": {"position_embedding_type": "alibi"},
    "window and sinks": {"window_size": [3, 0], "softmax_type": "learnable", "position_embedding_type": "rope"},
}
CACHES = ("static", "sliding_window", "paged", "int8")


class Pretended(torch.Tensor):
    """Says that it is on the device; what it holds is on the CPU."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> Pretended:
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=torch.device(NAME, 0),
        )
        made.held = held
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(func, args, kwargs or {})

    def tolist(self) -> Any:
        return self.held.tolist()


class Device(TorchDispatchMode):
    """Lets tensors be made on the device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(func, args, kwargs or {})


def compute(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Compute on the CPU what may be computed on the device."""
    tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
    ours = [each for each in tensors if isinstance(each, Pretended)]
    others = [each for each in tensors if not isinstance(each, Pretended) and each.dim() and each.device.type == "cpu"]
    stays = func in INDEXES and isinstance(args[0], Pretended)
    if ours and others and func not in COPIES and not stays:
        raise RuntimeError(f"{func} mixes {NAME} and cpu, of shape {tuple(others[0].shape)}")
    if ours and func is ATEN._fused_sdp_choice.default:
        return 0
    asked = kwargs.get("device")
    on_it = asked.type == NAME if asked is not None else bool(ours)
    if func in COPIES - {ATEN._to_copy.default}:
        on_it = isinstance(args[0], Pretended)
    if asked is not None and on_it:
        kwargs = {**kwargs, "device": torch.device("cpu"), "pin_memory": None}
    plain_args, plain_kwargs = tree_map_only(Pretended, lambda each: each.held, (args, kwargs))
    plain_kwargs = {name: value for name, value in plain_kwargs.items() if name != "pin_memory"}
    out = func(*plain_args, **plain_kwargs)
    made = tree_map_only(Tensor, Pretended, out) if on_it else out
    if func is ATEN._to_copy.default or not ours:
        return made
    return return_and_correct_aliasing(func, args, kwargs, made)


def built(config: dict[str, Any], **how: Any) -> torch.nn.Module:
    """Build a small model on the device."""
    spec = {"name": "small", "vocab_size": 32, "max_sequence_length": 16, "config": SMALL | config}
    return transom.build(spec, device=NAME, seed=0, **how)


def train(config: dict[str, Any]) -> None:
    """Run a training step."""
    model = built(config | {"hidden_dropout": 0.1, "attention_dropout": 0.1})
    ids = torch.randint(32, (2, 8), device=NAME)
    loss = model(ids, labels=ids).mean()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    torch.optim.AdamW(model.parameters()).step()
    where = {parameter.grad.device.type for parameter in model.parameters() if parameter.grad is not None}
    assert where == {loss.device.type} == {NAME}, where


def decode(cache: str, config: dict[str, Any], **how: Any) -> None:
    """Continue prompts of different lengths, sampled and greedily."""
    from transom.inference.generate import generate  # once inference mode is replaced
    from transom.inference.settings import GenerationSettings

    model = built(config, mode="infer", use={"kv_cache": cache}, **how)
    for settings in (GenerationSettings(max_new_tokens=4, greedy=True), GenerationSettings(max_new_tokens=4, top_k=5)):
        found = generate(model, [[1, 2, 3], [4]], settings, seed=0)
        assert [len(each.tokens) for each in found] == [4, 4]


def mix() -> None:
    """See that what must fail does."""
    said = f"aten.add.Tensor mixes {NAME} and cpu, of shape \\(2,\\)"
    with pytest.raises(RuntimeError, match=said):
        torch.ones(2, device=NAME) + torch.ones(2)


def without_gradients(mode: bool = True) -> Any:
    """Stand for inference mode, which tensors such as these do not have."""
    return torch.no_grad() if mode else nullcontext()


def cases() -> Iterator[tuple[str, Callable[[], None]]]:
    """Give all that is run, by name."""
    yield "mix", mix
    for name, config in CONFIGS.items():
        yield f"train {name}", partial(train, config)
    for cache in CACHES:
        yield f"decode {cache}", partial(decode, cache, CONFIGS["llama"] | {"window_size": [3, 0]})


def main() -> None:
    """Run everything, and print the last line of each complaint, with where it was."""
    _setup_privateuseone_for_python_backend(NAME)
    torch._C._set_only_lift_cpu_tensors(True)
    torch.inference_mode = without_gradients
    complaints = {}
    with Device():
        for name, run in cases():
            complaints[name] = ""
            try:
                run()
            except Exception as error:
                place = traceback.extract_tb(error.__traceback__)[-6:]
                where = ", ".join(f"{frame.filename.rpartition('/')[2]}:{frame.lineno}" for frame in place)
                complaints[name] = f"{type(error).__name__}: {error} ({where})"
    print(json.dumps(complaints), flush=True)
    os._exit(0)  # the thread that autograd has for the device does not end by itself


if __name__ == "__main__":
    main()
