"""T5 and mT5 of Hugging Face transformers, small and random: imported, they compute the same; exported, they are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transom
from torch import Tensor, nn
from transom.checkpoint.hugging_face.folder import open_folder
from transom.inference.generate import generate
from transom.inference.settings import GenerationSettings
from transom.pretrained.convert import convert

transformers = pytest.importorskip("transformers")

VOCAB, NEW_TOKENS = 61, 32
SIZES = {
    "vocab_size": VOCAB,
    "d_model": 24,
    "d_kv": 10,
    "d_ff": 40,
    "num_heads": 3,
    "num_layers": 3,
    "num_decoder_layers": 2,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 12,
    "dropout_rate": 0.0,
    "n_positions": 64,
}
GATED = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
# With an output layer of its own, as the published weights of 1.1, Flan-T5 and mT5 have, or without.
CASES: dict[str, tuple[str, dict[str, Any], bool]] = {
    "t5 1.0": ("T5", {"feed_forward_proj": "relu"}, False),
    "t5 1.1": ("T5", GATED, True),
    "t5 1.1 with shared embeddings": ("T5", GATED, False),
    "mt5": ("MT5", {"feed_forward_proj": "gated-gelu"}, True),
    "mt5 with shared embeddings": ("MT5", {"feed_forward_proj": "gated-silu"}, False),
}


@dataclass(frozen=True)
class Saved:
    """A model of transformers, the folder that it was saved to, and our model of that folder."""

    model: nn.Module
    folder: Path
    ours: nn.Module


@pytest.fixture(scope="module", params=CASES)
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Saved:
    kind, options, has_own_output = CASES[request.param]
    config = getattr(transformers, f"{kind}Config")(**SIZES, **options, attn_implementation="eager")
    model = getattr(transformers, f"{kind}ForConditionalGeneration")(config).eval()
    if has_own_output:
        model.lm_head.weight = nn.Parameter(torch.empty(VOCAB, SIZES["d_model"]))
        model.all_tied_weights_keys.pop("lm_head.weight")
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3 + (0.5 if parameter.dim() == 1 else 0.0))
    folder = tmp_path_factory.mktemp("saved") / "theirs"
    model.save_pretrained(folder)
    return Saved(model, folder, transom.from_pretrained(folder, mode="train").eval())


def batch() -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(1)
    return {
        "read": torch.randint(1, VOCAB, (2, 14), generator=random),
        "padding": torch.arange(14) < torch.tensor([[14], [10]]),
        "written": torch.randint(1, VOCAB, (2, 9), generator=random),
    }


def theirs(model: nn.Module, data: dict[str, Tensor]) -> Tensor:
    logits: Tensor = model(
        input_ids=data["read"], attention_mask=data["padding"].long(), decoder_input_ids=data["written"]
    ).logits
    return logits


def test_logits_and_gradients_agree_after_import(saved: Saved) -> None:
    data = batch()
    expected = theirs(saved.model, data)
    got = saved.ours(data["read"], data["written"], data["padding"], None, data["padding"])
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)
    direction = torch.randn_like(expected)
    for logits in (expected, got):
        (logits * direction).sum().backward()
    opened = open_folder(saved.folder)
    gradients = {name: parameter.grad for name, parameter in saved.model.named_parameters()}
    canonical = opened.family.layout(opened.spec).forward(gradients)
    for name, parameter in saved.ours.named_parameters():
        scale = canonical[name].abs().max()
        torch.testing.assert_close(parameter.grad / scale, canonical[name] / scale, rtol=0, atol=1e-4)


def test_greedy_tokens_agree_after_import(saved: Saved) -> None:
    prompts = [[7, 8, 9, 10, 11, 12], [13], [30, 40, 50]]
    padded = torch.tensor([prompt + [0] * (6 - len(prompt)) for prompt in prompts])
    seen = torch.tensor([[1] * len(prompt) + [0] * (6 - len(prompt)) for prompt in prompts])
    saved.model.generation_config.update(decoder_start_token_id=0, eos_token_id=None, pad_token_id=0)
    expected = saved.model.generate(padded, attention_mask=seen, max_new_tokens=NEW_TOKENS, do_sample=False)
    settings = GenerationSettings(greedy=True, max_new_tokens=NEW_TOKENS, start_id=0)
    rows = generate(transom.from_pretrained(saved.folder), prompts, settings)
    assert [row.tokens for row in rows] == expected[:, 1:].tolist()


def test_export_reloads_in_transformers_bit_for_bit(saved: Saved, tmp_path: Path) -> None:
    convert(saved.folder, tmp_path / "ours")
    convert(tmp_path / "ours", tmp_path / "theirs", shard_bytes=20_000)
    again = type(saved.model).from_pretrained(tmp_path / "theirs", attn_implementation="eager")
    before, after = saved.model.state_dict(), again.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(theirs(again, batch()), theirs(saved.model, batch()))
    assert again.config.model_type == saved.model.config.model_type


KERNELS = {
    "core_attention": "torch_dot_product",
    "linear": "parallel_linear",
    "embedding": "parallel_linear",
    "loss": "parallel_linear",
}


def trained(model: nn.Module, steps: int) -> list[float]:
    """Train on one batch; give the losses."""
    data, labels = batch(), torch.randint(VOCAB, (2, 9), generator=torch.Generator().manual_seed(2))
    masks = data["padding"], None, data["padding"]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(steps):
        loss = model(data["read"], data["written"], *masks, lm_labels=labels).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


def test_swapping_implementations_changes_neither_logits_nor_training(saved: Saved) -> None:
    plain = transom.from_pretrained(saved.folder, use={"core_attention": "dot_product"}, mode="train")
    got = transom.from_pretrained(saved.folder, use=KERNELS, mode="train")
    chosen = [{(node.path, node.resolution.chosen.name) for node in model.plan.nodes()} for model in (plain, got)]
    assert {name for _, name in chosen[1] - chosen[0]} == set(KERNELS.values())
    data = batch()
    logits = [model(data["read"], data["written"], data["padding"], None, data["padding"]) for model in (plain, got)]
    torch.testing.assert_close(*logits, rtol=0, atol=1e-4)
    assert trained(got, 3) == pytest.approx(trained(plain, 3), rel=1e-4)


def test_a_dtype_is_that_of_encoder_and_decoder(saved: Saved, tmp_path: Path) -> None:
    convert(saved.folder, tmp_path / "ours", dtype="bfloat16")
    model = transom.from_pretrained(tmp_path / "ours")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
