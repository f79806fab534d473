"""The models that are compared: each with the same weights, and each called the way its users would call it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from monolith import Monolith, Shape
from torch import Tensor, nn

Step = Callable[[], object]
"""One repetition of a workload, ready to be timed."""


@dataclass(frozen=True)
class Contender:
    """A model that takes part.

    Args:
        name: in tables.
        module: with the common weights.
        logits: ids ``[b, s]`` to logits ``[b, s, v]``.
        loss: ids and labels ``[b, s]`` to the mean loss.
        decoding: given rows, a prompt ``[b, p]`` and a count of tokens, a function that decodes so many greedily.
    """

    name: str
    module: nn.Module
    logits: Callable[[Tensor], Tensor]
    loss: Callable[[Tensor, Tensor], Tensor]
    decoding: Callable[[Tensor, int], Step] | None


def llama_weights(shape: Shape) -> dict[str, Tensor]:
    """Draw the weights that all contenders have, named as `transformers` names them."""
    return {name: each.detach().clone() for name, each in _hugging_face(shape).state_dict().items()}


def _hugging_face(shape: Shape) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        intermediate_size=shape.ffn,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.groups,
        max_position_embeddings=shape.length,
        rms_norm_eps=shape.eps,
        tie_word_embeddings=False,
        attn_implementation="sdpa",
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LlamaForCausalLM(config)


def monolith(shape: Shape, weights: Mapping[str, Tensor], dtype: torch.dtype) -> Contender:
    """The hand-written model."""
    model = Monolith(shape).load(weights).to(dtype)

    def decoding(prompt: Tensor, count: int) -> Step:
        model.setup_caches(len(prompt))

        def run() -> Tensor:
            token, seen = model(prompt)[:, -1:].argmax(-1), prompt.shape[1]
            for _ in range(count - 1):
                token = model(token, start=seen)[:, -1:].argmax(-1)
                seen += 1
            return token

        return _undone(run, lambda: setattr(model, "caches", None), lambda: model.setup_caches(len(prompt)))

    return Contender("monolith", model, model, lambda ids, labels: model(ids, labels), decoding)


def _undone(run: Callable[[], Tensor], after: Callable[[], None], before: Callable[[], None]) -> Step:
    """Decode with caches that are there only while it runs: other workloads use the same module."""

    def step() -> Tensor:
        before()
        with torch.inference_mode():
            result = run()
        after()
        return result

    return step


def transom(
    shape: Shape,
    weights: Mapping[str, Tensor],
    dtype: torch.dtype,
    *,
    name: str = "transom",
    use: dict[str, str] | None,
) -> Contender:
    """Transom, from the checkpoint as its users have it."""
    import transom as package
    from transom.inference.generate import generate
    from transom.inference.settings import GenerationSettings

    with _folder(shape, weights) as folder:
        model = package.from_pretrained(folder, use=use, dtype=dtype, mode="infer").requires_grad_(True).train()

    def decoding(prompt: Tensor, count: int) -> Step:
        prompts = [row.tolist() for row in prompt]
        return lambda: generate(model, prompts, GenerationSettings(max_new_tokens=count, greedy=True))

    return Contender(name, model, model, lambda ids, labels: model(ids, labels=labels).mean(), decoding)


@contextmanager
def _folder(shape: Shape, weights: Mapping[str, Tensor]) -> Iterator[Path]:
    model = _hugging_face(shape)
    model.load_state_dict(weights)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        yield Path(folder)


def transformers(shape: Shape, weights: Mapping[str, Tensor], dtype: torch.dtype) -> Contender:
    """Hugging Face transformers with SDPA, decoding with `generate` and its static cache where compiled."""
    model = _hugging_face(shape)
    model.load_state_dict(weights)
    model = model.to(dtype)

    def decoding(prompt: Tensor, count: int) -> Step:
        settings = {"max_new_tokens": count, "min_new_tokens": count, "do_sample": False, "pad_token_id": 0}
        mask = torch.ones_like(prompt)

        def step() -> Tensor:
            model.eval()
            result: Tensor = model.generate(prompt, attention_mask=mask, **settings)
            model.train()
            return result

        return step

    def loss(ids: Tensor, labels: Tensor) -> Tensor:
        return _cross_entropy(model(ids, use_cache=False).logits, labels)

    return Contender("transformers", model, lambda ids: model(ids, use_cache=False).logits, loss, decoding)


def torchtune(shape: Shape, weights: Mapping[str, Tensor], dtype: torch.dtype) -> Contender:
    """torchtune's Llama 3 builder, of the same sizes."""
    from torchtune.models.convert_weights import hf_to_tune
    from torchtune.models.llama3 import llama3

    model = llama3(
        vocab_size=shape.vocab,
        num_layers=shape.layers,
        num_heads=shape.heads,
        num_kv_heads=shape.groups,
        embed_dim=shape.hidden,
        max_seq_len=shape.length,
        intermediate_dim=shape.ffn,
        rope_base=int(shape.base),
        norm_eps=shape.eps,
    )
    converted = hf_to_tune(
        dict(weights), num_heads=shape.heads, num_kv_heads=shape.groups, dim=shape.hidden, head_dim=shape.head_size
    )
    model.load_state_dict(converted)
    model = model.to(dtype)

    def decoding(prompt: Tensor, count: int) -> Step:
        mask = torch.ones(shape.length, shape.length, dtype=torch.bool).tril()

        def run() -> Tensor:
            b, seen = prompt.shape
            positions = torch.arange(shape.length)[None].expand(b, -1)
            token = model(prompt, mask=mask[None, :seen].expand(b, -1, -1), input_pos=positions[:, :seen])[
                :, -1:
            ].argmax(-1)
            for at in range(seen, seen + count - 1):
                here = mask[None, at : at + 1].expand(b, -1, -1)
                token = model(token, mask=here, input_pos=positions[:, at : at + 1])[:, -1:].argmax(-1)
            return token

        def before() -> None:
            if model.caches_are_setup():
                model.reset_caches()
            else:
                model.setup_caches(len(prompt), dtype)

        return _undone(run, _delete_caches_of(model), before)

    return Contender("torchtune", model, model, lambda ids, labels: _cross_entropy(model(ids), labels), decoding)


def _delete_caches_of(model: Any) -> Callable[[], None]:
    from torchtune.modules.common_utils import delete_kv_caches

    return lambda: delete_kv_caches(model)


def x_transformers(shape: Shape, weights: Mapping[str, Tensor], dtype: torch.dtype) -> Contender:
    """x-transformers' decoder with the features of a Llama; its weights are its own."""
    from x_transformers import AutoregressiveWrapper, Decoder, TransformerWrapper

    layers = Decoder(
        dim=shape.hidden,
        depth=shape.layers,
        heads=shape.heads,
        attn_kv_heads=shape.groups,
        attn_dim_head=shape.head_size,
        attn_flash=True,
        rotary_pos_emb=True,
        rotary_emb_dim=shape.head_size,
        use_rmsnorm=True,
        ff_glu=True,
        ff_swish=True,
        ff_no_bias=True,
        ff_mult=shape.ffn / shape.hidden,
    )
    model = TransformerWrapper(num_tokens=shape.vocab, max_seq_len=shape.length, attn_layers=layers).to(dtype)
    wrapper = AutoregressiveWrapper(model)

    def decoding(prompt: Tensor, count: int) -> Step:
        def step() -> Tensor:
            result: Tensor = wrapper.generate(prompt, count, temperature=0.0, cache_kv=True)
            wrapper.train()
            return result

        return step

    return Contender("x-transformers", model, model, lambda ids, labels: _cross_entropy(model(ids), labels), decoding)


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits.float().flatten(0, 1), labels.flatten())


def contenders(shape: Shape, dtype: torch.dtype) -> tuple[list[Contender], dict[str, str]]:
    """Make everybody who can take part, and say of the others why not."""
    weights = llama_weights(shape)
    own = {"transom (dot_product)": {"core_attention": "dot_product"}}
    makers: dict[str, Callable[[], Contender]] = {
        "monolith": lambda: monolith(shape, weights, dtype),
        "transom": lambda: transom(shape, weights, dtype, use={"core_attention": "torch_dot_product"}),
        **{
            name: lambda name=name, use=use: transom(shape, weights, dtype, name=name, use=use)
            for name, use in own.items()
        },
        "transformers": lambda: transformers(shape, weights, dtype),
        "torchtune": lambda: torchtune(shape, weights, dtype),
        "x-transformers": lambda: x_transformers(shape, weights, dtype),
    }
    found: list[Contender] = []
    absent: dict[str, str] = {}
    for name, make in makers.items():
        try:
            found.append(make())
        except (ImportError, RuntimeError, TypeError) as error:
            absent[name] = f"{type(error).__name__}: {error}".splitlines()[0]
    return found, absent
