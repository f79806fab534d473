"""The packaged specs: what they are, and that they learn."""

from __future__ import annotations

import pytest
import transom
from transom.specs.load import recipe_names
from transom.training.default_corpus import default_text
from transom.training.run import train

TINY = ["tiny-gpt2", "tiny-llama", "tiny-t5"]


def test_recipes_are_packaged():
    assert set(TINY) <= set(recipe_names())


@pytest.mark.parametrize("name", TINY)
def test_tiny_recipes_have_a_few_million_parameters(name):
    model = transom.build(name, device="meta")
    assert 1_000_000 < sum(parameter.numel() for parameter in model.parameters()) < 4_000_000


def test_tiny_llama_is_a_llama():
    config = transom.load_spec("tiny-llama").config
    assert (config.normalization, config.position_embedding_type, config.activation_func) == ("RMSNorm", "rope", "silu")
    assert config.gated_linear_unit
    assert not config.add_bias_linear
    assert config.num_query_groups < config.num_attention_heads


def test_tiny_gpt2_is_a_gpt2():
    config = transom.load_spec("tiny-gpt2").config
    assert (config.normalization, config.position_embedding_type) == ("LayerNorm", "learned_absolute")
    assert config.activation_func == "gelu_tanh"
    assert config.add_bias_linear
    assert not config.gated_linear_unit


def test_tiny_t5_is_a_t5():
    spec = transom.load_spec("tiny-t5")
    config = spec.config
    assert (config.normalization, config.position_embedding_type, config.activation_func) == (
        "RMSNorm",
        "relative",
        "gelu_tanh",
    )
    assert config.gated_linear_unit
    assert config.softmax_scale == 1.0
    assert not config.add_bias_linear
    assert spec.train.objective == "span_corruption"


@pytest.mark.parametrize("name", TINY)
def test_tiny_recipes_look_at_all_validation_tokens(name):
    spec = transom.load_spec(name)
    set_aside = len(default_text().encode()) * spec.train.validation_fraction
    assert spec.train.eval_batches * spec.train.batch_size * spec.max_sequence_length >= set_aside


def test_a_still_smaller_llama_beats_a_bigram_model_within_seconds(tmp_path):
    data = transom.load_spec("tiny-llama").to_dict()
    data["config"] |= {"num_layers": 2, "hidden_size": 96, "ffn_hidden_size": 256, "num_attention_heads": 4}
    data["max_sequence_length"] = 64
    data["train"] |= {"steps": 200, "batch_size": 16, "learning_rate": 0.003, "warmup_steps": 10, "checkpoint_every": 0}
    result = train(data, out=tmp_path / "run")
    assert 2.2 < result.bigram_loss < 2.6
    assert result.validation_loss < result.bigram_loss - 0.03


def test_a_still_smaller_t5_learns_to_fill_spans_within_seconds(tmp_path):
    data = transom.load_spec("tiny-t5").to_dict()
    data["config"] |= {"num_layers": 1, "hidden_size": 48, "ffn_hidden_size": 96, "num_attention_heads": 2}
    data["max_sequence_length"] = 64
    data["train"] |= {"steps": 60, "learning_rate": 0.01, "warmup_steps": 10, "checkpoint_every": 0, "eval_batches": 4}
    result = train(data, out=tmp_path / "run")
    assert result.validation_loss < 3.3  # from ln 288 = 5.7
