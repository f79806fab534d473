"""Checkpoints of Hugging Face transformers, small and random: imported, they compute the same; exported, they are.

Nothing is fetched: the models are made by the classes and configs of transformers, and saved by them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transom
from torch import Tensor, nn
from transom.checkpoint.hugging_face.folder import open_folder
from transom.errors import CheckpointError
from transom.inference.generate import generate
from transom.inference.settings import GenerationSettings
from transom.pretrained.convert import convert

transformers = pytest.importorskip("transformers")

VOCAB, LENGTH, NEW_TOKENS = 61, 24, 32
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "eos_token_id": None,
    "bos_token_id": None,
    "pad_token_id": None,
}
GROUPED = SIZES | {"num_key_value_heads": 2}
GPT2 = {
    "vocab_size": VOCAB,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 64,
    "eos_token_id": None,
    "bos_token_id": None,
}


def rope(kind: str = "default", **numbers: float) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 500.0, **numbers}}


LLAMA3 = rope("llama3", factor=4.0, original_max_position_embeddings=8, low_freq_factor=1.0, high_freq_factor=4.0)
YARN = rope("yarn", factor=4.0, original_max_position_embeddings=16)
ALTERNATING = ["full_attention", "sliding_attention"]

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama 2": ("Llama", GROUPED),
    "llama 3": ("Llama", GROUPED | LLAMA3 | {"tie_word_embeddings": True, "head_dim": 12}),
    "llama with biases": ("Llama", GROUPED | YARN | {"attention_bias": True, "mlp_bias": True}),
    "mistral": ("Mistral", GROUPED | {"sliding_window": 7}),
    "mistral without window": ("Mistral", GROUPED | {"sliding_window": None}),
    "qwen 2": ("Qwen2", GROUPED | rope("linear", factor=2.0) | {"tie_word_embeddings": True}),
    "qwen 2 with windows": (
        "Qwen2",
        GROUPED | {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    ),
    "qwen 3": ("Qwen3", GROUPED | {"head_dim": 12}),
    "qwen 3 with windows": (
        "Qwen3",
        GROUPED | {"use_sliding_window": True, "sliding_window": 5, "layer_types": ALTERNATING},
    ),
    "gemma 2": (
        "Gemma2",
        GROUPED | {"head_dim": 12, "sliding_window": 5, "query_pre_attn_scalar": 24, "final_logit_softcapping": 2.0},
    ),
    "gemma 2 without caps": (
        "Gemma2",
        GROUPED | {"attn_logit_softcapping": None, "final_logit_softcapping": None, "layer_types": ALTERNATING},
    ),
    "phi 3": ("Phi3", GROUPED),
    "phi 3, a part rotated": ("Phi3", GROUPED | rope(partial_rotary_factor=0.5) | {"sliding_window": 6}),
    "olmo 2": ("Olmo2", GROUPED),
    "gpt 2": ("GPT2", GPT2),
    "gpt 2, untied": ("GPT2", GPT2 | {"tie_word_embeddings": False, "n_inner": 40, "activation_function": "gelu"}),
    "gpt neox": ("GPTNeoX", SIZES),
    "gpt neox, one after another": (
        "GPTNeoX",
        SIZES | rope(partial_rotary_factor=1.0) | {"use_parallel_residual": False},
    ),
}
CLASSES = {"GPT2": "GPT2LMHeadModel"}


@dataclass(frozen=True)
class Saved:
    """A model of transformers, the folder that it was saved to, and our model of that folder."""

    model: nn.Module
    folder: Path
    ours: nn.Module


def made(name: str, options: dict[str, Any]) -> nn.Module:
    """Make a model whose weights are wide enough for differences to be seen."""
    config = getattr(transformers, f"{name}Config")(**options, attn_implementation="eager")
    torch.manual_seed(0)
    model: nn.Module = getattr(transformers, CLASSES.get(name, f"{name}ForCausalLM"))(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2 + (0.5 if parameter.dim() == 1 else 0.0))
    return model


@pytest.fixture(scope="module", params=CASES)
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Saved:
    model = made(*CASES[request.param])
    folder = tmp_path_factory.mktemp("saved") / "theirs"
    model.save_pretrained(folder)
    return Saved(model, folder, transom.from_pretrained(folder, mode="train").eval())


def tokens(rows: int = 2) -> Tensor:
    return torch.randint(VOCAB, (rows, LENGTH), generator=torch.Generator().manual_seed(1))


def test_logits_agree_after_import(saved: Saved) -> None:
    expected = saved.model(tokens(), use_cache=False).logits.detach()
    got = saved.ours(tokens())
    assert expected.abs().max() > 0.5
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)


def test_greedy_tokens_agree_after_import(saved: Saved) -> None:
    prompts = [[7, 8, 9, 10, 11, 12], [13], [30, 40, 50]]
    longest = max(map(len, prompts))
    padded = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
    seen = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    expected = saved.model.generate(
        padded, attention_mask=seen, max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=0
    )
    model = transom.from_pretrained(saved.folder)
    rows = generate(model, prompts, GenerationSettings(greedy=True, max_new_tokens=NEW_TOKENS))
    assert [row.tokens for row in rows] == expected[:, longest:].tolist()


def test_gradients_agree_after_import(saved: Saved) -> None:
    ids = tokens()
    saved.model.zero_grad()
    logits = saved.model(ids, use_cache=False).logits
    torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
    saved.ours.zero_grad()
    saved.ours(ids[:, :-1], labels=ids[:, 1:]).mean().backward()
    opened = open_folder(saved.folder)
    theirs = {
        name.replace("lm_head.", "embed_out.") if opened.family.model_type == "gpt_neox" else name: p.grad
        for name, p in saved.model.named_parameters()
    }
    expected = opened.family.layout(opened.spec).forward(theirs)
    ours = dict(saved.ours.named_parameters())
    names = ("self_attention.linear_qkv.weight", "mlp.linear_fc1.weight", "mlp.linear_fc2.weight")
    for name in ("embedding.word_embeddings.weight", *(f"layers.1.{name}" for name in names)):
        scale = expected[name].abs().max()
        torch.testing.assert_close(ours[name].grad / scale, expected[name] / scale, rtol=0, atol=1e-4)


def test_export_reloads_in_transformers_bit_for_bit(saved: Saved, tmp_path: Path) -> None:
    convert(saved.folder, tmp_path / "ours")
    convert(tmp_path / "ours", tmp_path / "theirs", shard_bytes=20_000)
    again = type(saved.model).from_pretrained(tmp_path / "theirs", attn_implementation="eager")
    before, after = saved.model.state_dict(), again.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert len(list((tmp_path / "theirs").glob("*.safetensors"))) > 1
    assert torch.equal(again(tokens(), use_cache=False).logits, saved.model(tokens(), use_cache=False).logits)
    assert torch.equal(transom.from_pretrained(tmp_path / "ours")(tokens()), saved.ours(tokens()))


def test_swapping_implementations_changes_no_logits(saved: Saved) -> None:
    # Not every kernel caps scores; which of the two serves is told by the plan.
    others = {"core_attention": "torch_dot_product | torch_flex", "linear": "parallel_linear"}
    got = transom.from_pretrained(saved.folder, use=others)
    chosen = {node.resolution.chosen.name for node in got.plan.nodes()}
    assert "dot_product" not in chosen
    assert "torch_linear" not in chosen
    plain = transom.from_pretrained(saved.folder, use={"core_attention": "dot_product", "linear": "torch_linear"})
    torch.testing.assert_close(got(tokens()), plain(tokens()), rtol=0, atol=1e-4)


def test_phi3_with_longrope_agrees_up_to_the_trained_length(tmp_path: Path) -> None:
    short, long = [1.0, 1.5, 2.0, 3.0], [4.0, 4.5, 5.0, 6.0]
    options = GROUPED | rope("longrope", short_factor=short, long_factor=long)  # type: ignore[arg-type]
    theirs = made("Phi3", options | {"original_max_position_embeddings": LENGTH})
    theirs.save_pretrained(tmp_path / "theirs")
    with pytest.raises(CheckpointError, match=f"give max_sequence_length={LENGTH} for those that are not"):
        transom.from_pretrained(tmp_path / "theirs")
    ours = transom.from_pretrained(tmp_path / "theirs", max_sequence_length=LENGTH)
    expected = theirs(tokens(), use_cache=False).logits
    torch.testing.assert_close(ours(tokens()), expected, rtol=0, atol=1e-4)
    convert(tmp_path / "theirs", tmp_path / "ours", max_sequence_length=LENGTH)
    convert(tmp_path / "ours", tmp_path / "again")
    again = type(theirs).from_pretrained(tmp_path / "again", attn_implementation="eager")
    assert torch.equal(again(tokens(), use_cache=False).logits, expected)
