"""The decoder: against measured logits of torchtune, and what it promises of masks, positions, caches and errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transom
from torch import Tensor, nn
from transom import AttentionMask
from transom.errors import CacheError, ConfigError, InputError, MaskError, ResolutionError
from transom.models.decoder import TransformerDecoder

CASES = Path(__file__).parents[2] / "data" / "torchtune"


def tiny(**changes: Any) -> dict[str, Any]:
    config = {
        "num_layers": 2,
        "hidden_size": 32,
        "num_attention_heads": 4,
        "num_query_groups": 2,
        "normalization": "RMSNorm",
        "position_embedding_type": "rope",
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
    }
    spec = {"vocab_size": 61, "max_sequence_length": 24, "config": config | changes.pop("config", {})}
    return spec | changes


def fused_qkv(q: Tensor, k: Tensor, v: Tensor, groups: int) -> Tensor:
    """Stack projections ``[n·d, h]``, ``[g·d, h]``, ``[g·d, h]`` as ``[q ... q k v]`` a group."""
    h = q.shape[1]
    per_group = [x.view(groups, -1, h) for x in (q, k, v)]
    return torch.cat(per_group, dim=1).reshape(-1, h)


def from_torchtune(state: dict[str, Tensor], config: dict[str, Any]) -> dict[str, Tensor]:
    ours = {
        "embedding.word_embeddings.weight": state["tok_embeddings.weight"],
        "final_layernorm.weight": state["norm.scale"],
        "output_layer.weight": state["output.weight"],
    }
    for i in range(config["num_layers"]):
        theirs, mine = f"layers.{i}.", f"layers.{i}."
        qkv = [state[f"{theirs}attn.{x}_proj.weight"] for x in "qkv"]
        ours[f"{mine}self_attention.linear_qkv.weight"] = fused_qkv(*qkv, groups=config["num_kv_heads"])
        ours[f"{mine}self_attention.linear_proj.weight"] = state[f"{theirs}attn.output_proj.weight"]
        gate_up = [state[f"{theirs}mlp.{x}.weight"] for x in ("w1", "w3")]
        ours[f"{mine}mlp.linear_fc1.weight"] = torch.cat(gate_up)
        ours[f"{mine}mlp.linear_fc2.weight"] = state[f"{theirs}mlp.w2.weight"]
        ours[f"{mine}input_layernorm.weight"] = state[f"{theirs}sa_norm.scale"]
        ours[f"{mine}pre_mlp_layernorm.weight"] = state[f"{theirs}mlp_norm.scale"]
    return ours


def load_case(name: str, mode: str = "train") -> tuple[dict[str, Any], TransformerDecoder]:
    case = torch.load(CASES / name, weights_only=True)
    c = case["config"]
    spec = {
        "vocab_size": c["vocab_size"],
        "max_sequence_length": c["max_seq_len"],
        "config": {
            "num_layers": c["num_layers"],
            "hidden_size": c["embed_dim"],
            "num_attention_heads": c["num_heads"],
            "num_query_groups": c["num_kv_heads"],
            "ffn_hidden_size": c["hidden_dim"],
            "layernorm_epsilon": c["norm_eps"],
            "rotary_base": float(c["rope_base"]),
            "rotary_interleaved": True,
            "normalization": "RMSNorm",
            "position_embedding_type": "rope",
            "gated_linear_unit": True,
            "activation_func": "silu",
            "add_bias_linear": False,
            "hidden_dropout": 0.0,
            "attention_dropout": 0.0,
        },
    }
    model = transom.build(spec, mode=mode)
    model.load_state_dict(from_torchtune(case["state_dict"], c))
    return case, model


def test_decoder_gives_torchtunes_logits() -> None:
    case, model = load_case("a_mha.pt")
    torch.testing.assert_close(model(case["tokens"]), case["logits"], atol=1e-5, rtol=1e-5)


def test_decoder_gives_torchtunes_logits_step_by_step_with_caches() -> None:
    case, model = load_case("c_kv_mha.pt", mode="infer")
    tokens, prefill = case["tokens"], case["prefill"]
    torch.testing.assert_close(model(tokens), case["logits_full"], atol=1e-5, rtol=1e-5)
    model.setup_caches(tokens.shape[0], torch.float32)
    logits = [model(tokens[:, :prefill], input_pos=torch.arange(prefill))]
    logits += [model(tokens[:, i : i + 1], input_pos=torch.tensor([i])) for i in range(prefill, tokens.shape[1])]
    torch.testing.assert_close(torch.cat(logits, dim=1), case["logits_steps"], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"position_embedding_type": "learned_absolute"},
        {"position_embedding_type": "alibi"},
        {"position_embedding_type": "none"},
        {"normalization": "LayerNorm", "gated_linear_unit": True, "add_bias_linear": False},
        {"qk_layernorm": True, "window_size": [4, 0]},
        {"post_attention_layernorm": True, "post_mlp_layernorm": True, "attn_logit_softcapping": 20.0},
        {"fp32_residual_connection": True, "attention_output_gate": True},
    ],
    ids=lambda c: ",".join(c) or "plain",
)
def test_decoder_with_caches_gives_the_full_forward(config: dict[str, Any]) -> None:
    model = transom.build(tiny(config=config), mode="infer", seed=0)
    tokens = torch.randint(61, (3, 12), generator=torch.Generator().manual_seed(0))
    full = model(tokens)
    model.setup_caches(4)
    steps = [model(tokens[:, :5], input_pos=torch.arange(5))]
    steps += [model(tokens[:, i : i + 1], input_pos=torch.tensor([i])) for i in range(5, 12)]
    torch.testing.assert_close(torch.cat(steps, dim=1), full, atol=2e-5, rtol=1e-4)


def test_decoder_is_causal_by_default() -> None:
    model = transom.build(tiny(), seed=0)
    tokens = torch.randint(61, (2, 10), generator=torch.Generator().manual_seed(0))
    changed = tokens.clone()
    changed[:, 6:] = (changed[:, 6:] + 1) % 61
    torch.testing.assert_close(model(tokens)[:, :6], model(changed)[:, :6], atol=1e-6, rtol=1e-6)
    assert (model(tokens)[:, 6:] - model(changed)[:, 6:]).abs().max() > 1e-4


def test_decoder_takes_a_boolean_mask_in_which_true_attends() -> None:
    model = transom.build(tiny(masks=["keep"]), seed=0)
    tokens = torch.randint(61, (2, 10), generator=torch.Generator().manual_seed(0))
    lower = torch.ones(2, 10, 10).tril().bool()
    torch.testing.assert_close(model(tokens, mask=lower), model(tokens), atol=1e-5, rtol=1e-5)
    everything = torch.ones(2, 10, 10, dtype=torch.bool)
    assert (model(tokens, mask=everything) - model(tokens))[:, :5].abs().max() > 1e-4


def test_decoder_packs_sequences_by_segments_and_positions() -> None:
    model = transom.build(tiny(masks=["packed"]), seed=0)
    tokens = torch.randint(61, (1, 9), generator=torch.Generator().manual_seed(0))
    segments = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1, 1]])
    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4]])
    packed = model(tokens, mask=AttentionMask(causal=True, query_segments=segments), input_pos=positions)
    alone = torch.cat([model(tokens[:, :4]), model(tokens[:, 4:])], dim=1)
    torch.testing.assert_close(packed, alone, atol=1e-5, rtol=1e-5)


def test_decoder_losses_are_the_cross_entropy_of_its_logits() -> None:
    model = transom.build(tiny(), seed=0)
    tokens = torch.randint(61, (2, 8), generator=torch.Generator().manual_seed(0))
    labels = tokens.roll(-1, dims=1)
    labels[:, -1] = -100
    expected = -model(tokens).double().log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    expected[:, -1] = 0
    losses = model(tokens, labels=labels)
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses.double(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("is_tied", [True, False])
def test_decoder_names_its_parameters_canonically(is_tied: bool) -> None:
    names = set(transom.build(tiny(share_embeddings_and_output_weights=is_tied)).state_dict())
    assert ("output_layer.weight" in names) is not is_tied
    assert {
        "embedding.word_embeddings.weight",
        "layers.0.input_layernorm.weight",
        "layers.0.self_attention.linear_qkv.weight",
        "layers.0.self_attention.linear_proj.weight",
        "layers.1.pre_mlp_layernorm.weight",
        "layers.1.mlp.linear_fc1.weight",
        "layers.1.mlp.linear_fc2.weight",
        "final_layernorm.weight",
    } <= names


def test_decoder_returns_float32_logits_of_a_bfloat16_model() -> None:
    model = transom.build(tiny(), dtype="bfloat16", seed=0)
    assert next(model.parameters()).dtype == torch.bfloat16
    assert model(torch.tensor([[1, 2]])).dtype == torch.float32


@pytest.mark.parametrize("is_list", [True, False])
def test_decoder_takes_the_published_constructors_modules(is_list: bool) -> None:
    assembled = transom.build(tiny(), seed=0)
    layer = list(assembled.layers) if is_list else assembled.layers[0]
    decoder = TransformerDecoder(
        tok_embeddings=nn.Embedding(61, 32),
        layer=layer,
        num_layers=2,
        max_seq_len=24,
        num_heads=4,
        head_dim=8,
        norm=nn.LayerNorm(32),
        output=nn.Linear(32, 61),
    )
    tokens = torch.randint(61, (2, 7))
    assert decoder(tokens).shape == (2, 7, 61)
    weights = [layer.mlp.linear_fc1.weight for layer in decoder.layers]
    assert not torch.equal(weights[0], weights[1])
    decoder.eval()
    full = decoder(tokens)
    decoder.setup_caches(2, torch.float32)
    steps = [decoder(tokens[:, i : i + 1], input_pos=torch.tensor([i])) for i in range(7)]
    torch.testing.assert_close(torch.cat(steps, dim=1), full, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("is_tied", [True, False])
def test_decoder_gives_the_last_logits_alone_when_asked(is_tied: bool) -> None:
    model = transom.build(tiny(share_embeddings_and_output_weights=is_tied), seed=0)
    tokens = torch.randint(61, (2, 7))
    torch.testing.assert_close(model(tokens, last_only=True), model(tokens)[:, -1:])


def test_decoder_does_not_drop_when_evaluating() -> None:
    model = transom.build(tiny(config={"hidden_dropout": 0.5, "attention_dropout": 0.5}), seed=0).eval()
    tokens = torch.randint(61, (2, 7))
    assert torch.equal(model(tokens), model(tokens))
    model.train()
    assert not torch.equal(model(tokens), model(tokens))


def test_decoder_compiles_in_one_graph() -> None:
    model = transom.build(tiny(), seed=0)
    tokens = torch.randint(61, (2, 7))
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(tokens, labels=tokens), model(tokens, labels=tokens), atol=1e-5, rtol=1e-5)


def test_decoder_with_caches_accepts_a_smaller_batch_and_a_rewind() -> None:
    model = transom.build(tiny(), mode="infer", seed=0)
    model.setup_caches(4)
    tokens = torch.randint(61, (2, 9), generator=torch.Generator().manual_seed(0))
    full = model(tokens, input_pos=torch.arange(9))
    again = model(tokens[:, 4:], input_pos=torch.arange(4, 9))
    torch.testing.assert_close(again, full[:, 4:], atol=1e-5, rtol=1e-5)
    model.reset_caches()
    torch.testing.assert_close(model(tokens, input_pos=torch.arange(9)), full)


def test_decoder_keeps_its_caches_in_step_when_a_forward_fails() -> None:
    model = transom.build(tiny(), mode="infer", seed=0)
    model.setup_caches(1)
    tokens = torch.randint(61, (1, 8), generator=torch.Generator().manual_seed(0))
    expected = model(tokens, input_pos=torch.arange(8))
    model.reset_caches()
    model(tokens[:, :4], input_pos=torch.arange(4))
    handle = model.layers[1].register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("out of memory")))
    with pytest.raises(RuntimeError, match="out of memory"):
        model(tokens[:, 4:6], input_pos=torch.arange(4, 6))
    handle.remove()
    rest = model(tokens[:, 4:], input_pos=torch.arange(4, 8))
    torch.testing.assert_close(rest, expected[:, 4:], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("act", "error", "text"),
    [
        (lambda m: m(torch.zeros(1, 25, dtype=torch.long)), InputError, "25 tokens are more than max_seq_len, 24"),
        (lambda m: m(torch.zeros(5, dtype=torch.long)), InputError, r"integer ids of shape \[b, s\] are needed"),
        (
            lambda m: m(torch.zeros(2, 5, dtype=torch.long), labels=torch.zeros(2, 4, dtype=torch.long)),
            InputError,
            r"labels are \[2, 4\] and tokens \[2, 5\]; each token has one label",
        ),
        (lambda m: m(torch.zeros(1, 5)), InputError, r"tokens are torch.float32 \[1, 5\]"),
        (lambda m: m.reset_caches(), CacheError, "there are no caches to reset"),
        (
            lambda m: m(torch.zeros(1, 3, dtype=torch.long), mask=torch.ones(1, 3, 3, dtype=torch.bool)),
            MaskError,
            "not built for masks of kind keep",
        ),
        (lambda m: m(torch.zeros(1, 3, dtype=torch.long), mask=torch.ones(1, 3, 3)), MaskError, "keep"),
        (
            lambda m: m(torch.zeros(2, 10, dtype=torch.long), mask=torch.ones(2, 10).bool()),
            MaskError,
            r"a mask of shape \[2, 10\] .*\n.*\n  Try: .* mask=AttentionMask\(causal=True, key_padding=mask.bool\(\)\)",
        ),
    ],
)
def test_decoder_refuses_what_does_not_fit(act: Any, error: type[Exception], text: str) -> None:
    model = transom.build(tiny(), mode="infer", seed=0)
    with pytest.raises(error, match=text):
        act(model)


@pytest.mark.parametrize(
    ("tokens", "positions", "text"),
    [
        ((1, 3), None, "a cache needs the positions"),
        ((1, 2), [23, 24], "25 positions are asked for and the cache holds 24"),
        ((3, 2), [0, 1], "3 rows are asked for and the cache holds 2"),
    ],
)
def test_decoder_with_caches_refuses_what_they_cannot_hold(
    tokens: tuple[int, int], positions: list[int] | None, text: str
) -> None:
    model = transom.build(tiny(), mode="infer", seed=0)
    model.setup_caches(2)
    with pytest.raises(CacheError, match=text):
        model(torch.zeros(tokens, dtype=torch.long), input_pos=positions and torch.tensor(positions))


def test_setup_caches_refuses_a_model_built_to_train() -> None:
    with pytest.raises(CacheError, match='build it with mode="infer"'):
        transom.build(tiny()).setup_caches(1)


def test_decoder_refuses_a_list_of_another_length() -> None:
    layers = list(transom.build(tiny()).layers)
    with pytest.raises(ConfigError, match="num_layers is 3 and 2 layers are given"):
        TransformerDecoder(nn.Embedding(61, 32), layers, 3, 24, 4, 8, nn.LayerNorm(32), nn.Linear(32, 61))


def test_decoder_without_loss_refuses_labels() -> None:
    layers = list(transom.build(tiny()).layers)
    decoder = TransformerDecoder(nn.Embedding(61, 32), layers, 2, 24, 4, 8, nn.LayerNorm(32), nn.Linear(32, 61))
    with pytest.raises(InputError, match="the model has no loss"):
        decoder(torch.zeros(1, 2, dtype=torch.long), labels=torch.zeros(1, 2, dtype=torch.long))


def test_decoder_refuses_relative_positions_when_it_is_planned() -> None:
    with pytest.raises(ResolutionError, match="relative positions are for encoder-decoder models"):
        transom.plan(tiny(config={"position_embedding_type": "relative"}))


def test_decoder_refuses_a_split_between_encoder_and_decoder_when_it_is_planned() -> None:
    split = {"num_layers": 2, "pipeline_model_parallel_size": 3, "pipeline_model_parallel_split_rank": 1}
    with pytest.raises(ResolutionError, match="pipeline_model_parallel_split_rank is for encoder-decoder models"):
        transom.plan(tiny(config=split))


def test_decoder_whose_ranks_share_sequences_in_training_infers_alone() -> None:
    spec = tiny(config={"context_parallel_size": 2})
    assert transom.plan(spec).config.context_parallel_size == 2
    decoder = transom.build(spec, mode="infer", seed=0)
    assert decoder.plan.config.context_parallel_size == 1
    tokens = torch.arange(5)[None]
    assert torch.equal(decoder(tokens), transom.build(tiny(), mode="infer", seed=0)(tokens))


def test_decoder_of_shares_refuses_to_guess_where_their_tokens_are() -> None:
    layers = list(transom.build(tiny()).layers)
    sizes = (layers, 2, 24, 4, 8)
    decoder = TransformerDecoder(nn.Embedding(61, 32), *sizes, nn.LayerNorm(32), nn.Linear(32, 61), takes_shares=True)
    with pytest.raises(InputError, match="input_pos is missing: tokens are a share of their sequences"):
        decoder(torch.zeros(1, 2, dtype=torch.long))
    assert decoder(torch.zeros(1, 2, dtype=torch.long), input_pos=torch.tensor([4, 5])).shape == (1, 2, 61)


def test_plan_takes_the_calls_dtype_over_the_specs_bf16() -> None:
    plan = transom.plan(tiny(config={"bf16": True}), dtype="float32")
    assert plan.config.params_dtype == "float32"
    assert transom.plan(tiny(config={"bf16": True})).config.params_dtype == "bfloat16"


def test_decoder_keeps_the_residual_stream_of_a_bfloat16_model_in_float32() -> None:
    config = {"fp32_residual_connection": True, "params_dtype": "bfloat16"}
    model = transom.build(tiny(config=config), seed=0)
    streams: list[torch.dtype] = []
    model.layers[1].register_forward_hook(lambda module, inputs, output: streams.append(output[0].dtype))
    tokens = torch.randint(61, (2, 7))
    assert model(tokens).dtype == model(tokens, labels=tokens).dtype == torch.float32
    assert set(streams) == {torch.float32}
