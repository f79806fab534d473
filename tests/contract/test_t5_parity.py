"""T5 against that of Hugging Face transformers: the same weights give the same logits, losses and gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transom
from torch import Tensor
from transformers import T5Config, T5ForConditionalGeneration

SHAPE = {
    "vocab_size": 61,
    "d_model": 24,
    "d_kv": 10,
    "d_ff": 40,
    "num_heads": 3,
    "num_layers": 3,
    "num_decoder_layers": 2,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 12,
    "dropout_rate": 0.0,
}
# In a config of theirs this only says whether logits are scaled; the weights are shared or not as they were loaded.
VERSIONS = {
    "v1.0": {"feed_forward_proj": "relu", "tie_word_embeddings": True},
    "v1.1": {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
}


@pytest.fixture(params=VERSIONS)
def theirs(request: Any) -> T5ForConditionalGeneration:
    torch.manual_seed(0)
    config = T5Config(**SHAPE, **VERSIONS[request.param])
    config._attn_implementation = "eager"
    model = T5ForConditionalGeneration(config).train()
    if not config.scale_decoder_outputs:
        model.lm_head.weight = torch.nn.Parameter(torch.empty(61, 24))
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, mean=1.0 if "layer_norm" in name else 0.0, std=0.2)
    return model


def spec_of(config: T5Config, dropout: float = 0.0) -> dict[str, Any]:
    shared = {
        "hidden_size": config.d_model,
        "num_attention_heads": config.num_heads,
        "kv_channels": config.d_kv,
        "ffn_hidden_size": config.d_ff,
        "normalization": "RMSNorm",
        "layernorm_epsilon": config.layer_norm_epsilon,
        "add_bias_linear": False,
        "softmax_scale": 1.0,
        "position_embedding_type": "relative",
        "relative_attention_num_buckets": config.relative_attention_num_buckets,
        "relative_attention_max_distance": config.relative_attention_max_distance,
        "gated_linear_unit": config.is_gated_act,
        "activation_func": "gelu_tanh" if config.is_gated_act else "relu",
        "hidden_dropout": dropout,
        "attention_dropout": dropout,
        "ffn_dropout": dropout,
    }
    tied = config.scale_decoder_outputs
    return {
        "model": "t5",
        "vocab_size": config.vocab_size,
        "max_sequence_length": 32,
        "config": shared | {"num_layers": config.num_decoder_layers},
        "encoder_config": shared | {"num_layers": config.num_layers},
        "share_embeddings_and_output_weights": tied,
        "masks": ["padding"],
        "options": {"model": {"scale_logits": tied, "tied_bias": False, "output_dropout": True}},
    }


def per_head(heads: int, *matrices: Tensor) -> Tensor:
    """Stack projections ``[n·d, h]`` head by head."""
    return torch.stack([m.unflatten(0, (heads, -1)) for m in matrices], dim=1).flatten(0, 2)


def translated(state: dict[str, Tensor], config: T5Config) -> dict[str, Tensor]:
    """Give weights, or their gradients, our names and layouts."""
    ours = {"embedding.word_embeddings.weight": state["shared.weight"]}
    if not config.scale_decoder_outputs:
        ours["lm_head.output_layer.weight"] = state["lm_head.weight"]
    for side, layers in (("encoder", config.num_layers), ("decoder", config.num_decoder_layers)):
        bias = state[f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"]
        ours[f"{side}_relative_pos_emb.relative_attention_bias.weight"] = bias
        ours[f"{side}.final_layernorm.weight"] = state[f"{side}.final_layer_norm.weight"]
        for i in range(layers):
            layer = {name.removeprefix(f"{side}.block.{i}.layer."): tensor for name, tensor in state.items()}
            ours |= {f"{side}.layers.{i}.{name}": t for name, t in layer_of(layer, config, side == "decoder").items()}
    return ours


def layer_of(layer: dict[str, Tensor], config: T5Config, is_decoder: bool) -> dict[str, Tensor]:
    heads, last = config.num_heads, 2 if is_decoder else 1
    mlp = f"{last}.DenseReluDense."
    inner = [layer[f"{mlp}{name}.weight"] for name in (("wi_0", "wi_1") if config.is_gated_act else ("wi",))]
    ours = {
        "input_layernorm.weight": layer["0.layer_norm.weight"],
        "self_attention.linear_qkv.weight": per_head(heads, *(layer[f"0.SelfAttention.{x}.weight"] for x in "qkv")),
        "self_attention.linear_proj.weight": layer["0.SelfAttention.o.weight"],
        "pre_mlp_layernorm.weight": layer[f"{last}.layer_norm.weight"],
        "mlp.linear_fc1.weight": torch.cat(inner),
        "mlp.linear_fc2.weight": layer[f"{mlp}wo.weight"],
    }
    if is_decoder:
        ours |= {
            "pre_cross_attn_layernorm.weight": layer["1.layer_norm.weight"],
            "cross_attention.linear_q.weight": layer["1.EncDecAttention.q.weight"],
            "cross_attention.linear_kv.weight": per_head(
                heads, *(layer[f"1.EncDecAttention.{x}.weight"] for x in "kv")
            ),
            "cross_attention.linear_proj.weight": layer["1.EncDecAttention.o.weight"],
        }
    return ours


def same_weights(theirs: T5ForConditionalGeneration, dropout: float = 0.0, **build: Any) -> Any:
    ours = transom.build(spec_of(theirs.config, dropout), **build)
    ours.load_state_dict(translated(theirs.state_dict(), theirs.config))
    return ours


def batch() -> dict[str, Tensor]:
    """Two rows of unequal length to be read, and to be written."""
    random = torch.Generator().manual_seed(1)
    labels = torch.randint(1, 61, (2, 9), generator=random)
    labels[1, 7:] = -100
    return {
        "read": torch.randint(1, 61, (2, 14), generator=random),
        "padding": torch.arange(14) < torch.tensor([[14], [10]]),
        "written": torch.randint(1, 61, (2, 9), generator=random),
        "labels": labels,
    }


def close(ours: Tensor, reference: Tensor) -> None:
    """Both sum in float32, in another order: the error is that of the largest numbers."""
    largest = max(1.0, float(reference.detach().abs().max()))
    torch.testing.assert_close(ours, reference, atol=1e-5 * largest, rtol=1e-5)


def test_t5_gives_their_logits_losses_and_gradients(theirs: T5ForConditionalGeneration) -> None:
    ours, data = same_weights(theirs), batch()
    padding = data["padding"]
    expected = theirs(
        input_ids=data["read"], attention_mask=padding.long(), decoder_input_ids=data["written"], labels=data["labels"]
    )
    masks = padding, None, padding
    close(ours(data["read"], data["written"], *masks), expected.logits)
    losses = ours(data["read"], data["written"], *masks, lm_labels=data["labels"])
    loss = losses.sum() / (data["labels"] >= 0).sum()
    close(loss, expected.loss)
    loss.backward()
    expected.loss.backward()
    gradients = translated({n: p.grad for n, p in theirs.named_parameters()}, theirs.config)
    for name, parameter in ours.named_parameters():
        close(parameter.grad, gradients[name])


def test_t5_decodes_with_caches_as_they_do(theirs: T5ForConditionalGeneration) -> None:
    theirs.eval()
    ours, data = same_weights(theirs, mode="infer"), batch()
    padding = data["padding"]
    with torch.no_grad():
        expected = theirs(
            input_ids=data["read"], attention_mask=padding.long(), decoder_input_ids=data["written"]
        ).logits
    read = ours.encode(data["read"], padding)
    ours.setup_caches(2)
    steps = [(0, 4), *((i, i + 1) for i in range(4, 9))]
    logits = [
        ours.decode(
            data["written"][:, start:end],
            read if start == 0 else None,
            encoder_decoder_attn_mask=padding,
            input_pos=torch.arange(start, end),
        )
        for start, end in steps
    ]
    close(torch.cat(logits, dim=1), expected)


def test_t5_writes_what_they_write_greedily(theirs: T5ForConditionalGeneration) -> None:
    theirs.eval()
    theirs.generation_config.update(decoder_start_token_id=0, eos_token_id=None, pad_token_id=0)
    ours, data = same_weights(theirs, mode="infer"), batch()
    padding = data["padding"]
    expected = theirs.generate(
        data["read"], attention_mask=padding.long(), do_sample=False, min_new_tokens=12, max_new_tokens=12
    )
    ours.setup_caches(2)
    tokens = torch.zeros(2, 1, dtype=torch.long)
    read = ours.encode(data["read"], padding)
    for position in range(12):
        step = ours.decode(tokens[:, -1:], read, encoder_decoder_attn_mask=padding, input_pos=torch.tensor([position]))
        tokens = torch.cat([tokens, step[:, -1].argmax(-1, keepdim=True)], dim=1)
    assert torch.equal(tokens, expected)


def test_t5_drops_where_they_drop(theirs: T5ForConditionalGeneration, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dropout that halves instead of dropping: the same numbers come out only if it is in the same places."""

    def halve(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        return x * p if training and p > 0 else x

    ours, data = same_weights(theirs, dropout=0.5), batch()
    for module in theirs.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
        if hasattr(module, "dropout") and isinstance(module.dropout, float):
            module.dropout = 0.5
    monkeypatch.setattr(torch.nn.functional, "dropout", halve)
    padding = data["padding"]
    expected = theirs(input_ids=data["read"], attention_mask=padding.long(), decoder_input_ids=data["written"]).logits
    close(ours(data["read"], data["written"], padding, None, padding), expected)
    theirs.eval()
    without = theirs(input_ids=data["read"], attention_mask=padding.long(), decoder_input_ids=data["written"]).logits
    assert not torch.isclose(expected, without, atol=1e-2).all()
    close(ours.eval()(data["read"], data["written"], padding, None, padding), without)
