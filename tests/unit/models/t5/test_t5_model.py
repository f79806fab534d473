"""T5: against a measured case and a formula of its own, and what it promises of masks, stages and calls."""

from __future__ import annotations

import copy
import inspect
import math
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transom import AttentionMask, TransformerConfig
from transom.errors import ConfigError, InputError, MaskError
from transom.models.t5 import PackedSeqParams, T5Model
from transom.transformer.spec_utils import ModuleSpec
from transom.transformer.transformer_layer import TransformerLayer

CASE = Path(__file__).parents[3] / "data" / "megatron" / "t5_learned.pt"
POSITIONS = ["learned_absolute", "rope", "relative"]


def close(ours: Tensor, reference: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(ours, reference, atol=tolerance, rtol=tolerance)


@pytest.fixture
def measured() -> tuple[dict[str, Any], T5Model, list[Tensor]]:
    case = torch.load(CASE, weights_only=True)
    config = TransformerConfig(
        num_layers=2, hidden_size=32, num_attention_heads=4, hidden_dropout=0.0, attention_dropout=0.0
    )
    layer = ModuleSpec("transformer_layer")
    model = T5Model(config, config, layer, layer, vocab_size=60, max_sequence_length=16)
    model.load_state_dict(case["state_dict"])
    inputs = case["inputs"]
    masks = [~inputs[f"{name}_attn_mask"] for name in ("encoder", "decoder", "encoder_decoder")]  # True = masked there
    return case, model, [inputs["encoder_input_ids"], inputs["decoder_input_ids"], *masks]


def test_t5_gives_measured_logits_losses_and_hidden_states(measured: Any) -> None:
    case, model, inputs = measured
    expected = case["outputs"]
    close(model(*inputs), expected["logits"])
    close(model(*inputs, lm_labels=case["inputs"]["lm_labels"]), expected["loss"])
    close(model(*inputs, output_encoder_hidden_only=True), expected["encoder_hidden"].transpose(0, 1))


def test_t5_gives_measured_gradients(measured: Any) -> None:
    case, model, inputs = measured
    model(*inputs, lm_labels=case["inputs"]["lm_labels"]).mean().backward()
    named = dict(model.named_parameters())
    assert {f"param.{name}" for name in named} == case["grads"].keys()
    for name, parameter in named.items():
        close(parameter.grad, case["grads"][f"param.{name}"], 1e-4)


def test_t5_keeps_second_names_that_say_something_else(measured: Any) -> None:
    case, model, _ = measured
    state = dict(case["state_dict"])
    state["output_layer.weight"] = state["output_layer.weight"] + 1
    with pytest.raises(RuntimeError, match=r"Unexpected key.*output_layer\.weight"):
        model.load_state_dict(state)


class Formula:
    """T5 in float64, written down from its state: LayerNorm, gelu, biases, half-split RoPE or learned positions."""

    def __init__(self, model: T5Model) -> None:
        self.state = {name: tensor.double() for name, tensor in model.state_dict().items()}
        self.config = model.config

    def __call__(self, read: Tensor, written: Tensor, padding: Tensor) -> Tensor:
        t, s = read.shape[1], written.shape[1]
        everyone = padding[:, None, None, :].expand(-1, 1, t, t)
        x = self.stack("encoder", self.embed(read), None, everyone, None)
        causal = torch.ones(s, s, dtype=torch.bool).tril()
        y = self.stack("decoder", self.embed(written), x, causal, padding[:, None, None, :])
        return y @ self.state["lm_head.output_layer.weight"].T

    def embed(self, ids: Tensor) -> Tensor:
        hidden = self.state["embedding.word_embeddings.weight"][ids]
        learned = self.state.get("embedding.position_embeddings.weight")
        return hidden if learned is None else hidden + learned[: ids.shape[1]]

    def stack(self, side: str, x: Tensor, context: Tensor | None, keep: Tensor, between: Tensor | None) -> Tensor:
        for i in range(self.config.num_layers):
            layer = f"{side}.layers.{i}."
            normed = self.norm(x, f"{layer}input_layernorm")
            q, k, v = self.heads(self.linear(normed, f"{layer}self_attention.linear_qkv"), 3)
            x = x + self.attend(self.turn(q), self.turn(k), v, keep, f"{layer}self_attention")
            if context is not None:
                normed = self.norm(x, f"{layer}pre_cross_attn_layernorm")
                (q,) = self.heads(self.linear(normed, f"{layer}cross_attention.linear_q"), 1)
                k, v = self.heads(self.linear(context, f"{layer}cross_attention.linear_kv"), 2)
                x = x + self.attend(q, k, v, between, f"{layer}cross_attention")
            inner = F.gelu(self.linear(self.norm(x, f"{layer}pre_mlp_layernorm"), f"{layer}mlp.linear_fc1"))
            x = x + self.linear(inner, f"{layer}mlp.linear_fc2")
        return self.norm(x, f"{side}.final_layernorm")

    def linear(self, x: Tensor, name: str) -> Tensor:
        return x @ self.state[f"{name}.weight"].T + self.state[f"{name}.bias"]

    def norm(self, x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.state[f"{name}.weight"], self.state[f"{name}.bias"], 1e-5)

    def heads(self, mixed: Tensor, kinds: int) -> tuple[Tensor, ...]:
        n, d = self.config.num_attention_heads, self.config.kv_channels
        return mixed.view(*mixed.shape[:2], n, kinds, d).transpose(1, 2).unbind(3)  # each [b, n, s, d]

    def attend(self, q: Tensor, k: Tensor, v: Tensor, keep: Tensor | None, name: str) -> Tensor:
        scores = q @ k.transpose(2, 3) / math.sqrt(q.shape[-1])
        scores = scores if keep is None else scores.masked_fill(~keep, float("-inf"))
        return self.linear((scores.softmax(-1) @ v).transpose(1, 2).flatten(2), f"{name}.linear_proj")

    def turn(self, x: Tensor) -> Tensor:
        if self.config.position_embedding_type != "rope":
            return x
        width = int(x.shape[-1] * self.config.rotary_percent)
        first, second, rest = x[..., : width // 2], x[..., width // 2 : width], x[..., width:]
        positions = torch.arange(x.shape[2]).double() / (self.config.seq_len_interpolation_factor or 1.0)
        angles = torch.outer(positions, 10000.0 ** (-torch.arange(0, width, 2).double() / width))
        cos, sin = angles.cos(), angles.sin()
        return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], dim=-1)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"position_embedding_type": "rope"},
        {"position_embedding_type": "rope", "rotary_percent": 0.5},
        {"position_embedding_type": "rope", "seq_len_interpolation_factor": 2.0},
    ],
    ids=lambda a: ",".join(map(str, a.values())) or "learned",
)
def test_t5_computes_its_formula(arguments: dict[str, Any], make_t5: Any, ids: Any) -> None:
    model = make_t5(**arguments)
    read, written = ids(2, 7), ids(2, 5, seed=1)
    padding = torch.arange(7) < torch.tensor([[7], [4]])
    expected = Formula(model)(read, written, padding)
    close(model(read, written, padding, None, padding), expected.float())


def test_t5_takes_positions_from_the_arguments_or_the_config(make_t5: Any) -> None:
    config = TransformerConfig(num_layers=1, hidden_size=16, num_attention_heads=2, position_embedding_type="rope")
    layer = "transformer_layer"
    assert T5Model(config, config, layer, layer, 61, 24).config.position_embedding_type == "rope"
    assert make_t5().embedding.position_embeddings is not None
    with pytest.raises(ConfigError, match="position_embedding_type is 'relative' in the arguments and 'rope' in the"):
        T5Model(config, config, layer, layer, 61, 24, position_embedding_type="relative")


def test_t5_has_a_bias_of_logits_only_when_weights_are_shared(make_t5: Any, ids: Any) -> None:
    plain, tied = make_t5(), make_t5(share_embeddings_and_output_weights=True)
    assert "lm_head.output_layer.bias" not in plain.state_dict()
    assert "lm_head.output_layer.weight" not in tied.state_dict()
    read, written = ids(2, 7), ids(2, 5, seed=1)
    before = tied(read, written, None, None, None)
    with torch.no_grad():
        tied.lm_head.output_layer.bias += 3
    close(tied(read, written, None, None, None), before + 3)


@pytest.mark.parametrize("shared", [False, True], ids=["own weight", "tied"])
def test_t5_losses_are_cross_entropies_of_its_logits(shared: bool, make_t5: Any, ids: Any) -> None:
    model = make_t5(share_embeddings_and_output_weights=shared)
    read, written, labels = ids(2, 7), ids(2, 5, seed=1), ids(2, 5, seed=2)
    labels[0, 3:] = -100
    logits = model(read, written, None, None, None)
    expected = F.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
    close(model(read, written, None, None, None, lm_labels=labels), expected)


def test_t5_gives_losses_in_its_dtype_when_asked(make_t5: Any, ids: Any) -> None:
    read, labels = ids(1, 4), ids(1, 3)
    arguments = (read, labels, None, None, None, labels)
    assert make_t5(params_dtype="bfloat16")(*arguments).dtype is torch.float32
    assert make_t5(params_dtype="bfloat16", fp16_lm_cross_entropy=True)(*arguments).dtype is torch.bfloat16


@pytest.mark.parametrize("kind", POSITIONS)
def test_t5_reads_all_and_writes_what_follows_what_it_wrote(kind: str, make_t5: Any, ids: Any) -> None:
    model = make_t5(position_embedding_type=kind).eval()
    read, written = ids(2, 7), ids(2, 5, seed=1)
    logits = model(read, written, None, None, None)
    later = written.clone()
    later[:, 3:] = (later[:, 3:] + 1) % 61
    close(model(read, later, None, None, None)[:, :3], logits[:, :3])
    last = read.clone()
    last[:, -1] = (last[:, -1] + 1) % 61
    assert not torch.isclose(model(last, written, None, None, None), logits).all(-1).any()


def test_t5_takes_every_form_of_a_mask(make_t5: Any, ids: Any) -> None:
    model = make_t5()
    read, written = ids(2, 7), ids(2, 5, seed=1)
    padding = torch.arange(7) < torch.tensor([[7], [4]])
    triangle = torch.ones(5, 5, dtype=torch.bool).tril().expand(2, 5, 5)
    expected = model(read, written, padding, None, padding)
    wide = padding[:, None, :]
    close(model(read, written, wide.expand(2, 7, 7), triangle, wide.expand(2, 5, 7)), expected)
    heads = wide[:, None]
    close(model(read, written, heads.expand(2, 1, 7, 7), triangle[:, None], heads.expand(2, 1, 5, 7)), expected)
    objects = AttentionMask(key_padding=padding)
    close(model(read, written, objects, AttentionMask(causal=True), objects), expected)
    shorter = model(read[1:, :4], written[1:], None, None, None)
    close(expected[1:], shorter)


def test_t5_padding_of_what_is_written_stays_causal(make_t5: Any, ids: Any) -> None:
    model = make_t5()
    read, written = ids(2, 7), ids(2, 5, seed=1)
    padding = torch.arange(5) < torch.tensor([[5], [3]])
    logits = model(read, written, None, padding, None)
    close(logits[1:, :3], model(read, written, None, None, None)[1:, :3])


def test_t5_does_what_an_explicit_mask_says_even_if_it_looks_ahead(make_t5: Any, ids: Any) -> None:
    model = make_t5()
    read, written = ids(1, 7), ids(1, 5, seed=1)
    everyone = torch.ones(1, 5, 5, dtype=torch.bool)
    later = written.clone()
    later[:, 4] = (later[:, 4] + 1) % 61
    one, other = (model(read, each, None, everyone, None)[:, 0] for each in (written, later))
    assert not torch.isclose(one, other).all()


@pytest.mark.parametrize("kind", POSITIONS)
def test_t5_gives_packed_sequences_what_each_gives_alone(kind: str, make_t5: Any, ids: Any) -> None:
    model = make_t5(position_embedding_type=kind)
    reads, writes = [ids(1, n, seed=n) for n in (7, 3, 5)], [ids(1, n, seed=9 + n) for n in (2, 6, 4)]
    ends_read, ends_written = torch.tensor([0, 7, 10, 15]), torch.tensor([0, 2, 8, 12])
    packed = PackedSeqParams(cu_seqlens_q=ends_written, cu_seqlens_kv=ends_read, max_seqlen_q=6, max_seqlen_kv=7)
    rows = torch.cat(reads, dim=1), torch.cat(writes, dim=1)
    alone = [model(read, written, None, None, None) for read, written in zip(reads, writes, strict=True)]
    close(model(*rows, None, None, None, packed_seq_params=packed), torch.cat(alone, dim=1))


def test_t5_combines_packed_sequences_with_padding(make_t5: Any, ids: Any) -> None:
    model = make_t5(position_embedding_type="rope")
    read, written = ids(1, 10), ids(1, 8)
    packed = PackedSeqParams(cu_seqlens_q=torch.tensor([0, 3, 8]), cu_seqlens_kv=torch.tensor([0, 6, 10]))
    padding = torch.ones(1, 10, dtype=torch.bool)
    padding[:, 4:6] = False
    logits = model(read, written, padding, None, padding, packed_seq_params=packed)
    first = model(read[:, :4], written[:, :3], None, None, None)
    second = model(read[:, 6:], written[:, 3:], None, None, None)
    close(logits, torch.cat([first, second], dim=1))


def test_t5_may_have_an_encoder_of_another_depth(make_t5: Any, ids: Any) -> None:
    model = make_t5(encoder={"num_layers": 3, "ffn_hidden_size": 48})
    assert (len(model.encoder.layers), len(model.decoder.layers)) == (3, 2)
    assert model(ids(1, 4), ids(1, 3), None, None, None).shape == (1, 3, 61)


def test_t5_takes_layers_in_every_form(make_t5: Any, ids: Any) -> None:
    def build(config: TransformerConfig, *, layer_number: int, tp_group: Any = None) -> Any:
        from transom.module_specs import layer_builders

        (make,) = layer_builders("transformer_layer", config, [layer_number], cross_attention=True)
        return make(config, layer_number=layer_number, tp_group=tp_group)

    read, written = ids(1, 4), ids(1, 3)
    expected = make_t5()(read, written, None, None, None)
    spec = ModuleSpec("transformer_layer", submodules={"self_attention": ModuleSpec("self_attention")})
    for layer in (spec, TransformerLayer, [spec, "transformer_layer"], [TransformerLayer] * 2):
        close(make_t5(layer=layer)(read, written, None, None, None), expected)
    for layer in (build, [build, "transformer_layer"]):
        close(make_t5(decoder_layer=layer)(read, written, None, None, None), expected)


def test_t5_refuses_another_number_of_layer_specs(make_t5: Any) -> None:
    with pytest.raises(ConfigError, match="3 decoder layer specs are given for 2 layers") as error:
        make_t5(decoder_layer=["transformer_layer"] * 3)
    assert (error.value.field, error.value.value) == ("transformer_decoder_layer_spec", 3)


@pytest.mark.parametrize(
    ("encoder", "field"),
    [({"hidden_size": 16}, "hidden_size"), ({"params_dtype": "bfloat16"}, "params_dtype")],
    ids=["hidden_size", "params_dtype"],
)
def test_t5_refuses_an_encoder_that_does_not_fit(encoder: dict[str, Any], field: str, make_t5: Any) -> None:
    with pytest.raises(ConfigError, match=f"the encoder's {field} is .* and the decoder's") as error:
        make_t5(encoder=encoder)
    assert error.value.field == field


def test_t5_refuses_alibi(make_t5: Any) -> None:
    with pytest.raises(ConfigError, match="alibi is for decoder-only models"):
        make_t5(position_embedding_type="alibi")


@pytest.mark.parametrize(
    "fields", [{"embedding_multiplier": 2.0}, {"final_logit_softcapping": 30.0}], ids=lambda f: next(iter(f))
)
def test_t5_refuses_what_it_has_no_place_for(fields: dict[str, float], make_t5: Any) -> None:
    ((name, value),) = fields.items()
    for arguments in (fields, {"encoder": fields}):
        with pytest.raises(ConfigError, match=f"{name} is {value}, which T5 has no place for") as error:
            make_t5(**arguments)
        assert error.value.field == name


def test_t5_survives_pickling_and_copying(make_t5: Any, ids: Any) -> None:
    model = make_t5(position_embedding_type="relative")
    arguments = (ids(1, 4), ids(1, 3), None, None, None)
    expected = model(*arguments)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        close(other(*arguments), expected)


def test_t5_has_the_published_signatures() -> None:
    constructor = [p.name for p in inspect.signature(T5Model).parameters.values() if p.kind is not p.KEYWORD_ONLY]
    assert constructor == [
        "config",
        "encoder_config",
        "transformer_encoder_layer_spec",
        "transformer_decoder_layer_spec",
        "vocab_size",
        "max_sequence_length",
        "pre_process",
        "post_process",
        "fp16_lm_cross_entropy",
        "parallel_output",
        "share_embeddings_and_output_weights",
        "position_embedding_type",
        "rotary_percent",
        "seq_len_interpolation_factor",
        "add_encoder",
        "add_decoder",
    ]
    forward = [p.name for p in inspect.signature(T5Model.forward).parameters.values() if p.kind is not p.KEYWORD_ONLY]
    assert forward[1:] == [
        "encoder_input_ids",
        "decoder_input_ids",
        "encoder_attn_mask",
        "decoder_attn_mask",
        "encoder_decoder_attn_mask",
        "lm_labels",
        "encoder_hidden_states",
        "output_encoder_hidden_only",
        "inference_params",
        "packed_seq_params",
    ]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((None, "ids"), "encoder_input_ids are None; integer ids"),
        (("ids", None), "decoder_input_ids are None; integer ids"),
        (("hidden", "ids"), r"encoder_input_ids are torch.float32 \[2, 5, 8\]; integer ids of shape \[b, s\]"),
        (("long", "ids"), "25 encoder_input_ids are more than max_sequence_length, 24"),
        (("ids", "long"), "25 decoder_input_ids are more than max_sequence_length, 24"),
    ],
    ids=["nothing to read", "nothing to write", "hidden states", "long", "long decoder"],
)
def test_t5_refuses_what_are_no_ids(arguments: tuple[Any, Any], text: str, make_t5: Any, ids: Any) -> None:
    known = {"ids": ids(2, 5), "hidden": torch.randn(2, 5, 8), "long": ids(2, 25), None: None}
    with pytest.raises(InputError, match=text):
        make_t5()(*(known[each] for each in arguments), None, None, None)


@pytest.mark.parametrize("name", ["encoder_attn_mask", "decoder_attn_mask", "encoder_decoder_attn_mask"])
def test_t5_refuses_masks_of_another_shape_by_name(name: str, make_t5: Any, ids: Any) -> None:
    masks = {f"{side}_attn_mask": None for side in ("encoder", "decoder", "encoder_decoder")}
    for shape in ((2, 9), (2, 9, 9), (3, 5), (2, 1, 9, 9), (5,)):
        with pytest.raises(MaskError, match=rf"{name} has shape .*; \[2, ") as error:
            make_t5()(ids(2, 7), ids(2, 6), **(masks | {name: torch.ones(shape, dtype=torch.bool)}))
        assert error.value.field == name
    with pytest.raises(MaskError, match=f"{name} must be a tensor of bool dtype, not torch.float32"):
        make_t5()(ids(2, 6), ids(2, 6), **(masks | {name: torch.ones(2, 6)}))


def test_t5_refuses_kinds_of_masks_that_it_was_not_built_for(make_t5: Any, ids: Any) -> None:
    model = make_t5(masks=["padding"])
    with pytest.raises(MaskError, match="not built for masks of kind keep") as error:
        model(ids(2, 6), ids(2, 6), None, torch.ones(2, 6, 6, dtype=torch.bool), None)
    assert error.value.available == ("causal", "padding")
    with pytest.raises(MaskError, match="not built for masks of kind causal"):
        model(ids(2, 6), ids(2, 6), AttentionMask(causal=True), None, None)
