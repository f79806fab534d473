"""Models of transformers compute the same with Transom's core attentions as with transformers' own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from transom.errors import InputError, ResolutionError

Model = Callable[..., Any]
ALL = ["llama", "mistral", "gemma2", "qwen3"]
PADDINGS = {
    "whole": torch.ones(2, 9, dtype=torch.long),
    "left": torch.tensor([[0] * 3 + [1] * 6, [1] * 9]),
    "right": torch.tensor([[1] * 5 + [0] * 4, [1] * 9]),
}
TOKENS = torch.arange(18).view(2, 9) * 7 % 60 + 2


def name_for(family: str) -> str:
    """Gemma 2 caps its scores, which torch's own kernels do not."""
    return "dot_product" if family == "gemma2" else "torch_dot_product"


def positions(mask: torch.Tensor) -> torch.Tensor:
    return (mask.cumsum(-1) - 1).clamp(min=0)


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("family", ALL)
def test_logits_and_gradients_are_those_of_eager(model: Model, family: str, padding: str) -> None:
    mask = PADDINGS[padding]
    results = []
    for attention in ("eager", f"transom:{name_for(family)}", "transom:dot_product"):
        made = model(family, attention)
        logits = made(TOKENS, attention_mask=mask, position_ids=positions(mask)).logits[mask.bool()]
        (logits * torch.linspace(-1, 1, logits.numel()).view_as(logits)).sum().backward()
        results.append((logits.detach(), [weight.grad for weight in made.parameters()]))
    logits, gradients = results[0]
    for other, others in results[1:]:
        torch.testing.assert_close(other, logits, atol=1e-5, rtol=1e-5)
        for mine, theirs in zip(others, gradients, strict=True):
            torch.testing.assert_close(mine, theirs, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("family", [family for family in ALL if family != "gemma2"])  # sdpa caps no scores
def test_logits_are_those_of_sdpa(model: Model, family: str) -> None:
    mask = PADDINGS["left"]
    one, other = (model(family, each)(TOKENS, attention_mask=mask).logits for each in ("sdpa", "transom:dot_product"))
    torch.testing.assert_close(other[mask.bool()], one[mask.bool()], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ALL)
def test_packed_sequences_give_what_each_gives_alone(model: Model, family: str) -> None:
    made = model(family, f"transom:{name_for(family)}")
    lengths = [4, 1, 6, 5]
    tokens = torch.arange(16)[None] * 5 % 60 + 2
    starts = torch.cat([torch.arange(length) for length in lengths])[None]
    packed = made(tokens, position_ids=starts, use_cache=False).logits
    alone = [made(each, use_cache=False).logits for each in tokens.split(lengths, dim=1)]
    torch.testing.assert_close(packed, torch.cat(alone, dim=1), atol=1e-5, rtol=1e-5)
    eager = model(family)(tokens, position_ids=starts, use_cache=False).logits
    torch.testing.assert_close(packed, eager, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("padding", ["whole", "left"])
@pytest.mark.parametrize("family", ALL)
def test_generation_is_that_of_eager(model: Model, family: str, padding: str, cache: str) -> None:
    settings = {"max_new_tokens": 12, "do_sample": False, "cache_implementation": cache}
    mask = PADDINGS[padding]
    wanted, found = (
        model(family, attention).generate(
            TOKENS, attention_mask=mask, return_dict_in_generate=True, output_logits=True, **settings
        )
        for attention in ("eager", f"transom:{name_for(family)}")
    )
    assert torch.equal(found.sequences, wanted.sequences)
    torch.testing.assert_close(torch.stack(found.logits), torch.stack(wanted.logits), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", ALL)
def test_beams_and_chunked_prompts_are_those_of_eager(model: Model, family: str) -> None:
    for settings in ({"num_beams": 3}, {"prefill_chunk_size": 4}):
        wanted, found = (
            model(family, attention).generate(TOKENS, max_new_tokens=6, do_sample=False, **settings)
            for attention in ("eager", f"transom:{name_for(family)}")
        )
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
@pytest.mark.parametrize("kind", ["bool", "float"])
def test_a_callers_own_mask_is_used(model: Model, family: str, kind: str) -> None:
    keep = torch.ones(9, 9).tril().bool() & (torch.arange(9) != 4)
    keep[4, 4] = True
    mask = keep.expand(2, 1, 9, 9)
    if kind == "float":
        mask = torch.where(mask, 0.0, torch.finfo(torch.float32).min)
    eager = torch.where(keep.expand(2, 1, 9, 9), 0.0, torch.finfo(torch.float32).min)
    wanted = model(family)(TOKENS, attention_mask=eager).logits
    found = model(family, f"transom:{name_for(family)}")(TOKENS, attention_mask=mask).logits
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


def test_dropout_is_on_in_training_alone(model: Model) -> None:
    made = model("llama", "transom:torch_dot_product", attention_dropout=0.5)
    logits = made(TOKENS).logits
    assert torch.equal(made(TOKENS).logits, logits)
    made.train()
    assert not torch.equal(made(TOKENS).logits, made(TOKENS).logits)


def test_gradient_checkpointing_changes_nothing(model: Model) -> None:
    gradients = []
    for checkpointing in (False, True):
        made = model("mistral", "transom:torch_dot_product").train()
        if checkpointing:
            made.activation_checkpointing_enable({"use_reentrant": False})
        made(TOKENS, attention_mask=PADDINGS["left"]).logits.square().mean().backward()
        gradients.append([weight.grad for weight in made.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_other_dtypes_are_those_of_sdpa(model: Model, dtype: torch.dtype) -> None:
    mask = PADDINGS["right"].bool()  # in float64, eager gives nan for a query that sees nothing
    wanted, found = (
        model("mistral", each).to(dtype)(TOKENS, attention_mask=mask).logits
        for each in ("sdpa", "transom:torch_dot_product")
    )
    assert found.dtype is dtype
    tolerance = 0.1 if dtype is torch.bfloat16 else 1e-9
    torch.testing.assert_close(found[mask], wanted[mask], atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_a_model_compiles_in_one_graph(model: Model, family: str) -> None:
    made = model(family, "transom:torch_dot_product")
    mask = PADDINGS["left"]
    wanted = made(TOKENS, attention_mask=mask, use_cache=False).logits

    def run(tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = made(tokens, attention_mask=mask, use_cache=False).logits
        return logits

    torch.compiler.reset()
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(TOKENS, mask)[mask.bool()], wanted[mask.bool()], atol=1e-5, rtol=1e-5)


def test_an_encoder_and_a_decoder_read_each_other() -> None:
    config = transformers.BartConfig(
        vocab_size=64, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48, max_position_embeddings=64, init_std=0.3,
    )  # fmt: skip
    results = []
    for attention in ("eager", "transom:torch_dot_product"):
        torch.manual_seed(0)
        made = transformers.BartForConditionalGeneration._from_config(config, attn_implementation=attention).eval()
        mask = PADDINGS["right"]
        logits = made(TOKENS, attention_mask=mask, decoder_input_ids=TOKENS[:, :5]).logits
        tokens = made.generate(TOKENS, attention_mask=mask, max_new_tokens=8, do_sample=False, num_beams=1)
        results.append((logits, tokens))
    torch.testing.assert_close(results[1][0], results[0][0], atol=1e-5, rtol=1e-5)
    assert torch.equal(results[1][1], results[0][1])


def test_values_may_be_narrower_than_keys() -> None:
    config = transformers.DeepseekV3Config(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, kv_lora_rank=8, q_lora_rank=8, qk_rope_head_dim=4, qk_nope_head_dim=8, v_head_dim=6,
        first_k_dense_replace=2, initializer_range=0.3,
    )  # fmt: skip
    results = []
    for attention in ("eager", "transom:torch_dot_product"):
        torch.manual_seed(0)
        made = transformers.DeepseekV3ForCausalLM._from_config(config, attn_implementation=attention).eval()
        results.append(made(TOKENS, attention_mask=PADDINGS["left"]).logits[PADDINGS["left"].bool()])
    torch.testing.assert_close(results[1], results[0], atol=1e-5, rtol=1e-5)


def test_an_encoder_sees_both_ways() -> None:
    config = transformers.BertConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
        initializer_range=0.3,
    )  # fmt: skip
    results = []
    for attention in ("eager", "transom:torch_dot_product"):
        torch.manual_seed(0)
        made = transformers.BertModel._from_config(config, attn_implementation=attention).eval()
        results.append(made(TOKENS, attention_mask=PADDINGS["left"]).last_hidden_state[PADDINGS["left"].bool()])
    torch.testing.assert_close(results[1], results[0], atol=1e-5, rtol=1e-5)


def test_soft_capped_scores_are_refused_by_a_kernel_that_cannot(model: Model) -> None:
    with pytest.raises(ResolutionError, match="softcap") as caught:
        model("gemma2", "transom:torch_dot_product")(TOKENS)
    assert caught.value.asked_by == 'attn_implementation="transom:torch_dot_product"'


def test_attention_weights_are_refused(model: Model) -> None:
    with pytest.raises(InputError, match="attention weights are asked for"):
        model("llama", "transom:dot_product")(TOKENS, output_attentions=True)


def test_packed_sequences_that_the_mask_does_not_tell_apart_are_refused(model: Model) -> None:
    made, cumulative = model("llama", "transom:dot_product"), torch.tensor([0, 4, 9], dtype=torch.int32)
    packed = {"cu_seq_lens_q": cumulative, "cu_seq_lens_k": cumulative, "max_length_q": 5, "max_length_k": 5}
    with pytest.raises(InputError, match=r"2 packed sequences are given \(cu_seq_lens_q\)"):
        made(TOKENS[:1], **packed)
    starts = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4]])
    told = made(TOKENS[:1], position_ids=starts, use_cache=False, **packed).logits
    torch.testing.assert_close(told, made(TOKENS[:1], position_ids=starts, use_cache=False).logits)


def test_sinks_are_refused() -> None:
    config = transformers.GptOssConfig(
        vocab_size=64, hidden_size=32, intermediate_size=16, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, num_local_experts=2, num_experts_per_tok=1, pad_token_id=0,
    )  # fmt: skip
    made = transformers.GptOssForCausalLM._from_config(config, attn_implementation="transom:dot_product")
    with pytest.raises(InputError, match=r"attention sinks \(s_aux\), which cannot be handed to Transom"):
        made(TOKENS)
