"""What is wrong with a folder is told, all of it at once, before anything is loaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transom
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode
from transom.checkpoint.hugging_face.folder import is_hugging_face, open_folder
from transom.errors import CheckpointError, ConfigError

Make = Callable[..., Path]
TOKENS = torch.tensor([[1, 2, 3, 4]])


def changed(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> Path:
    path = folder / "model.safetensors"
    weights = {name: tensor.clone() for name, tensor in load_file(str(path)).items()}
    change(weights)
    save_file(weights, str(path))
    return folder


def test_a_folder_says_what_it_computes(make: Make) -> None:
    folder = make("my model")
    opened = open_folder(folder)
    config = opened.spec.config
    assert is_hugging_face(folder)
    assert not is_hugging_face(folder.parent)
    assert (opened.spec.name, opened.family.model_type) == ("my model", "llama")
    assert opened.spec.source == str(folder / "config.json")
    assert (config.num_layers, config.num_query_groups, config.kv_channels) == (2, 2, 2)
    assert (config.layernorm_epsilon, config.rotary_base, config.params_dtype) == (1e-6, 500.0, "float32")
    assert (opened.spec.vocab_size, opened.spec.max_sequence_length) == (19, 32)


def test_the_dtype_is_the_configs_else_that_of_the_weights(make: Make) -> None:
    assert open_folder(make("a", torch_dtype="bfloat16")).spec.config.params_dtype == "bfloat16"
    assert open_folder(make("b", dtype="float16", weights=False)).spec.config.params_dtype == "float16"
    assert open_folder(make("c", weights=False)).spec.config.params_dtype == "float32"
    folder = changed(make("d"), lambda weights: weights.update({n: t.bfloat16() for n, t in weights.items()}))
    assert open_folder(folder).spec.config.params_dtype == "bfloat16"


def test_weights_missing_left_over_and_misshapen_are_told_together(make: Make) -> None:
    def damage(weights: dict[str, torch.Tensor]) -> None:
        del weights["model.layers.1.mlp.up_proj.weight"]
        weights["model.layers.0.input_layernorm.weight"] = torch.ones(9)
        weights["model.layers.0.mlp.expert.weight"] = torch.ones(2)
        weights["model.norm.weight"] = torch.ones(8, dtype=torch.int64)

    with pytest.raises(CheckpointError, match=r"not those that config\.json describes: 4 diff") as caught:
        transom.from_pretrained(changed(make(), damage))
    assert caught.value.problems == (
        "model.layers.0.input_layernorm.weight has shape [9]; the model's is [8]",
        "model.layers.0.mlp.expert.weight has no place in the model",
        "model.layers.1.mlp.up_proj.weight is missing",
        "model.norm.weight is int64; the model's is float32",
    )


def test_names_without_the_models_prefix_are_found(make: Make) -> None:
    expected = transom.from_pretrained(make())(TOKENS)

    def strip(weights: dict[str, torch.Tensor]) -> None:
        for name in list(weights):
            weights[name.removeprefix("model.")] = weights.pop(name)

    assert torch.equal(transom.from_pretrained(changed(make("bare"), strip))(TOKENS), expected)


def test_tensors_that_are_no_weights_are_left_out(make: Make) -> None:
    folder = changed(make(), lambda w: w.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(1)}))
    assert transom.from_pretrained(folder)(TOKENS).shape == (1, 4, 19)


@pytest.mark.parametrize("kept", ["model.embed_tokens.weight", "lm_head.weight", "both"])
def test_a_shared_weight_is_found_under_either_name(make: Make, kept: str) -> None:
    def rename(weights: dict[str, torch.Tensor]) -> None:
        shared = weights.pop("model.embed_tokens.weight")
        names = ["model.embed_tokens.weight", "lm_head.weight"] if kept == "both" else [kept]
        weights.update({name: shared.clone() for name in names})

    plain = transom.from_pretrained(make("plain", tie_word_embeddings=True))
    model = transom.from_pretrained(changed(make(tie_word_embeddings=True), rename))
    assert model.plan.spec.share_embeddings_and_output_weights
    assert torch.equal(model(TOKENS), plain(TOKENS))


def test_weights_that_differ_are_two_whatever_the_config_says(make: Make) -> None:
    def untie(weights: dict[str, torch.Tensor]) -> None:
        weights["lm_head.weight"] = torch.full((19, 8), 0.5)

    model = transom.from_pretrained(changed(make(tie_word_embeddings=True), untie))
    assert not model.plan.spec.share_embeddings_and_output_weights
    assert torch.equal(model.output_layer.weight, torch.full((19, 8), 0.5))


def test_a_weight_under_two_names_that_differ_is_refused(make: Make) -> None:
    t5 = {
        "model_type": "t5",
        "vocab_size": 7,
        "d_model": 4,
        "d_kv": 2,
        "d_ff": 6,
        "num_heads": 2,
        "num_layers": 1,
    }
    folder = make(config=t5)
    changed(folder, lambda weights: weights.update({"encoder.embed_tokens.weight": torch.ones(7, 4)}))
    with pytest.raises(CheckpointError, match="1 difference; nothing was loaded") as caught:
        transom.from_pretrained(folder)
    assert caught.value.problems == (
        "encoder.embed_tokens.weight and shared.weight are one parameter of the model, and differ",
    )


def test_a_folder_without_weights_is_refused_when_they_are_needed(make: Make) -> None:
    folder = make(weights=False)
    assert transom.plan(open_folder(folder).spec).config.num_layers == 2
    with pytest.raises(CheckpointError, match=r"no weights in .*model, which holds config\.json"):
        transom.from_pretrained(folder)


def test_what_cannot_be_computed_is_told_all_at_once(make: Make) -> None:
    folder = make(
        weights=False,
        hidden_act="xielu",
        attention_bias=True,
        rope_scaling={"type": "dynamic", "factor": 2.0},
        hidden_size=None,
        quantization_config={"bits": 4},
    )
    with pytest.raises(CheckpointError, match="describes a model that cannot be computed exactly") as caught:
        open_folder(folder)
    told = "\n".join(caught.value.problems)
    assert len(caught.value.problems) == 5
    assert "quantization_config is given" in told
    assert "attention_bias is True and mlp_bias is False: biases here are in all linears of a layer or in none" in told
    assert "rope_type is 'dynamic'; there are default, linear, llama3, yarn" in told
    assert "hidden_size is missing" in told
    assert "hidden_act is 'xielu'; there are silu, " in told


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "mamba"}, "no family of models is named 'mamba'"),
        ({"model_type": None}, "there is no model_type"),
        (
            {"architectures": ["LlamaForSequenceClassification"]},
            "the weights are of LlamaForSequenceClassification; of llama models LlamaForCausalLM is read",
        ),
    ],
    ids=["family", "none", "head"],
)
def test_unknown_architectures_are_refused(make: Make, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        open_folder(make(weights=False, **changes))
    assert caught.value.model_type == changes.get("model_type", "llama")


def test_a_config_that_cannot_be_is_told_with_its_file(make: Make) -> None:
    with pytest.raises(ConfigError, match="num_query_groups is 3; a divisor of num_attention_heads"):
        open_folder(make(weights=False, num_key_value_heads=3))


def test_a_folder_without_a_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no config\.json in ") as caught:
        open_folder(tmp_path)
    assert caught.value.folder == tmp_path


@pytest.mark.parametrize(("text", "message"), [("{", "is not JSON"), ("[1]", "holds no mapping")])
def test_a_config_that_is_none_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=message):
        open_folder(tmp_path)


def test_torch_files_are_read_and_mapped(make: Make) -> None:
    folder = make()
    expected = transom.from_pretrained(folder)(TOKENS)
    torch.save(load_file(str(folder / "model.safetensors")), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert torch.equal(transom.from_pretrained(folder)(TOKENS), expected)


class Copies(TorchDispatchMode):
    """Counts the bytes that are copied into tensors, and notes shapes of those that are made by joining others."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0
        self.joined: list[torch.Size] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.copy_.default:
            self.bytes += made.nbytes
        elif func.overloadpacket in (torch.ops.aten.cat, torch.ops.aten.stack, torch.ops.aten.clone):
            self.joined += [made.shape] * (not made.is_meta)
        return made


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_each_weight_is_copied_once_from_the_file_into_its_parameter(make: Make, dtype: str) -> None:
    folder = make(torch_dtype=dtype, num_hidden_layers=3)
    with Copies() as copies:
        model = transom.from_pretrained(folder)
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    fused = {shape for name, shape in shapes.items() if name.endswith(("linear_qkv.weight", "linear_fc1.weight"))}
    assert len(fused) == 2
    assert not fused & set(copies.joined)
    assert copies.bytes == sum(parameter.nbytes for parameter in model.parameters())
